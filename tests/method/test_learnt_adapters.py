"""LoRAs that compute the rows of S* only: against diffusers, which knows no rows, and against formulas by hand."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading

from calls import CLOSE, build, latents_of, needs_group_offloading, picture, relative, seeded
from concepts import learn
from ip_adapters import load_ip_adapter
from loras import write_kohya, write_lora
from profusion_pipeline.method.learnt_subject import LearntSubject
from tiny import make_components, make_unet

pytest.importorskip("peft")
pytestmark = pytest.mark.numeric
PROMPT, TEXT, CLASS_TEXT = (
    "a photo of S* on the beach",
    "a photo of sks hat on the beach",
    "a photo of hat on the beach",
)
ALONE = dict(guidance_scale=5.0, class_guidance_scale=0.0, num_fusion_steps=0)
ONE_STEP = dict(num_inference_steps=1, num_fusion_steps=0)


def hat(adapter="hat", scale=1.0) -> LearntSubject:
    return LearntSubject("sks hat", class_noun="hat", adapter=adapter, scale=scale)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("loras")
    both = write_lora(folder / "hat", 1)
    return {
        "hat": both,
        "kohya": write_kohya(folder, both),
        "style": write_lora(folder / "style", 2, rank=3, parts=("unet",)),
        "conv": write_lora(
            folder / "conv", 3, rank=1, parts=("unet",), places={"unet": ["conv1", "to_q", "proj_in", "ff.net.2"]}
        ),
    }


def with_loras(files, *names, **overrides):
    pipe = build(**{"promptnet": None} | overrides)
    for name in names:
        pipe.load_lora_weights(str(files[name]), adapter_name=name)
    return pipe


def diffusers_latents(pipe, prompt=TEXT, **settings):
    base = StableDiffusionPipeline.from_pipe(pipe)
    base.set_progress_bar_config(disable=True)
    defaults = dict(num_inference_steps=3, output_type="latent", generator=seeded(), guidance_scale=5.0)
    return base(prompt, **defaults | settings).images


@pytest.mark.parametrize("name", ["hat", "kohya", "conv"])
def test_on_all_rows_it_is_diffusers_with_that_lora_to_the_bit(files, name):
    """The file as the example script writes it, in kohya's format, and with convolutions of rank one."""
    pipe = with_loras(files, name)
    expected = diffusers_latents(pipe)
    ours = latents_of(pipe, PROMPT, subject=hat(name), base_guidance=False, **ALONE)
    assert torch.equal(ours, expected)
    assert (expected - diffusers_latents(with_loras(files))).abs().max() > 0.01
    assert (name in getattr(pipe.text_encoder, "peft_config", {})) == (name != "conv")
    if name == "kohya":
        assert torch.equal(expected, diffusers_latents(with_loras(files, "hat")))


def test_it_computes_the_rows_of_s_only(files):
    """One step of DDIM is affine in the prediction: every row's share can be had alone."""
    pipe, base = with_loras(files, "hat"), with_loras(files)
    alone = dict(num_inference_steps=1, guidance_scale=1.0)
    null, of_class = diffusers_latents(base, "", **alone), diffusers_latents(base, CLASS_TEXT, **alone)
    of_words = diffusers_latents(pipe, TEXT, **alone)
    scales = dict(guidance_scale=3.0, class_guidance_scale=2.0)
    expected = null + 3 * (of_words - null) + 2 * (of_class - null)
    ours = latents_of(pipe, PROMPT, subject=hat(), **scales, **ONE_STEP)
    assert relative(ours, expected) < 10 * CLOSE
    everywhere = latents_of(pipe, PROMPT, subject=hat(), base_guidance=False, **scales, **ONE_STEP)
    assert relative(everywhere, expected) > 100 * CLOSE
    # Whether the adapter is active, which loading makes it, or not.
    pipe.disable_lora()
    assert torch.equal(latents_of(pipe, PROMPT, subject=hat(), **scales, **ONE_STEP), ours)


