"""With Stable Diffusion XL as its base. The loop is that of `test_pipeline_profusion.py`; here is what is XL's own."""

import threading

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

import schedulers
from calls import CLOSE, PROMPT, latents_of, picture, relative, seeded
from loras import make_xl_lora, xl_as_kohya
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline, in_float32
from tiny import TEXT_WIDTH, make_scheduler, make_unet
from tiny_xl import PROJECTION, SECOND_WIDTH, make_xl_components

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")]

PLAIN = dict(guidance_scale=0.0, num_fusion_steps=0, class_guidance_scale=5.0)
HAT = LearntSubject("red hat", class_noun="hat")
BASE_PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")


def build(**overrides) -> ProFusionXLPipeline:
    pipe = ProFusionXLPipeline(**make_xl_components(**overrides))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return build()


def base_of(pipe) -> StableDiffusionXLPipeline:
    base = StableDiffusionXLPipeline(**{name: getattr(pipe, name) for name in BASE_PARTS})
    base.set_progress_bar_config(disable=True)
    return base


def base_latents(pipe, prompt, **settings):
    defaults = dict(num_inference_steps=3, guidance_scale=5.0, output_type="latent", generator=seeded())
    return base_of(pipe)(prompt, **defaults | settings).images


CLASS = "a photo of person on the beach"


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(negative_prompt="a dog"),
        dict(negative_prompt=""),
        dict(height=32, width=16),
        dict(num_images_per_prompt=2),
        dict(original_size=(40, 30), crops_coords_top_left=(2, 3), target_size=(16, 16)),
        dict(negative_original_size=(8, 8), negative_crops_coords_top_left=(1, 1), negative_target_size=(8, 8)),
    ],
    ids=lambda settings: "-".join(settings) or "defaults",
)
def test_without_subject_it_is_stable_diffusion_xl_to_the_bit(pipe, settings):
    expected = base_latents(pipe, CLASS, **settings)
    assert torch.equal(latents_of(pipe, **PLAIN, **settings), expected)


def test_a_batch_with_a_generator_for_each_to_the_bit(pipe):
    prompts = [PROMPT, "S* in a red hat"]
    expected = base_latents(
        pipe, [CLASS, "person in a red hat"], generator=[seeded(1), seeded(2)], negative_prompt=["a dog", "blue"]
    )
    ours = latents_of(pipe, prompts, generator=[seeded(1), seeded(2)], negative_prompt=["a dog", "blue"], **PLAIN)
    assert torch.equal(ours, expected)


def test_pictures_are_those_of_stable_diffusion_xl(pipe):
    expected = base_latents(pipe, CLASS, output_type="pt")
    assert torch.equal(latents_of(pipe, output_type="pt", **PLAIN), expected)
    (images,) = latents_of_tuple(pipe)
    assert images[0].size == (16, 16)


def latents_of_tuple(pipe):
    return pipe(PROMPT, num_inference_steps=1, return_dict=False, **PLAIN)


@pytest.mark.parametrize("variant", ["euler", "euler-a", "lcm", "dpm++", "unipc", "heun", "ddpm"])
def test_schedulers_draw_what_the_base_draws(variant):
    ours, theirs = (
        build(scheduler=schedulers.make(variant, timestep_spacing="trailing"), with_promptnet=False) for _ in "12"
    )
    expected = base_latents(theirs, CLASS, num_inference_steps=2)
    assert torch.equal(latents_of(ours, num_inference_steps=2, **PLAIN), expected)


@pytest.mark.slow
@pytest.mark.parametrize("variant", schedulers.VARIANTS)
def test_every_scheduler_carries_the_fusion_stage(variant):
    pipe = build(scheduler=schedulers.make(variant))
    assert torch.isfinite(latents_of(pipe, image=picture(), num_inference_steps=4)).all()
    expected = base_latents(build(scheduler=schedulers.make(variant)), CLASS, num_inference_steps=4)
    assert torch.equal(latents_of(pipe, num_inference_steps=4, **PLAIN), expected)


