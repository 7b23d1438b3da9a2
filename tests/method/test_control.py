"""ControlNet in a call: as diffusers computes it where diffusers has the same, row by row elsewhere."""

import numpy as np
import pytest
import torch
from diffusers import (
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from calls import CLOSE, PROMPT, build, latents_of, picture, relative, seeded
from concepts import learn, merged
from ip_adapters import load_ip_adapter, make_tower
from loras import write_lora
from profusion_pipeline.method import control
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from tiny import PICTURE_SIDE, make_controlnet, make_unet
from tiny_xl import make_xl_components

pytestmark = pytest.mark.numeric

SIZE = (PICTURE_SIDE, PICTURE_SIDE)
EDGES, DEPTH = picture(5, SIZE), picture(6, SIZE)  # of the size drawn: diffusers stretches where we crop


@pytest.fixture
def pipe():
    return with_nets(build())


def with_nets(pipe, count=1, **settings):
    nets = [make_controlnet(pipe.unet, seed, **settings) for seed in range(1, count + 1)]
    pipe.register_modules(controlnet=nets[0] if count == 1 else MultiControlNetModel(nets))
    return pipe


def base_latents(pipe, prompt, kind=StableDiffusionControlNetPipeline, **settings):
    own = dict(safety_checker=None, feature_extractor=None, image_encoder=None)
    if kind is StableDiffusionXLControlNetPipeline:
        own = dict(feature_extractor=None, image_encoder=None, add_watermarker=False)
    names = kind._get_signature_keys(kind)[0]
    base = kind(**{name: pipe.components[name] for name in names if name in pipe.components} | own)
    base.set_progress_bar_config(disable=True)
    return base(prompt, num_inference_steps=3, output_type="latent", generator=seeded(), **settings).images


WITHOUT_SUBJECT = dict(guidance_scale=0.0, num_fusion_steps=0, class_guidance_scale=5.0)


@pytest.mark.parametrize("settings", [dict(), dict(controlnet_conditioning_scale=0.7, control_guidance_end=0.7)])
@pytest.mark.parametrize("prompts", [["a photo of {}"], ["a photo of {}", "{} on the beach"]])
def test_without_s_it_is_the_pipeline_of_diffusers_to_the_bit(pipe, prompts, settings):
    expected = base_latents(pipe, [p.format("person") for p in prompts], image=EDGES, guidance_scale=5.0, **settings)
    ours = latents_of(pipe, [p.format("S*") for p in prompts], control_image=EDGES, **WITHOUT_SUBJECT, **settings)
    assert torch.equal(ours, expected)
    assert relative(ours, latents_of(pipe, [p.format("S*") for p in prompts], **WITHOUT_SUBJECT)) > 0.01


@pytest.mark.parametrize("nested", [False, True])
def test_several_are_those_of_diffusers_to_the_bit(nested):
    pipe = with_nets(build(), 2)
    settings = dict(controlnet_conditioning_scale=[1.0, 0.5], control_guidance_start=[0.0, 0.3])
    images = [[EDGES, DEPTH], [DEPTH, EDGES]] if nested else [EDGES, DEPTH]
    expected = base_latents(
        pipe, ["person", "dog"], image=images, guidance_scale=5.0, control_guidance_end=[0.7, 1.0], **settings
    )
    settings |= dict(control_guidance_end=[0.7, 1.0], class_noun=["person", "dog"])
    assert torch.equal(latents_of(pipe, ["S*", "S*"], control_image=images, **WITHOUT_SUBJECT, **settings), expected)


def test_one_that_pools_what_it_reads_is_silent_to_rows_without_text():
    pipe = with_nets(build(), global_pool_conditions=True)
    expected = base_latents(pipe, "person on the beach", image=EDGES, guidance_scale=5.0)
    ours = latents_of(pipe, "S* on the beach", control_image=EDGES, **WITHOUT_SUBJECT)
    assert relative(ours, expected) < CLOSE


def test_of_xl_without_s_it_is_the_pipeline_of_diffusers_to_the_bit():
    pipe = with_nets(ProFusionXLPipeline(**make_xl_components(with_promptnet=False), add_watermarker=False))
    pipe.set_progress_bar_config(disable=True)
    expected = base_latents(
        pipe, "a person", kind=StableDiffusionXLControlNetPipeline, image=EDGES, guidance_scale=5.0, height=16, width=16
    )
    ours = latents_of(pipe, "a S*", control_image=EDGES, **WITHOUT_SUBJECT)
    assert torch.equal(ours, expected)


def test_scale_0_and_no_picture_are_the_call_without(pipe):
    plain = build()
    calls = count(pipe.controlnet)
    expected = latents_of(plain, image=picture())
    for settings in (dict(controlnet_conditioning_scale=0.0, control_image=EDGES), dict()):
        assert torch.equal(latents_of(pipe, image=picture(), **settings), expected)
    assert not calls


def count(controlnet):
    calls = []
    controlnet.register_forward_pre_hook(
        lambda module, args, given: calls.append((len(args[0]), len(given["encoder_hidden_states"]))), with_kwargs=True
    )
    return calls


def test_it_is_called_once_for_all_rows_of_a_prediction(pipe):
    calls, rows = count(pipe.controlnet), []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    latents_of(pipe, [PROMPT, "S*"], image=[picture(), [picture(1), picture(2)]], control_image=EDGES)
    assert [own for own, _ in calls] == [texts for _, texts in calls] == rows == [5, 7] * 3
    calls.clear(), rows.clear()
    settings = dict(num_inference_steps=4, control_guidance_start=0.25, control_guidance_end=0.75)
    latents_of(pipe, image=picture(), control_image=EDGES, **settings)
    assert [own for own, _ in calls] == [2, 3] * 2 and len(rows) == 8


def test_a_batch_of_all_kinds_is_one_by_one(pipe, tmp_path):
    """Concept, LoRA and photo, each row with its own text and each picture with its own edges."""
    pipe.load_lora_weights(write_lora(tmp_path), adapter_name="hat")
    pipe.load_concept(learn()["ada"], name="ada")
    subjects = [LearntSubject("red hat", class_noun="hat", adapter="hat"), "ada", pipe.encode_subject(picture())]
    prompts, edges = [PROMPT, "S* in red", "a S*"], [EDGES, DEPTH, picture(7, SIZE)]
    together = latents_of(pipe, prompts, subject=subjects, control_image=edges, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        pipe.disable_lora()
        alone = latents_of(pipe, prompts[i], subject=subjects[i], control_image=edges[i], generator=seeded(i))
        assert relative(together[i : i + 1], alone) < 10 * CLOSE, i
        assert relative(latents_of(pipe, prompts[i], subject=subjects[i], generator=seeded(i)), alone) > 0.01


def test_beside_an_ip_adapter():
    """Scale 0 is the call with the picture prompt alone; else both count, and the ControlNet reads no picture."""
    pipe, seen = with_nets(build(image_encoder=make_tower())), []
    load_ip_adapter(pipe)
    pipe.controlnet.register_forward_pre_hook(
        lambda module, args, given: seen.append(given.get("added_cond_kwargs")), with_kwargs=True
    )
    words, settings = dict(words="red hat", class_noun="hat"), dict(control_image=EDGES)
    subject = LearntSubject(**words, ip_adapter_image=picture())
    alone = latents_of(pipe, subject=subject)
    assert torch.equal(latents_of(pipe, subject=subject, controlnet_conditioning_scale=0.0, **settings), alone)
    assert not seen
    both = latents_of(pipe, subject=subject, **settings)
    assert both.isfinite().all() and len(seen) == 6 and not any(seen)
    assert relative(both, alone) > 0.01
    assert relative(both, latents_of(pipe, subject=LearntSubject(**words), **settings)) > 1e-3
    pipe.set_ip_adapter_scale(0.0)
    expected = latents_of(pipe, subject=LearntSubject(**words), **settings)
    assert torch.equal(latents_of(pipe, subject=subject, **settings), expected)


@pytest.mark.parametrize("name", ["ada", "full"])
def test_a_concept_leaves_the_controlnet_as_it_is(pipe, name):
    """Against weights that were changed by hand, with the same ControlNet beside them."""
    concept, settings = learn()[name], dict(control_image=EDGES, class_noun="man")
    by_hand = merged(build(), concept)
    by_hand.register_modules(controlnet=pipe.controlnet)
    expected = latents_of(by_hand, subject=concept, **settings)
    pipe.load_concept(concept)
    ours = latents_of(pipe, base_guidance=False, **settings)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert relative(ours, latents_of(pipe, base_guidance=False, class_noun="man")) > 0.01


def read(controlnet=None, control_image=EDGES, num_prompts=1, scale=1.0, start=0.0, end=1.0):
    components = build().components | {"controlnet": controlnet}
    return control.read(components, control_image, num_prompts, scale, start, end)


REFUSED = [
    (dict(), ValueError, "This pipeline has no `controlnet`, which reads `control_image`"),
    (dict(nets=1, control_image=3), TypeError, "`control_image` must be a PIL image"),
    (dict(nets=1, control_image=[EDGES] * 2), ValueError, "`control_image` must have an entry for each of 1 prompts"),
    (dict(nets=2), TypeError, "`control_image` must be a list with a picture for each of 2 ControlNets, got one"),
    (dict(nets=2, control_image=[EDGES]), ValueError, "`control_image` must have a picture for each of 2 ControlNets"),
    (dict(nets=2, control_image=[[EDGES, DEPTH], 3], num_prompts=2), ValueError, "each of 2 ControlNets, got 3"),
    (dict(scale=-1.0), ValueError, "`controlnet_conditioning_scale` must be a finite number of at least 0, got -1.0"),
    (dict(scale="1"), TypeError, "`controlnet_conditioning_scale` must be a number, got '1'"),
    (dict(nets=2, scale=[1.0]), ValueError, "`controlnet_conditioning_scale` must have an entry for each of 2"),
    (dict(end=1.5), ValueError, "`control_guidance_end` must be a finite number of 0 to 1, got 1.5"),
    (dict(start=0.5, end=0.5), ValueError, "`control_guidance_start` must be less than `control_guidance_end`"),
]


@pytest.mark.parametrize("settings, kind, message", REFUSED)
def test_what_can_not_be_read(settings, kind, message):
    one, nets = make_controlnet(make_unet()), settings.get("nets", 0)
    given = {name: value for name, value in settings.items() if name != "nets"}
    with pytest.raises(kind, match=message):
        read([None, one, MultiControlNetModel([one, one])][nets], **given)


UNFIT = [
    (dict(cross_attention_dim=16), "`controlnet` must fit `unet`, whose `cross_attention_dim` is 32, got one with 16"),
    (dict(block_out_channels=(4, 8)), r"whose `block_out_channels` is \(8, 16\), got one with \(4, 8\)"),
]


@pytest.mark.parametrize("settings, message", UNFIT)
def test_one_for_another_base_model_is_refused(settings, message):
    pipe = build()
    with pytest.raises(ValueError, match=message):
        control.check_fits(make_controlnet(make_unet(**settings)), pipe.components)


def test_one_for_other_pictures_or_of_another_kind_is_refused():
    pipe = build()
    with pytest.raises(ValueError, match="3 channels, 2 times as large as the latents, got one that .* 3 .* 8 times"):
        net = make_controlnet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
        control.check_fits(net, pipe.components)
    with pytest.raises(TypeError, match="`controlnet` must be of the pipeline's dtype torch.float32, got "):
        control.check_fits(make_controlnet(pipe.unet).half(), pipe.components)
    with pytest.raises(TypeError, match="`controlnet` must be of ControlNetModel, or several of these, got UNet2D"):
        control.check_fits(pipe.unet, pipe.components)


@pytest.mark.parametrize("count", [1, 2])
def test_it_is_saved_and_loaded_with_the_pipeline(count, tmp_path):
    pipe = with_nets(build(), count)
    pipe.save_pretrained(tmp_path / "saved")
    again = ProFusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    settings = dict(image=picture(), control_image=EDGES if count == 1 else [EDGES, DEPTH])
    assert torch.equal(latents_of(again, **settings), latents_of(pipe, **settings))
    assert again.clone().controlnet is again.controlnet


def test_pipelines_pass_it_on(pipe):
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "controlnet")
    others = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    base = StableDiffusionControlNetPipeline(**{name: pipe.components[name] for name in names}, **others)
    ours = ProFusionPipeline.from_pipe(base)
    assert ours.controlnet is base.controlnet and ours.promptnet is None
    assert StableDiffusionControlNetPipeline.from_pipe(ours).controlnet is base.controlnet


def test_a_list_is_several():
    pipe = ProFusionPipeline(**build().components | {"controlnet": [make_controlnet(make_unet()) for _ in range(2)]})
    assert isinstance(pipe.controlnet, MultiControlNetModel)


def test_pictures_of_other_sizes_are_cropped_as_references_are(pipe):
    wide = Image.new("RGB", (64, 32))
    wide.paste(EDGES.resize((32, 32), Image.Resampling.NEAREST), (16, 0))
    inputs = read(pipe.controlnet, [wide, np.asarray(EDGES)], num_prompts=2)
    planned = control.plan(inputs, SIZE, 4, 3, torch.zeros(1))
    assert len(planned) == 3 and planned[0].pictures[0].shape == (4, 3, *SIZE)
    assert relative(planned[0].pictures[0][0], planned[0].pictures[0][2]) < 0.5
    assert torch.equal(planned[0].pictures[0][2], torch.from_numpy(np.array(EDGES)).permute(2, 0, 1) / 255)