def test_scale_0_is_the_base_and_so_is_a_subject_without_weight(files):
    pipe, base = with_loras(files, "hat"), with_loras(files)
    assert torch.equal(latents_of(pipe, PROMPT, subject=hat(scale=0)), latents_of(base, PROMPT, subject=hat(None)))
    settings = dict(guidance_scale=0.0, class_guidance_scale=5.0, num_fusion_steps=0)
    ours = latents_of(pipe, PROMPT, subject=hat(), **settings)
    assert torch.equal(ours, diffusers_latents(base, CLASS_TEXT))


def test_scales_are_diffusers_weights(files):
    pipe = with_loras(files, "hat", "style")
    pipe.set_adapters(["hat", "style"], [0.7, -0.3])
    expected = diffusers_latents(pipe)
    pipe.set_adapters(["hat", "style"], [1.0, 1.0])
    subject = hat(["hat", "style"], [0.7, -0.3])
    ours = latents_of(pipe, PROMPT, subject=subject, base_guidance=False, **ALONE)
    assert relative(ours, expected) < CLOSE
    # The call's scale weighs adapters that are active, which diffusers does, and those that are not.
    pipe.set_adapters(["hat"], [1.0])
    scaled = dict(cross_attention_kwargs={"scale": 0.5})
    halved = latents_of(pipe, PROMPT, subject=subject, base_guidance=False, **ALONE, **scaled)
    expected = latents_of(pipe, PROMPT, subject=hat(["hat", "style"], [0.35, -0.15]), base_guidance=False, **ALONE)
    assert relative(halved, expected) < CLOSE


def test_beside_a_style_that_is_active_for_all_rows(files):
    styled = with_loras(files, "style")
    alone = dict(num_inference_steps=1, guidance_scale=1.0)
    null, of_class = diffusers_latents(styled, "", **alone), diffusers_latents(styled, CLASS_TEXT, **alone)
    pipe = with_loras(files, "hat", "style")
    pipe.set_adapters(["hat", "style"])
    of_words = diffusers_latents(pipe, TEXT, **alone)
    expected = null + 3 * (of_words - null) + 2 * (of_class - null)
    scales = dict(guidance_scale=3.0, class_guidance_scale=2.0)
    ours = latents_of(pipe, PROMPT, subject=hat(), **scales, **ONE_STEP)
    assert relative(ours, expected) < 10 * CLOSE
    pipe.set_adapters(["style"])
    assert torch.equal(latents_of(pipe, PROMPT, subject=hat(), **scales, **ONE_STEP), ours)
    # A fused style stays where it is.
    pipe.fuse_lora(adapter_names=["style"])
    fused = latents_of(pipe, PROMPT, subject=hat(), **scales, **ONE_STEP)
    assert relative(fused, expected) < 10 * CLOSE


def test_a_batch_of_all_kinds_is_one_by_one(files):
    pipe = with_loras(files, "hat", "style", **{"promptnet": make_components()["promptnet"]})
    pipe.load_concept(learn()["ada"], name="ada")
    bob = LearntSubject("blue dog", class_noun="dog", adapter="style", scale=0.5)
    subjects = [hat(), bob, "ada", pipe.encode_subject(picture()), LearntSubject("red", class_noun="blue")]
    prompts = [PROMPT, "S* in red", "a S*", "S* on a dog", "the S*"]
    together = latents_of(pipe, prompts, subject=subjects, generator=[seeded(i) for i in range(5)])
    for number, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
        pipe.disable_lora()  # an active adapter that the call doesn't name would compute all rows
        alone = latents_of(pipe, prompt, subject=subject, generator=seeded(number))
        assert relative(together[number : number + 1], alone) < 10 * CLOSE, number
    assert torch.equal(latents_of(pipe, "a S*", subject="ada"), latents_of(pipe, "a S*", concept="ada"))