def test_v_prediction():
    ours, theirs = (build(scheduler=make_scheduler(prediction_type="v_prediction")) for _ in "12")
    assert torch.equal(latents_of(ours, **PLAIN), base_latents(theirs, CLASS))
    assert torch.isfinite(latents_of(ours, image=picture())).all()


def test_one_step_without_guidance_as_turbo_is_drawn(pipe):
    settings = dict(num_inference_steps=1, guidance_scale=0.0)
    expected = base_latents(pipe, CLASS, **settings)
    ours = latents_of(pipe, **settings, class_guidance_scale=1.0, num_fusion_steps=0)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", ["photo", "words"])
def test_a_batch_is_its_pictures_one_by_one(pipe, kind):
    prompts = [PROMPT, "S* in a red hat"]
    whose = dict(image=[picture(1), picture(2)]) if kind == "photo" else dict(subject=HAT)
    together = latents_of(pipe, prompts, generator=[seeded(1), seeded(2)], **whose)
    for i, prompt in enumerate(prompts):
        own = dict(image=whose["image"][i]) if kind == "photo" else whose
        alone = latents_of(pipe, prompt, generator=[seeded(i + 1)], **own)
        assert relative(together[i : i + 1], alone) < CLOSE


def test_learnt_words_without_fusion_are_the_base_with_them():
    """One row of (S*, C), weight 1, against the base's own prompt, one row too."""
    pipe = build(with_promptnet=False)
    settings = dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0)
    expected = base_latents(pipe, "a photo of red hat on the beach", guidance_scale=1.0)
    assert torch.equal(latents_of(pipe, subject=HAT, **settings), expected)


def load_word(pipe, word="<cat-toy>"):
    for name, width in (("", TEXT_WIDTH), ("_2", SECOND_WIDTH)):
        vectors = torch.randn(2, width, generator=seeded(3))
        encoder, tokenizer = getattr(pipe, f"text_encoder{name}"), getattr(pipe, f"tokenizer{name}")
        pipe.load_textual_inversion(vectors, token=word, text_encoder=encoder, tokenizer=tokenizer)


def test_a_textual_inversion_of_two_encoders_and_two_vectors():
    pipe = build(with_promptnet=False)
    load_word(pipe)
    subject = LearntSubject("<cat-toy>", class_noun="hat")
    settings = dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0)
    expected = base_latents(pipe, "a photo of <cat-toy> on the beach", guidance_scale=1.0)
    assert torch.equal(latents_of(pipe, subject=subject, **settings), expected)
    assert not torch.equal(latents_of(pipe, subject=subject), latents_of(pipe, subject=HAT))


def test_a_file_with_vectors_for_both_encoders_is_loaded_into_both(tmp_path):
    pipe, expected = build(with_promptnet=False), build(with_promptnet=False)
    widths = (("clip_l", TEXT_WIDTH), ("clip_g", SECOND_WIDTH))
    vectors = {name: torch.randn(2, width, generator=seeded(3)) for name, width in widths}
    save_file(vectors, tmp_path / "cat-toy.safetensors")
    pipe.load_textual_inversion(str(tmp_path / "cat-toy.safetensors"))
    load_word(expected)
    for name in ("text_encoder", "text_encoder_2"):
        tables = [getattr(one, name).get_input_embeddings().weight for one in (pipe, expected)]
        assert torch.equal(*tables)
    assert pipe.tokenizer.get_added_vocab().keys() == pipe.tokenizer_2.get_added_vocab().keys()


def test_a_photo_and_words_in_one_batch(pipe):
    subject = pipe.encode_subject(picture())
    both = latents_of(pipe, [PROMPT] * 2, subject=[subject, HAT], generator=[seeded(1), seeded(2)])
    for i, one in enumerate((subject, HAT)):
        assert relative(both[i : i + 1], latents_of(pipe, subject=one, generator=[seeded(i + 1)])) < CLOSE


def test_words_of_a_photo_are_as_wide_as_both_encoders(pipe):
    assert pipe.promptnet.config.text_embed_dim == TEXT_WIDTH + SECOND_WIDTH
    one, other = (latents_of(pipe, image=picture(i)) for i in (1, 2))
    assert not torch.equal(one, other)


