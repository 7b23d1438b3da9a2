"""IP-Adapters: the rows of S* read their picture. On Stable Diffusion and on XL, against diffusers' own pipelines."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from calls import CLOSE, PROMPT, latents_of, picture, relative, seeded
from concepts import photo
from ip_adapters import IMAGE_WIDTH, load_ip_adapter, make_tower
from profusion_pipeline.customization.customize import customize
from profusion_pipeline.method.base_hash import pipeline_hash
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from tiny import make_components
from tiny_xl import make_xl_components

pytestmark = pytest.mark.numeric

WORDS = dict(words="red hat", class_noun="hat")
SAID = PROMPT.replace("S*", "red hat")
ALONE = dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0)
KINDS = {
    "sd": (ProFusionPipeline, make_components, StableDiffusionPipeline),
    "xl": (ProFusionXLPipeline, make_xl_components, StableDiffusionXLPipeline),
}
both = pytest.mark.parametrize("kind", KINDS)


def build(kind="sd", **overrides):
    cls, make, _ = KINDS[kind]
    pipe = cls(**make(**{"image_encoder": make_tower()} | overrides))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_latents(pipe, kind, prompt=SAID, guidance_scale=1.0, **settings):
    ours = ("promptnet", "controlnet")
    cls, parts = KINDS[kind][2], {name: one for name, one in pipe.components.items() if name not in ours}
    extra = dict(requires_safety_checker=False) if kind == "sd" else {}
    base = cls(**parts, **extra)
    base.set_progress_bar_config(disable=True)
    defaults = dict(num_inference_steps=3, output_type="latent", generator=seeded(), guidance_scale=guidance_scale)
    return base(prompt, **defaults | settings).images


@both
def test_alone_it_is_diffusers_with_that_picture_to_the_bit(kind):
    pipe = build(kind)
    load_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(0.7)
    subject = LearntSubject(**WORDS, ip_adapter_image=picture())
    ours = latents_of(pipe, subject=subject, **ALONE)
    assert torch.equal(ours, diffusers_latents(pipe, kind, ip_adapter_image=picture()))
    assert relative(ours, latents_of(pipe, subject=LearntSubject(**WORDS), **ALONE)) > 1e-3


@both
def test_on_all_rows_it_is_diffusers_guidance(kind):
    pipe = build(kind)
    load_ip_adapter(pipe)
    subject = LearntSubject(**WORDS, ip_adapter_image=picture())
    settings = dict(guidance_scale=4.0, class_guidance_scale=0.0, num_fusion_steps=0, base_guidance=False)
    theirs = diffusers_latents(pipe, kind, guidance_scale=4.0, ip_adapter_image=picture())
    assert relative(latents_of(pipe, subject=subject, **settings), theirs) < CLOSE


@both
def test_null_and_class_read_nothing(kind):
    pipe = build(kind)
    subject = LearntSubject(**WORDS, ip_adapter_image_embeds=[torch.randn(1, 1, IMAGE_WIDTH, generator=seeded(3))])
    plain, base = (dict(subject=one) for one in (LearntSubject(**WORDS), subject))
    without_s = dict(guidance_scale=0.0, num_fusion_steps=0, class_guidance_scale=4.0)
    of_class, with_words = latents_of(pipe, **plain, **without_s), latents_of(pipe, **plain)
    photo_alone = latents_of(pipe, image=picture())
    load_ip_adapter(pipe)
    assert torch.equal(latents_of(pipe, **base, **without_s), of_class)
    # A call without pictures is what it was, with words or PromptNet's photos.
    assert torch.equal(latents_of(pipe, **plain), with_words)
    assert torch.equal(latents_of(pipe, image=picture()), photo_alone)
    drawn = latents_of(pipe, **base)
    assert relative(drawn, with_words) > 1e-3
    pipe.set_ip_adapter_scale(0.0)
    assert torch.equal(latents_of(pipe, **base), with_words)


def test_guidance_is_the_formula():
    """One step of Mixed guidance, of predictions that the UNet makes one at a time."""
    pipe = build()
    load_ip_adapter(pipe)
    embeds = torch.randn(1, 2, IMAGE_WIDTH, generator=seeded(3))
    subject = LearntSubject(**WORDS, ip_adapter_image_embeds=[embeds])
    seen = []
    hook = pipe.unet.register_forward_hook(lambda *args: seen.append(args[-1][0]))
    latents_of(pipe, subject=subject, num_inference_steps=1, num_fusion_steps=0)
    hook.remove()
    ((null, of_class, of_subject),) = seen
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    states = pipe.encode_prompt([SAID, PROMPT.replace("S*", "hat"), ""])[0]
    told = dict(added_cond_kwargs={"image_embeds": [embeds]})
    t = pipe.scheduler.timesteps[0]
    with torch.no_grad():
        expected = pipe.unet(noise, t, states[:1], **told).sample[0]
    assert relative(of_subject, expected) < CLOSE
    pipe.unload_ip_adapter()
    with torch.no_grad():
        for ours, number in ((of_class, 1), (null, 2)):
            assert relative(ours, pipe.unet(noise, t, states[number : number + 1]).sample[0]) < CLOSE


@both
def test_a_batch_of_kinds_is_one_by_one(kind):
    pipe = build(kind)
    load_ip_adapter(pipe)
    hats = [LearntSubject(**WORDS, ip_adapter_image=picture(seed)) for seed in (0, 1)]
    subjects = [hats[0], LearntSubject(**WORDS), pipe.encode_subject(picture(2)), hats[1]]
    batch = latents_of(
        pipe,
        [PROMPT] * 4,
        subject=subjects,
        class_noun=["hat", "hat", "man", "hat"],
        generator=[*map(seeded, range(4))],
    )
    for i, subject in enumerate(subjects):
        noun = "man" if i == 2 else "hat"
        one = latents_of(pipe, subject=subject, class_noun=noun, generator=[seeded(i)])
        assert relative(batch[i : i + 1], one) < CLOSE


def test_rows_and_calls_are_those_without():
    pipe = build()
    load_ip_adapter(pipe)
    rows = []
    pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    latents_of(pipe, subject=LearntSubject(**WORDS, ip_adapter_image=picture()), num_inference_steps=2)
    assert rows == [2, 3] * 2


@both
def test_unloading_leaves_what_promptnet_needs(kind):
    pipe = build(kind)
    before, tower = latents_of(pipe, image=picture()), pipe.image_encoder
    load_ip_adapter(pipe)
    assert pipeline_hash(pipe) == pipeline_hash(build(kind))  # concepts still fit
    pipe.unload_ip_adapter()
    assert pipe.image_encoder is tower and pipe.feature_extractor is not None
    assert torch.equal(latents_of(pipe, image=picture()), before)


def test_without_promptnet_its_tower_goes_with_it():
    pipe = build(promptnet=None)
    load_ip_adapter(pipe)
    latents_of(pipe, subject=LearntSubject(**WORDS, ip_adapter_image=picture()))
    pipe.unload_ip_adapter()
    assert pipe.image_encoder is None


@both
def test_what_is_missing_is_told(kind):
    pipe, hat = build(kind), LearntSubject(**WORDS, ip_adapter_image=picture())
    with pytest.raises(ValueError, match="`ip_adapter_image` of a LearntSubject needs an IP-Adapter: `pipe.load_ip"):
        latents_of(pipe, subject=hat)
    load_ip_adapter(pipe)
    of_two = LearntSubject(**WORDS, ip_adapter_image=[picture(), picture()])
    with pytest.raises(ValueError, match="must have an entry for each of 1 loaded IP-Adapters, got 2"):
        latents_of(pipe, subject=of_two)
    more = LearntSubject(**WORDS, ip_adapter_image=[[picture(), picture()]])
    with pytest.raises(ValueError, match=r"as many pictures for an IP-Adapter each, got \[1\] and \[2\]"):
        latents_of(pipe, [PROMPT] * 2, subject=[hat, more])
    narrow = LearntSubject(**WORDS, ip_adapter_image_embeds=[torch.zeros(1, 1, 5)])
    with pytest.raises(ValueError, match=r"the shape \[1 or 2, n, ..., 12\], got \[1, 1, 5\]"):
        latents_of(pipe, subject=narrow)
    with pytest.raises(ValueError, match="can't be saved while its UNet holds an IP-Adapter"):
        pipe.save_pretrained("nowhere")
    with pytest.raises(ValueError, match="Customising needs a UNet without IP-Adapters"):
        customize(pipe, photo())
    pipe.register_modules(image_encoder=make_components()["image_encoder"])
    with pytest.raises(ValueError, match="an image encoder with a projection, which the CLIPVisionModel .* has not"):
        latents_of(pipe, subject=hat)
    pipe.register_modules(image_encoder=None, promptnet=None)
    with pytest.raises(ValueError, match="`ip_adapter_image` needs an image encoder, this pipeline has none: give"):
        latents_of(pipe, subject=hat)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (dict(ip_adapter_image=picture(), ip_adapter_image_embeds=[torch.zeros(1, 1, 4)]), ValueError, "exclude each"),
        (dict(ip_adapter_image=picture(), unet=torch.nn.Linear(1, 1)), ValueError, "`unet` and a picture for an IP-A"),
        (dict(ip_adapter_image="nowhere.png"), ValueError, "nowhere.png"),
        (dict(ip_adapter_image_embeds=torch.zeros(1)), TypeError, "must be a list of tensors, one for each IP-Adapter"),
    ],
)
def test_what_is_no_picture(given, error, sentence):
    with pytest.raises(error, match=sentence):
        LearntSubject(**WORDS, **given)