def test_threads_around_the_same_models(files):
    pipe = with_loras(files, "hat", "style")
    jobs = [(hat(), 0), (hat("style"), 1), (hat(None), 2), (hat(["hat", "style"]), 3)]
    pipe.disable_lora()
    pipes = [pipe.clone() for _ in jobs]

    def draw(job, pipe=pipe):
        return latents_of(pipe, PROMPT, subject=job[0], generator=seeded(job[1]))

    one_by_one = [draw(job) for job in jobs]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(draw, jobs, pipes))
    assert all(torch.equal(one, other) for one, other in zip(one_by_one, at_once, strict=True))


def test_long_prompts(files):
    pipe = with_loras(files, "hat")
    prompt = "a red hat " * 30 + "S*"
    embeds, negative = pipe.encode_prompt(prompt.replace("S*", "sks hat"), long_prompts=True)
    expected = diffusers_latents(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    ours = latents_of(pipe, prompt, subject=hat(), base_guidance=False, long_prompts=True, **ALONE)
    assert relative(ours, expected) < CLOSE


def test_half_precision(files):
    pipe = with_loras(files, "hat").to(torch.bfloat16)
    assert latents_of(pipe, PROMPT, subject=hat()).isfinite().all()


@needs_group_offloading
def test_under_off_loading(files):
    pipe = with_loras(files, "hat")
    expected = latents_of(pipe, PROMPT, subject=hat())
    accelerate = pytest.importorskip("accelerate")
    for component in ("text_encoder", "unet"):
        accelerate.cpu_offload(getattr(pipe, component), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(latents_of(pipe, PROMPT, subject=hat()), expected)
    pipe = with_loras(files, "hat")
    for component in ("text_encoder", "unet"):
        apply_group_offloading(getattr(pipe, component), torch.device("cpu"), offload_type="leaf_level")
    assert relative(latents_of(pipe, PROMPT, subject=hat()), expected) < CLOSE


# ------------------------------------------------------------------------------------------- whole UNets


def tuned_unet(seed: int = 1):
    return make_components(seed)["unet"]


def test_a_whole_unet_is_diffusers_with_that_unet_to_the_bit(files):
    subject = LearntSubject("sks hat", class_noun="hat", unet=tuned_unet())
    ours = latents_of(with_loras(files), PROMPT, subject=subject, base_guidance=False, **ALONE)
    assert torch.equal(ours, diffusers_latents(with_loras(files, unet=subject.unet)))


def test_a_whole_unet_computes_the_rows_of_s_only(files):
    base, subject = with_loras(files), LearntSubject("sks hat", class_noun="hat", unet=tuned_unet())
    alone = dict(num_inference_steps=1, guidance_scale=1.0)
    null, of_class = diffusers_latents(base, "", **alone), diffusers_latents(base, CLASS_TEXT, **alone)
    of_words = diffusers_latents(with_loras(files, unet=subject.unet), TEXT, **alone)
    expected = null + 3 * (of_words - null) + 2 * (of_class - null)
    ours = latents_of(base, PROMPT, subject=subject, guidance_scale=3.0, class_guidance_scale=2.0, **ONE_STEP)
    assert relative(ours, expected) < 10 * CLOSE


def test_a_whole_unet_beside_loras_in_a_batch(files):
    pipe = with_loras(files, "hat")
    subjects = [LearntSubject("sks hat", class_noun="hat", unet=tuned_unet()), hat(), hat(None)]
    together = latents_of(pipe, [PROMPT] * 3, subject=subjects, generator=[seeded(i) for i in range(3)])
    pipe.disable_lora()
    for number, subject in enumerate(subjects):
        alone = latents_of(pipe, PROMPT, subject=subject, generator=seeded(number))
        assert relative(together[number : number + 1], alone) < 10 * CLOSE


def test_a_unet_for_another_base(files):
    subject = LearntSubject("sks hat", class_noun="hat", unet=make_unet(cross_attention_dim=16))
    with pytest.raises(
        ValueError, match="must be a UNet like this pipeline's, whose `cross_attention_dim` is 32, got U"
    ):
        latents_of(with_loras(files), PROMPT, subject=subject)
    with pytest.raises(ValueError, match="`adapter` and `unet` of a LearntSubject exclude each other"):
        LearntSubject("sks", class_noun="dog", adapter="a", unet=subject.unet)


@pytest.mark.parametrize("beside", [False, True])
def test_a_unet_with_an_ip_adapter_of_its_own(beside):
    """It is refused, whether the pipeline has one too or not; the one of the pipeline may have it alone."""
    pipe, other = build(promptnet=None), build(promptnet=None, unet=tuned_unet())
    subject = LearntSubject("sks hat", class_noun="hat", unet=other.unet)
    expected = latents_of(pipe, PROMPT, subject=subject)
    load_ip_adapter(other)
    if beside:
        load_ip_adapter(pipe)
    with pytest.raises(ValueError, match="`unet` of a LearntSubject must be one without IP-Adapters, .* got one with"):
        latents_of(pipe, PROMPT, subject=subject)
    other.unload_ip_adapter()
    assert torch.equal(latents_of(pipe, PROMPT, subject=subject), expected)


# ------------------------------------------------------------------------------------------------------ bad input


def test_an_adapter_that_is_not_loaded(files):
    pipe = with_loras(files, "hat")
    sentence = r"`adapter` of a LearntSubject must name one that `load_lora_weights` has loaded \('hat'\), got 'cat'"
    with pytest.raises(ValueError, match=sentence):
        latents_of(pipe, PROMPT, subject=hat("cat"))
    with pytest.raises(ValueError, match=r"has loaded \(none\), got 'hat'\. One that was fused and unloaded"):
        latents_of(with_loras(files), PROMPT, subject=hat())


def test_a_fused_adapter(files):
    pipe = with_loras(files, "hat")
    pipe.fuse_lora()
    with pytest.raises(
        ValueError, match="The adapter 'hat' is fused into the weights, .* `pipe.unfuse_lora\\(\\)` first"
    ):
        latents_of(pipe, PROMPT, subject=hat())
    pipe.unfuse_lora()
    latents_of(pipe, PROMPT, subject=hat(), **ONE_STEP)


def test_fused_projections(files):
    pipe = with_loras(files, "hat")
    pipe.fuse_qkv_projections()
    with pytest.raises(
        ValueError, match="can't change to_q, to_k and to_v of UNet2DConditionModel, which has them fused"
    ):
        latents_of(pipe, PROMPT, subject=hat())


def test_a_dora(tmp_path):
    pipe = with_loras({"dora": write_lora(tmp_path, use_dora=True, parts=("unet",))}, "dora")
    with pytest.raises(ValueError, match="The adapter 'dora' is a DoRA, which scales whole weights"):
        latents_of(pipe, PROMPT, subject=hat("dora"))


def test_a_lora_for_another_base(files):
    wider = build(promptnet=None, unet=make_unet(block_out_channels=(16, 32)))
    with pytest.raises(ValueError, match="The LoRA must be made for a base model like this one, got .* size mismatch"):
        wider.load_lora_weights(str(files["style"]), adapter_name="style")
    plain = latents_of(wider, PROMPT, subject=hat(None))
    assert plain.isfinite().all()
    with pytest.raises(ValueError, match="you must specify a `weight_name`"):  # what diffusers says stays as it is
        wider.load_lora_weights("nowhere/at-all", local_files_only=True)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (dict(adapter=3), TypeError, "`adapter` of a LearntSubject must be a name or a list of names, got 3"),
        (dict(adapter=[]), TypeError, r"must be a name or a list of names, got \[\]"),
        (dict(adapter="a", scale="1"), TypeError, "`scale` must be a number, got '1'"),
        (dict(adapter="a", scale=float("nan")), ValueError, "`scale` must be a finite number"),
        (dict(adapter=["a", "b"], scale=[1.0]), ValueError, "must have an entry for each of 2 adapters, got 1"),
    ],
)
def test_what_is_no_adapter(given, error, sentence):
    with pytest.raises(error, match=sentence):
        LearntSubject("sks", class_noun="dog", **given)