def test_texts_encoded_beforehand(pipe):
    text, null, pooled, null_pooled = pipe.encode_prompt(CLASS, "a dog")
    assert text.shape == (1, 77, TEXT_WIDTH + SECOND_WIDTH) and pooled.shape == (1, PROJECTION)
    expected = latents_of(pipe, image=picture(), negative_prompt="a dog")
    given = dict(prompt_embeds=text, pooled_prompt_embeds=pooled)
    given |= dict(negative_prompt_embeds=null, negative_pooled_prompt_embeds=null_pooled)
    assert torch.equal(latents_of(pipe, image=picture(), **given), expected)
    theirs = base_of(pipe).encode_prompt(CLASS, negative_prompt="a dog")
    for ours, other in zip((text, null, pooled, null_pooled), theirs, strict=True):
        assert torch.equal(ours, other)
    assert not any(part.any() for part in pipe.encode_prompt(CLASS)[1::2])


def test_long_prompts_draw_and_one_piece_changes_nothing(pipe):
    expected = latents_of(pipe, image=picture())
    assert torch.equal(latents_of(pipe, image=picture(), long_prompts=True), expected)
    long = "a photo of S* " + "red hat " * 60
    first = latents_of(pipe, long, image=picture(), long_prompts=True)
    late = latents_of(pipe, "red hat " * 60 + "S*", image=picture(), long_prompts=True)
    words = latents_of(pipe, long, subject=HAT, long_prompts=True)
    assert all(torch.isfinite(one).all() for one in (first, late, words))


def test_a_callback_sees_and_changes_pooled_text(pipe):
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {"pooled_prompt_embeds": torch.zeros_like(tensors["pooled_prompt_embeds"])}

    names = ["latents", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    settings = dict(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    changed = latents_of(pipe, image=picture(), **settings)
    assert seen[0] == {"latents": (1, 4, 8, 8), names[1]: (1, PROJECTION), names[2]: (1, PROJECTION)}
    assert not torch.equal(changed, latents_of(pipe, image=picture()))


def test_two_threads_with_a_clone_each(pipe):
    subjects = [pipe.encode_subject(picture(i)) for i in (1, 2)]
    pipes = [pipe, pipe.clone()]
    expected = [latents_of(one, subject=subject) for one, subject in zip(pipes, subjects, strict=True)]
    drawn = [None, None]

    def draw(i):
        drawn[i] = latents_of(pipes[i], subject=subjects[i])

    threads = [threading.Thread(target=draw, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, drawn, expected))


def test_from_a_pipeline_of_stable_diffusion_xl(pipe):
    ours = ProFusionXLPipeline.from_pipe(base_of(pipe))
    ours.set_progress_bar_config(disable=True)
    assert ours.promptnet is None and ours.unet is pipe.unet
    assert torch.equal(latents_of(ours, subject=HAT), latents_of(pipe, subject=HAT))
    with pytest.raises(ValueError, match="has no `promptnet`"):
        latents_of(ours, image=picture())


def test_a_vae_that_is_too_narrow_in_float16_is_widened_for_the_moment(pipe):
    pipe.vae.to(torch.float16)
    with in_float32(pipe.vae):
        assert pipe.vae.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16
    pipe.vae.register_to_config(force_upcast=False)
    with in_float32(pipe.vae):
        assert pipe.vae.dtype == torch.float16


def test_a_vae_that_tells_the_statistics_of_its_latents(pipe):
    expected = pipe.encode_subject(picture()).latents
    pipe.vae.register_to_config(latents_mean=[0.5] * 4, latents_std=[2.0] * 4)
    subject = pipe.encode_subject(picture())
    torch.testing.assert_close(subject.latents, (expected - 0.5 * 0.13025) / 2)
    assert torch.equal(latents_of(pipe, output_type="pt", **PLAIN), base_latents(pipe, CLASS, output_type="pt"))


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (dict(original_size=1024), TypeError, "`original_size` must be a pair of whole numbers, got 1024"),
        (dict(target_size=(1024, -1)), ValueError, "`target_size` must be at least 0, got -1"),
        (dict(pooled_prompt_embeds=torch.zeros(1, PROJECTION)), ValueError, "must be given together"),
        (dict(prompt_2="a dog"), TypeError, "every text encoder reads `prompt`"),
        (dict(sharpness=1), TypeError, "ProFusionXLPipeline has no argument 'sharpness'"),
    ],
)
def test_bad_input(pipe, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        latents_of(pipe, image=picture(), **settings)


def test_another_unet_is_named():
    for overrides, sentence in (
        (dict(cross_attention_dim=48), "`unet` must be of Stable Diffusion XL, got one that reads no sizes"),
        (
            dict(
                cross_attention_dim=48,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=5 * 4 + PROJECTION,
            ),
            "`unet` must read 44 numbers beside the time.*got one that reads 40",
        ),
    ):
        pipe = build(unet=make_unet(**overrides), with_promptnet=False)
        with pytest.raises(ValueError, match=sentence):
            latents_of(pipe, subject=HAT)


ALL_ROWS = dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0)


