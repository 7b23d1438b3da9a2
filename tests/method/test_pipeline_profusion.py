import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)

import schedulers
from calls import CLOSE, PROMPT, build, count_work, latents_of, picture, relative, seeded
from profusion_pipeline.method.modeling_promptnet import PromptNet
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.subject_embedding import SubjectEmbedding
from tiny import LATENT_SIDE, PICTURE_SIDE, make_scheduler

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")]

# ---------------------------------------------------------------------------------------- what comes out


def stable_diffusion(components):
    """The base pipeline of the same models."""
    parts = {name: components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def test_gives_pictures(pipe):
    output = pipe(PROMPT, image=picture(), num_inference_steps=2, generator=seeded())
    assert [image.size for image in output.images] == [(PICTURE_SIDE, PICTURE_SIDE)]
    assert output.nsfw_content_detected is None
    arrays, nsfw = pipe(
        PROMPT, image=picture(), num_inference_steps=2, generator=seeded(), output_type="np", return_dict=False
    )
    assert arrays.shape == (1, PICTURE_SIDE, PICTURE_SIDE, 3) and nsfw is None
    np.testing.assert_allclose(np.asarray(output.images[0]) / 255, arrays[0], atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("prompts", [["a photo of {}"], ["a photo of {}", "{} with a red hat"]])
@pytest.mark.parametrize("scale", [5.3, 1.0])
def test_without_s_it_is_stable_diffusion_to_the_bit(components, prompts, scale, prediction_type):
    """The same arithmetic on the same shapes, so on any processor; two prompts share a negative prompt."""
    components["scheduler"] = make_scheduler(prediction_type=prediction_type)
    pipe, base = ProFusionPipeline(**components), stable_diffusion(components)
    shared = dict(num_inference_steps=3, output_type="np", eta=0.5, negative_prompt=["style"] * len(prompts))
    expected = base([p.format("person") for p in prompts], guidance_scale=scale, generator=seeded(1), **shared)
    ours = pipe(
        [p.format("S*") for p in prompts],
        guidance_scale=0,
        num_fusion_steps=0,
        class_guidance_scale=scale,
        generator=seeded(1),
        **shared,
    )
    assert np.array_equal(ours.images, expected.images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_without_s_it_is_stable_diffusion_to_the_bit_in_half_precision(components, dtype):
    pipe, base = ProFusionPipeline(**components).to(dtype), stable_diffusion(components)
    shared = dict(num_inference_steps=2, output_type="latent", num_images_per_prompt=2)
    expected = base(["a photo of person", "a dog"], guidance_scale=5.3, generator=seeded(1), **shared).images
    ours = pipe(
        ["a photo of S*", "a S*"],
        class_noun=["person", "dog"],
        guidance_scale=0,
        num_fusion_steps=0,
        class_guidance_scale=5.3,
        generator=seeded(1),
        **shared,
    ).images
    assert ours.dtype == dtype and torch.equal(ours, expected)


@pytest.mark.parametrize("variant", ["euler-a", "dpm++-sde", "heun", "unipc", "pndm"])
def test_without_s_it_is_stable_diffusion_with_other_schedulers(components, variant):
    components["scheduler"] = schedulers.make(variant, steps_offset=1)  # as Stable Diffusion insists
    base = stable_diffusion(components)
    expected = base("a photo of dog", 16, 16, 5, guidance_scale=4.0, generator=seeded(), output_type="latent").images
    ours = latents_of(
        ProFusionPipeline(**components),
        "a photo of S*",
        num_inference_steps=5,
        guidance_scale=0,
        num_fusion_steps=0,
        class_guidance_scale=4.0,
        class_prompt="a photo of dog",
    )
    assert torch.equal(ours, expected)


def test_the_loop_is_the_equations(pipe):
    """One step with m = 1, written out with the components."""
    from profusion_pipeline.method.subject_prompt import encode_subject_prompts, tokenize_subject_prompts

    subject = pipe.encode_subject(picture())
    generator = seeded(5)
    shape = (1, 4, LATENT_SIDE, LATENT_SIDE)
    x, z = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    pipe.scheduler.set_timesteps(3)
    t, s = pipe.scheduler.timesteps[:2]
    a, a_next = (pipe.scheduler.alphas_cumprod[step].item() for step in (t, s))

    def text(words):
        ids = pipe.tokenizer(words, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state

    def predict(x, context):
        return pipe.unet(x, t, context).sample

    def with_subject(x, gamma):
        words = pipe.promptnet(subject.latents, t, subject.image_states, x).prompt_embeds
        ids, positions = tokenize_subject_prompts(pipe.tokenizer, [PROMPT], placeholder="S*", num_subject_tokens=1)
        states = encode_subject_prompts(pipe.text_encoder, ids, positions, words)
        states[:, 4] *= gamma
        return predict(x, states)

    with torch.no_grad():
        null, person = text("blue"), text("a photo of person on the beach")
        eps = predict(x, null) + 3 * (with_subject(x, 0.6) - predict(x, null))
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        k = 1 - 0.9**2 * (1 - a / a_next) / (1 - a)
        x = a**0.5 * x0 + (1 - a) ** 0.5 * (k * eps + (1 - k**2) ** 0.5 * z)
        base = predict(x, null)
        eps = base + 4 * (with_subject(x, 1) - base) + 2 * (predict(x, person) - base)
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        expected = a_next**0.5 * x0 + (1 - a_next) ** 0.5 * eps

    seen = {}

    def stop(pipe, i, t, tensors):
        seen.setdefault("latents", tensors["latents"])
        pipe._interrupt = True
        return tensors

    latents_of(
        pipe,
        subject=subject,
        negative_prompt="blue",
        generator=seeded(5),
        guidance_scale=4,
        class_guidance_scale=2,
        fusion_guidance_scale=3,
        fusion_subject_scale=0.6,
        fusion_eta=0.9,
        callback_on_step_end=stop,
    )
    assert relative(seen["latents"], expected) < CLOSE


@pytest.mark.parametrize("variant", schedulers.VARIANTS)
def test_runs_with_every_scheduler(variant):
    pipe = build(scheduler=schedulers.make(variant))
    latents = latents_of(pipe, image=picture(), num_inference_steps=6, guidance_scale=2.0, class_guidance_scale=1.5)
    assert torch.isfinite(latents).all()
    still = latents_of(
        pipe, image=picture(), num_inference_steps=6, guidance_scale=2.0, class_guidance_scale=1.5, num_fusion_steps=0
    )
    assert relative(latents, still) > 1e-3


# ---------------------------------------------------------------------------------------- batches and references


def test_a_batch_is_its_pictures_one_by_one(pipe):
    prompts = ["a photo of S*", "S* with a red hat"]
    images = [[picture(1), picture(2), picture(3)], picture(4)]
    settings = dict(negative_prompt=["blue", "style"], class_noun=["dog", "woman"])
    batch = latents_of(
        pipe,
        prompts,
        image=images,
        num_images_per_prompt=2,
        image_weights=[[1.0, 0.5, 0.25], None],
        generator=[seeded(i) for i in range(4)],
        **settings,
    )
    for i in range(4):
        single = latents_of(
            pipe,
            prompts[i // 2],
            image=images[i // 2],
            image_weights=[[1.0, 0.5, 0.25], None][i // 2],
            generator=seeded(i),
            **{name: values[i // 2] for name, values in settings.items()},
        )
        assert relative(batch[i : i + 1], single) < CLOSE


def test_equal_references_are_one_reference(pipe):
    """Three of them have three rows each: close. One without weight has none: the same bits."""
    one = latents_of(pipe, image=picture())
    assert relative(latents_of(pipe, image=[picture()] * 3), one) < CLOSE
    assert torch.equal(latents_of(pipe, image=[picture(), picture(1)], image_weights=[1.0, 0.0]), one)
    assert torch.equal(latents_of(pipe, image=[picture(1), picture()], image_weights=[0.0, 1.0]), one)
    assert relative(latents_of(pipe, image=[picture(), picture(1)]), one) > 1e-4


def test_fusion_reads_proportions_and_refinement_weights(pipe):
    pair = dict(image=[picture(1), picture(2)], class_guidance_scale=3.0)
    fusion_only = dict(pair, guidance_scale=0.0)
    assert torch.equal(
        latents_of(pipe, image_weights=[1.0, 3.0], **fusion_only), latents_of(pipe, image_weights=[2, 6], **fusion_only)
    )
    refinement_only = dict(pair, num_fusion_steps=0)
    assert torch.equal(
        latents_of(pipe, image_weights=[1.0, 3.0], guidance_scale=2.0, **refinement_only),
        latents_of(pipe, image_weights=[2.0, 6.0], guidance_scale=1.0, **refinement_only),
    )


def test_several_pseudo_words(pipe):
    pipe.promptnet = PromptNet.from_unet(pipe.unet, image_embed_dim=24, region_kernel_size=1).eval()
    latents = latents_of(pipe, image=picture(), height=32, width=16)
    assert latents.shape == (1, 4, 16, 8) and torch.isfinite(latents).all()


def test_texts_given_as_states(pipe):
    expected = latents_of(pipe, image=picture(), negative_prompt="blue", class_prompt="a dog")

    def states(text):
        ids = pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state.detach()

    given = dict(prompt_embeds=states("a dog"), negative_prompt_embeds=states("blue"), class_noun=None)
    assert torch.equal(latents_of(pipe, image=picture(), **given), expected)


# ---------------------------------------------------------------------------------------- start and randomness


def test_order_of_draws(pipe):
    """Initial latents, then at each step m fusion noises, then the scheduler's: with one generator for all."""
    generator = seeded(3)
    first = latents_of(pipe, image=picture(), generator=generator, num_fusion_steps=2, eta=1.0)
    drawn = seeded(3)
    shape = (1, 4, LATENT_SIDE, LATENT_SIDE)
    initial, *_ = (torch.randn(shape, generator=drawn) for _ in range(1 + 3 * (2 + 1)))
    assert torch.equal(generator.get_state(), drawn.get_state())  # so many draws in all
    again = seeded(3)
    torch.randn(shape, generator=again)
    given = latents_of(pipe, image=picture(), latents=initial, generator=again, num_fusion_steps=2, eta=1.0)
    assert torch.equal(given, first)


# ---------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(
    ("m", "omega_1", "omega_2", "num_references"), list(itertools.product([0, 1, 2], [0.0, 7.0], [0.0, 5.0], [1, 3]))
)
def test_work_is_the_minimum(pipe, m, omega_1, omega_2, num_references):
    counts, steps, refs = count_work(pipe), 3, num_references
    latents_of(
        pipe,
        image=[picture(i) for i in range(refs)],
        num_inference_steps=steps,
        num_fusion_steps=m,
        guidance_scale=omega_1,
        class_guidance_scale=omega_2,
    )
    subject_predictions = m + (omega_1 > 0)
    assert counts == dict(
        unet_calls=steps * (m + 1),
        unet_rows=steps * (m * (1 + refs) + 1 + (omega_2 > 0) + refs * (omega_1 > 0)),
        promptnet_calls=steps * subject_predictions,
        promptnet_rows=steps * refs * subject_predictions,
        text_sequences=1 + (omega_2 > 0) + steps * refs * subject_predictions,
    )


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (dict(num_fusion_steps=0, guidance_scale=1.0, class_guidance_scale=0.0), 1),
        (dict(num_fusion_steps=0, guidance_scale=0.5, class_guidance_scale=0.5), 2),
        (dict(num_fusion_steps=0, guidance_scale=0.0, class_guidance_scale=1.0), 1),
        (dict(num_fusion_steps=0, guidance_scale=0.0, class_guidance_scale=0.0), 1),
        (dict(num_fusion_steps=1, fusion_guidance_scale=1.0), 4),
        (dict(num_fusion_steps=1, fusion_guidance_scale=0.0), 4),
    ],
)
def test_rows_without_weight_are_not_computed(pipe, settings, rows):
    counts = count_work(pipe)
    latents_of(pipe, image=picture(), num_inference_steps=1, **settings)
    assert counts["unet_rows"] == rows


def test_guidance_in_a_part_of_the_steps(pipe):
    """Two guided steps and two without are two guided ones, gone on with by ω_1 = 1 and ω_2 = 0."""
    settings, half_way = dict(image=picture(), num_inference_steps=4, num_fusion_steps=0), []

    def keep(pipe, index, timestep, tensors):
        half_way.append(tensors["latents"])

    latents_of(pipe, **settings, callback_on_step_end=keep)
    alone = dict(guidance_scale=1.0, class_guidance_scale=0.0)
    rest = latents_of(pipe, **settings, **alone, latents=half_way[1], strength=0.5)
    assert torch.equal(latents_of(pipe, **settings, guidance_end=0.5), rest)
    half_way.clear()
    latents_of(pipe, **settings, **alone, callback_on_step_end=keep)
    rest = latents_of(pipe, **settings, latents=half_way[1], strength=0.5)
    assert torch.equal(latents_of(pipe, **settings, guidance_start=0.5), rest)


def test_the_refinement_stage_is_rescaled_as_diffusers_has_it(components):
    settings = dict(num_inference_steps=3, guidance_rescale=0.7, output_type="latent")
    base = stable_diffusion(components)
    expected = base("a photo of dog", guidance_scale=4.0, generator=seeded(), **settings).images
    pipe = ProFusionPipeline(**components)
    settings = dict(guidance_scale=0.0, class_guidance_scale=4.0, num_fusion_steps=0, class_prompt="a photo of dog")
    found = latents_of(pipe, **settings, guidance_rescale=0.7)
    assert relative(found, expected) < CLOSE
    assert relative(found, latents_of(pipe, **settings)) > 1e-3


def test_s_is_shared_between_predictions(pipe):
    """PromptNet sees x_t and t of the first prediction of every second step, and only these."""
    seen = []
    pipe.promptnet.register_forward_pre_hook(lambda module, args: seen.append((args[3].clone(), int(args[1]))))
    every = latents_of(pipe, image=picture(), num_inference_steps=4)
    timesteps = pipe.scheduler.timesteps.tolist()
    always = seen[:]
    assert [t for _, t in seen] == [t for t in timesteps for _ in range(2)]
    seen.clear()
    found = latents_of(pipe, image=picture(), num_inference_steps=4, subject_every=2)
    assert [t for _, t in seen] == timesteps[::2]
    assert torch.equal(seen[0][0], always[0][0]) and relative(found, every) > 1e-4
    once = latents_of(pipe, image=picture(), num_inference_steps=4, num_fusion_steps=0, subject_every=1)
    assert torch.equal(once, latents_of(pipe, image=picture(), num_inference_steps=4, num_fusion_steps=0))


def test_options_of_the_course_in_a_batch_with_references_and_long_prompts(pipe):
    """Each picture is what it is alone, S* of each of its references shared and its deviation its own."""
    settings = dict(subject_every=2, guidance_rescale=0.6, guidance_end=0.7, long_prompts=True)
    prompts = ["a photo of S*", "hat " * 80 + "S* on the beach"]
    images = [[picture(1), picture(2)], picture(3)]
    batch = latents_of(pipe, prompts, image=images, generator=[seeded(0), seeded(1)], **settings)
    settings["long_prompts"] = True
    alone = latents_of(pipe, prompts[1], image=images[1], generator=seeded(1), **settings)
    assert relative(batch[1:], alone) < CLOSE


# ---------------------------------------------------------------------------------------- around the loop


def test_callback_may_replace_latents(pipe):
    seen = []

    def zero(pipe, i, t, tensors):
        seen.append((i, int(t), tuple(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert latents_of(pipe, image=picture(), callback_on_step_end=zero).abs().max() == 0
    assert [index for index, *_ in seen] == [0, 1, 2] and seen[0][2] == ("latents",)


def test_saves_and_loads(pipe, tmp_path):
    expected = latents_of(pipe, image=picture())
    pipe.save_pretrained(tmp_path)
    loaded = ProFusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert loaded.config.placeholder == "S*"
    assert torch.equal(latents_of(loaded, image=picture()), expected)


# ---------------------------------------------------------------------------------------- bad input


def nan_like(tensor):
    return torch.full_like(tensor, float("nan"))


BAD = [
    (dict(prompt="a photo"), ValueError, r"must hold the placeholder 'S\*' exactly once, got it 0 times in 'a photo'"),
    (dict(prompt=""), ValueError, r"`prompt` must hold the placeholder 'S\*' exactly once, got it 0 times in ''"),
    (dict(prompt="S* and S*"), ValueError, r"'S\*' exactly once, got it 2 times"),
    (dict(prompt="a photo of s*"), ValueError, r"\(write 'S\*' in place of 's\*'\)"),
    (dict(prompt="a photo of sks man"), ValueError, r"\(write 'S\*' in place of 'sks'\)"),
    (dict(prompt="a photo of <S*>"), ValueError, r"must hold the placeholder as 'S\*', got '<S\*>'"),
    (dict(prompt="dog " * 80 + "S*"), ValueError, "reads 77 tokens, got it at token 81"),
    (dict(prompt="S* \ud83d"), ValueError, r"`prompt` must be a text without lone surrogates, got 'S\* \\ud83d'"),
    (dict(class_noun="\udc00"), ValueError, "`class_noun` must be a text without lone surrogates"),
    (dict(class_noun="S*"), ValueError, r"`class_noun` must not hold the placeholder 'S\*', got 'S\*'"),
    (dict(class_prompt="a photo of S*"), ValueError, r"`class_prompt` must not hold the placeholder"),
    (dict(negative_prompt="blurry S*"), ValueError, r"`negative_prompt` must not hold the placeholder"),
    (dict(guidance_scale=[3, 5]), TypeError, r"`guidance_scale` must be one number for the whole call, got \[3, 5\]"),
    (dict(ip_adapter_image=picture()), TypeError, "`ip_adapter_image` is no argument of this pipeline: `image` is the"),
    (dict(clip_skip=1), TypeError, "`clip_skip` is no argument of this pipeline: PromptNet learnt"),
    (dict(callback_on_step_end=3), TypeError, "`callback_on_step_end` must be callable, got 3"),
    (dict(callback_on_step_end_tensor_inputs="latents"), TypeError, "must be a list of names, got 'latents'"),
    (dict(eta=1.5), ValueError, "`eta` must be a finite number of 0 to 1, got 1.5"),
    (dict(guidance_scale=10**400), ValueError, "`guidance_scale` must be a finite number of at least 0, got a whole"),
    (dict(latents=nan_like(torch.zeros(1, 4, 8, 8))), ValueError, "`latents` must hold finite numbers, got 256 that"),
    (dict(prompt_embeds=nan_like(torch.zeros(1, 77, 32))), ValueError, "`prompt_embeds` must hold finite numbers"),
    (dict(prompt=3), TypeError, "`prompt` must be a text or a list of texts, got 3"),
    (dict(prompt=["S*", 3]), TypeError, "`prompt` must be a text or a list of texts"),
    (dict(prompt=[]), ValueError, "`prompt` must have at least one text, got an empty list"),
    (dict(class_noun=None), ValueError, "`class_noun` or `class_prompt` must say the prompt without"),
    (dict(class_noun=3), TypeError, "`class_noun` must be a text or a list of texts, got 3"),
    (dict(class_noun=["a", "b"]), ValueError, "`class_noun` must have an entry for each of 1 prompts, got 2"),
    (dict(class_prompt=["a", "b"]), ValueError, "`class_prompt` must have an entry for each of 1 prompts, got 2"),
    (dict(negative_prompt=["a", "b"]), ValueError, "`negative_prompt` must have an entry for each of 1 prompts, got 2"),
    (dict(negative_prompt=3), TypeError, "`negative_prompt` must be a text"),
    (
        dict(prompt=["S*", "S*"], image=[picture()]),
        ValueError,
        "`image` must have an entry for each of 2 prompts, got 1",
    ),
    (dict(image=None), ValueError, "`image` or `subject` must be given"),
    (dict(subject="ada"), ValueError, "`image` and `subject` must not both be given"),
    (
        dict(image=None, subject="ada"),
        ValueError,
        r"`subject` must be the name of a loaded concept \(none\), got .ada.",
    ),
    (dict(image=[]), ValueError, "`image` is an empty list"),
    (dict(image="nowhere.png"), ValueError, "nowhere.png"),
    (dict(image=3), TypeError, "int"),
    (dict(image_weights=[-1.0]), ValueError, "`image_weights` must be a finite number of at least 0, got -1.0"),
    (dict(image_weights=[0.0]), ValueError, "`image_weights` must not all be 0"),
    (dict(image_weights=[1.0, 2.0]), ValueError, "`image_weights` must have an entry for each of 1 references, got 2"),
    (dict(image_weights=["a"]), TypeError, "`image_weights` must be a number, got 'a'|for each reference"),
    (
        dict(prompt=[PROMPT, PROMPT], image=[picture(), [picture(), "nowhere.png"]]),
        ValueError,
        r"`image\[1\]\[1\]` must be a file that exists, got 'nowhere.png'",
    ),
    (
        dict(prompt=[PROMPT, PROMPT], image=[picture(), picture()], image_weights=[None, [-1.0]]),
        ValueError,
        r"`image_weights\[1\]` must be a finite number of at least 0, got -1.0",
    ),
    (dict(guidance_scale=1e38), ValueError, "`guidance_scale` must be at most 10000, whatever its sign, got 1e.38"),
    (dict(image_weights=[1e38]), ValueError, "`image_weights` must be at most 10000, whatever its sign, got 1e.38"),
    (dict(image_weights=1.0), TypeError, "`image_weights` must have a number for each reference, got 1.0"),
    (dict(height=20), ValueError, "multiples of 16 and at least 16, got 20 and 16"),
    (dict(width=16.0), TypeError, "`width` must be a whole number, got 16.0"),
    (dict(latents=torch.zeros(1, 4, 9, 8)), ValueError, r"`latents` must have the shape \(1, 4, 8, 8\)"),
    (dict(latents=torch.zeros(1, 4, 8, 8).half()), TypeError, "`latents` must be of the pipeline's dtype .*float32"),
    (dict(latents=[0]), TypeError, "`latents` must be a tensor, got list"),
    (dict(prompt_embeds=torch.zeros(2, 77, 32)), ValueError, r"`prompt_embeds` must have the shape \(1, 77, 32\)"),
    (dict(negative_prompt_embeds=torch.zeros(1, 7, 32)), ValueError, "`negative_prompt_embeds` must have the shape"),
    (
        dict(prompt_embeds=torch.zeros(1, 77, 32), class_prompt="a"),
        ValueError,
        "`class_prompt` and `prompt_embeds` must not both be given",
    ),
    (dict(generator=[seeded()] * 2), ValueError, "`generator` must have an entry for each of 1 pictures, got 2"),
    (dict(generator=3), TypeError, "`generator` must be a torch.Generator or a list of them, got 3"),
    (dict(num_inference_steps=0), ValueError, "`num_inference_steps` must be at least 1, got 0"),
    (dict(num_inference_steps=-5), ValueError, "`num_inference_steps` must be at least 1, got -5"),
    (dict(num_inference_steps=5.0), TypeError, "`num_inference_steps` must be a whole number, got 5.0"),
    (dict(num_fusion_steps=-1), ValueError, "`num_fusion_steps` must be at least 0, got -1"),
    (dict(num_fusion_steps=10**40), ValueError, "`num_fusion_steps` must be at most 10000, got"),
    (dict(num_images_per_prompt=10**5), ValueError, "`num_images_per_prompt` must be at most 10000, got 100000"),
    (dict(long_prompts="no"), TypeError, "`long_prompts` must be True or False, got 'no'"),
    (dict(base_guidance=1), TypeError, "`base_guidance` must be True or False, got 1"),
    (dict(cross_attention_kwargs={1: 2}), TypeError, "`cross_attention_kwargs` must have names for keys, got 1"),
    (dict(class_noun=" "), ValueError, "`class_noun` must say what the subject is, such as 'person', got ' '"),
    (dict(image=None, concept=["a", ["b"]], prompt=["S*"] * 2), ValueError, "`concept` must be the name of a loaded"),
    (
        dict(image=None, concept=[None]),
        ValueError,
        r"`concept` must be the name of a loaded concept \(none\), got None",
    ),
    (dict(prompt="a photo of \uff33\uff0a"), ValueError, r"\(write 'S\*' in place of 's\*'\)"),
    (dict(prompt="a photo of S\u2217"), ValueError, r"\(write 'S\*' in place of 's\*'\)"),
    (dict(latents=torch.zeros(1, 4, 8, 8, device="meta")), ValueError, "`latents` must be a dense tensor that holds"),
    (dict(num_fusion_steps=True), TypeError, "`num_fusion_steps` must be a whole number, got True"),
    (dict(num_images_per_prompt=0), ValueError, "`num_images_per_prompt` must be at least 1"),
    *(
        (dict([(name, value)]), ValueError, f"`{name}` must be a finite number of at least 0, got {value}")
        for name in ("guidance_scale", "class_guidance_scale", "fusion_guidance_scale", "fusion_subject_scale")
        for value in (float("nan"), float("inf"), -1.0)
    ),
    (dict(eta=-1.0), ValueError, "`eta` must be a finite number"),
    (dict(guidance_scale="7"), TypeError, "`guidance_scale` must be a number, got '7'"),
    (dict(fusion_eta=2.0), ValueError, r"`fusion_eta` must be at most 1\.\d+ with this schedule, got 2.0"),
    (dict(fusion_eta=float("nan")), ValueError, "`fusion_eta` must be a finite number"),
    (dict(fusion_text="loud"), ValueError, "`fusion_text` must be 'scaled' or 'mixed', got 'loud'"),
    (
        dict(fusion_text="mixed", prompt_embeds=torch.zeros(1, 77, 32)),
        ValueError,
        '`fusion_text="mixed"` and `prompt_embeds` must not both be given',
    ),
    (
        dict(fusion_text="mixed", class_guidance_scale=0.0, class_noun=None),
        ValueError,
        "`class_noun` or `class_prompt` must say .* or `fusion_text` is 'mixed', got None for both",
    ),
    (dict(fusion_start=-0.1), ValueError, "`fusion_start` must be a finite number of at least 0, got -0.1"),
    (dict(fusion_end="1"), TypeError, "`fusion_end` must be a number, got '1'"),
    (dict(fusion_start=0.5, fusion_end=0.5), ValueError, "`fusion_start` must be less than `fusion_end`, and that at"),
    (dict(fusion_end=1.5), ValueError, "and that at most 1, got 0.0 and 1.5"),
    (dict(guidance_start=0.5, guidance_end=0.5), ValueError, "`guidance_start` must be less than `guidance_end`, and"),
    (dict(guidance_end=1.5), ValueError, "and that at most 1, got 0.0 and 1.5"),
    (dict(guidance_rescale=1.5), ValueError, "`guidance_rescale` must be a finite number of 0 to 1, got 1.5"),
    (dict(guidance_rescale=None), TypeError, "`guidance_rescale` must be a number, got None"),
    (dict(subject_every=-1), ValueError, "`subject_every` must be at least 0, got -1"),
    (dict(subject_every=2.0), TypeError, "`subject_every` must be a whole number, got 2.0"),
    (dict(strength=0.0), ValueError, r"`strength` must be in \(0, 1\], got 0.0"),
    (dict(strength=1.5), ValueError, r"`strength` must be in \(0, 1\], got 1.5"),
    (dict(strength=0.1), ValueError, "`strength` must leave at least one of 3 steps, got 0.1"),
    (dict(cross_attention_kwargs=0.5), TypeError, "`cross_attention_kwargs` must be a dictionary, got 0.5"),
    (dict(cross_attention_kwargs=dict(scale="0.5")), TypeError, r"kwargs\[.scale.\]` must be a number, got '0.5'"),
    (dict(output_type="jpg"), ValueError, "`output_type` must be 'pil' or 'np' or 'pt' or 'latent', got 'jpg'"),
    (
        dict(callback_on_step_end_tensor_inputs=["noise"]),
        ValueError,
        "must be 'latents' or .*, got 'noise'",
    ),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_an_error_before_any_work(pipe, settings, error, message):
    counts = count_work(pipe)
    encoder_calls = []
    pipe.image_encoder.register_forward_pre_hook(lambda module, args: encoder_calls.append(1))
    with pytest.raises(error, match=message):
        latents_of(pipe, **dict(prompt=PROMPT, image=picture()) | settings)
    assert not any(counts.values()) and not encoder_calls


def test_weights_of_references_come_with_them(pipe):
    """A subject has its own, and nobody would notice that these are not read."""
    with pytest.raises(ValueError, match="`image_weights` and `subject` must not both be given"):
        latents_of(pipe, subject=pipe.encode_subject(picture()), image_weights=[0.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(text_embed_dim=40),
            "`promptnet` must fit `text_encoder`, whose `hidden_size` is 32, got one with `text_embed_dim` 40",
        ),
        (
            dict(image_embed_dim=40),
            "`promptnet` must fit `image_encoder`, whose `hidden_size` is 24, got one with `image_embed_dim` 40",
        ),
    ],
)
def test_promptnet_of_another_width(pipe, settings, message):
    pipe.promptnet = PromptNet.from_unet(pipe.unet, **dict(image_embed_dim=24) | settings)
    with pytest.raises(ValueError, match=message):
        latents_of(pipe, image=picture())
    with pytest.raises(ValueError, match=message):
        pipe.encode_subject(picture())


def test_subject_of_another_pipeline_or_size(pipe):
    subject = SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 99), torch.ones(1))
    with pytest.raises(ValueError, match="vision states 24 wide, which this PromptNet reads, got 4 and 99"):
        latents_of(pipe, subject=subject)
    subject = SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 24), torch.ones(1))
    with pytest.raises(ValueError, match="`subject` must be encoded for pictures of 32 x 16, got one for 16 x 16"):
        latents_of(pipe, subject=subject, height=32)
    broken = SimpleNamespace(**vars(subject) | {"image_states": nan_like(subject.image_states)})  # as a concept may be
    with pytest.raises(ValueError, match=r"`subject\[1\].image_states` must hold finite numbers, got 120 that aren't"):
        latents_of(pipe, ["S*", "S*"], subject=[subject, broken])
    with pytest.raises(ValueError, match=r"`subject` must be the name of a loaded concept \(none\), got 'ada'"):
        latents_of(pipe, ["S*", "S*"], subject=[subject, "ada"])


def test_a_size_with_more_words_than_the_text_encoder_reads(pipe):
    with pytest.raises(ValueError, match="`height` and `width` must be smaller, .* reads 77 tokens, got 160 and 160"):
        latents_of(pipe, image=picture(), height=160, width=160)


def test_words_that_do_not_fit_are_named(pipe, caplog):
    """As Stable Diffusion does, in prompts with S* and without."""
    long = ", ".join(["hat"] * 60)
    pipe(f"S*, {long}, dog", image=picture(), negative_prompt=f"{long}, blue", num_inference_steps=1)
    said = [record.getMessage() for record in caplog.records if "left out of a prompt" in record.getMessage()]
    assert len(said) == 3 and all("the text encoder reads 77 tokens" in one for one in said)
    assert sum("dog" in one for one in said) == 2 and sum("blue" in one for one in said) == 1