def test_a_lora_on_all_rows_is_diffusers_with_that_lora():
    pipe, theirs = build(with_promptnet=False), build(with_promptnet=False)
    state, base = make_xl_lora(), base_of(theirs)
    plain = latents_of(pipe, subject=HAT, **ALL_ROWS)
    base.load_lora_weights(dict(state), adapter_name="dog")
    pipe.load_lora_weights(dict(state), adapter_name="dog")
    expected = base("a photo of red hat on the beach", num_inference_steps=3, guidance_scale=1.0, output_type="latent",
                    generator=seeded()).images  # fmt: skip
    dog = LearntSubject("red hat", class_noun="hat", adapter="dog")
    ours = latents_of(pipe, subject=dog, **ALL_ROWS)
    assert relative(ours, expected) < CLOSE
    assert relative(plain, expected) > 1e-3


def test_the_lora_of_a_subject_leaves_null_and_class_to_the_base():
    pipe = build(with_promptnet=False)
    plain = latents_of(pipe, subject=HAT, **PLAIN)
    with_words = latents_of(pipe, subject=HAT)
    pipe.load_lora_weights(make_xl_lora(), adapter_name="dog")
    dog = LearntSubject("red hat", class_noun="hat", adapter="dog")
    assert relative(latents_of(pipe, subject=dog, **PLAIN), plain) < CLOSE
    none = LearntSubject("red hat", class_noun="hat", adapter="dog", scale=0.0)
    assert relative(latents_of(pipe, subject=none), with_words) < CLOSE
    assert relative(latents_of(pipe, subject=dog), with_words) > 1e-3
    both = latents_of(pipe, [PROMPT] * 2, subject=[dog, none], generator=[seeded(1), seeded(2)])
    for i, one in enumerate((dog, none)):
        assert relative(both[i : i + 1], latents_of(pipe, subject=one, generator=[seeded(i + 1)])) < CLOSE


def test_a_lora_in_kohyas_format():
    """With the original names of XL's blocks, which diffusers translates: the same pictures as from its own format."""
    drawn, dog = [], LearntSubject("red hat", class_noun="hat", adapter="dog")
    for as_kohya in (False, True):
        # diffusers knows a text encoder's LoRA by its out_proj, which kohya's scripts always learn
        pipe, state = build(with_promptnet=False), make_xl_lora(in_texts=("out_proj",))
        if as_kohya:
            state = xl_as_kohya(state, pipe.unet.config.layers_per_block)
            assert any("input_blocks" in name for name in state) and any("lora_te2" in name for name in state)
        pipe.load_lora_weights(state, adapter_name="dog")
        assert all("dog" in part.peft_config for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2))
        drawn.append(latents_of(pipe, subject=dog))
    assert torch.equal(*drawn)


def test_a_dora_is_refused():
    pipe = build(with_promptnet=False)
    state = {name: tensor for name, tensor in make_xl_lora(use_dora=True).items() if name.startswith("unet.")}
    pipe.load_lora_weights(state, adapter_name="dog")
    with pytest.raises(ValueError, match="The adapter 'dog' is a DoRA, which scales whole weights"):
        latents_of(pipe, subject=LearntSubject("red hat", class_noun="hat", adapter="dog"))


def test_a_whole_unet_on_all_rows_is_the_base_with_that_unet():
    pipe, other = build(with_promptnet=False), build(seed=1, with_promptnet=False)
    subject = LearntSubject("red hat", class_noun="hat", unet=other.unet)
    ours = latents_of(pipe, subject=subject, base_guidance=False, **ALL_ROWS)
    base = build(with_promptnet=False, unet=other.unet)
    assert torch.equal(ours, base_latents(base, "a photo of red hat on the beach", guidance_scale=1.0))
    assert relative(latents_of(pipe, subject=subject, **PLAIN), latents_of(pipe, subject=HAT, **PLAIN)) < CLOSE


@pytest.mark.parametrize("noun, error", [(dict(), TypeError), (dict(class_noun=" "), ValueError)])
def test_words_without_a_class_noun(pipe, noun, error):
    with pytest.raises(error, match="class_noun"):
        latents_of(pipe, subject=pipe.LearntSubject("red hat", **noun))


def test_a_lora_for_another_base_is_refused():
    pipe, state = build(with_promptnet=False), make_xl_lora()
    state = {name: torch.zeros(*(2 * side for side in tensor.shape)) for name, tensor in state.items()}
    with pytest.raises(ValueError, match="The LoRA must be made for a base model like this one"):
        pipe.load_lora_weights(state, adapter_name="dog")


@pytest.mark.parametrize(
    "settings",
    [
        dict(recipe="fast"),
        dict(recipe="best"),
        dict(fusion_text="mixed"),
        dict(subject_every=2),
        dict(guidance_start=0.3, guidance_end=0.7),
        dict(guidance_rescale=0.5),
    ],
)
@pytest.mark.parametrize("kind", ["photo", "words"])
def test_settings_of_the_call_change_what_it_draws(pipe, kind, settings):
    subject = pipe.encode_subject(picture()) if kind == "photo" else HAT
    plain = latents_of(pipe, subject=subject, num_inference_steps=4)
    drawn = latents_of(pipe, subject=subject, num_inference_steps=4, **settings)
    assert torch.isfinite(drawn).all()
    if not (kind == "words" and "subject_every" in settings):  # words are read once a call in any case
        assert relative(drawn, plain) > 1e-4
    else:
        assert torch.equal(drawn, plain)


def test_mixed_text_at_full_strength_is_scaled_text_at_full_strength(pipe):
    """γ = 1 leaves the text with S* as it is, the pooled one too."""
    drawn = [latents_of(pipe, subject=HAT, fusion_text=how, fusion_subject_scale=1.0) for how in ("mixed", "scaled")]
    assert relative(*drawn) < CLOSE


def test_bad_input_around_a_lora(tmp_path, caplog):
    pipe = build(with_promptnet=False)
    pipe.load_lora_weights(make_xl_lora(), adapter_name="dog")
    missing = LearntSubject("red hat", class_noun="hat", adapter="cat")
    with pytest.raises(ValueError, match=r"must name one that `load_lora_weights` has loaded \('dog'\), got 'cat'"):
        latents_of(pipe, subject=missing)
    latents_of(pipe, subject=LearntSubject("<nobody>", class_noun="hat"))
    assert "'<nobody>' has no embedding of its own" in caplog.text
    dog = LearntSubject("red hat", class_noun="hat", adapter="dog")
    pipe.fuse_lora(adapter_names=["dog"])
    with pytest.raises(ValueError, match="The adapter 'dog' is fused into the weights"):
        latents_of(pipe, subject=dog)


def test_a_lora_of_both_text_encoders_under_off_loading():
    accelerate = pytest.importorskip("accelerate")
    pipe = build(with_promptnet=False)
    pipe.load_lora_weights(make_xl_lora(), adapter_name="dog")
    dog = LearntSubject("red hat", class_noun="hat", adapter="dog")
    expected = latents_of(pipe, subject=dog)
    for component in ("text_encoder", "text_encoder_2", "unet"):
        accelerate.cpu_offload(getattr(pipe, component), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(latents_of(pipe, subject=dog), expected)
