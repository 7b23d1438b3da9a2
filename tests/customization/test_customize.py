import io
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

from concepts import QUICK, assert_same, everything, photo, sample, tiny_pipeline
from profusion_pipeline.customization.customize import customizing
from profusion_pipeline.customization.subject_pool import encode_pictures
from profusion_pipeline.method.base_hash import base_hash
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline

pytestmark = pytest.mark.numeric

MODES = pytest.mark.parametrize("mode", ["lora", "full"])


@MODES
def test_the_pipeline_is_left_as_it_was(pipe, mode):
    before, images = everything(pipe), sample(pipe, image=photo())
    concept = pipe.customize(photo(), QUICK, mode=mode)
    assert_same(before, everything(pipe))
    assert torch.equal(sample(pipe, image=photo()), images)
    assert any(change.any() for change in concept.changes.values())


def test_it_learns_in_a_handler_under_inference_mode(pipe):
    with torch.inference_mode():
        there = pipe.customize(photo(), QUICK).changes
    here = pipe.customize(photo(), QUICK).changes
    assert all(torch.equal(there[name], change) for name, change in here.items())


class Stop(Exception):
    pass


@MODES
@pytest.mark.parametrize("interruption", [Stop, KeyboardInterrupt, GeneratorExit])
def test_an_interruption_leaves_it_as_it_was(pipe, mode, interruption):
    before = everything(pipe)
    with pytest.raises(interruption):
        with customizing(pipe, photo(), QUICK.__class__(mode=mode, gradient_checkpointing=True)) as run:
            next(run.learn())
            raise interruption
    assert_same(before, everything(pipe))


def test_a_last_step_into_infinity_is_noticed(pipe):
    with pytest.raises(FloatingPointError, match="are finite in float16 after step 1 of 1, so nothing was made"):
        pipe.customize(photo(), QUICK, steps=1, learning_rate=1e30)


@MODES
def test_the_same_seed_gives_the_same_concept(pipe, mode):
    first, again = (pipe.customize(photo(), QUICK, mode=mode) for _ in range(2))
    other = pipe.customize(photo(), QUICK, mode=mode, seed=1)
    assert all(torch.equal(change, again.changes[name]) for name, change in first.changes.items())
    assert any(not torch.equal(change, other.changes[name]) for name, change in first.changes.items())


def test_what_a_concept_remembers(pipe):
    concept = pipe.customize(photo(), QUICK, rank=2)
    subject = pipe.encode_subject(photo())
    assert torch.equal(concept.latents, subject.latents.half())
    assert torch.equal(concept.image_states, subject.image_states.half())
    assert concept.base_hash == base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet)
    assert (concept.class_noun, concept.steps, concept.mode) == ("man", 3, "lora")
    assert concept.settings["rank"] == 2 and concept.settings["learning_rate"] == 0.02
    assert all(change.dtype == torch.float16 for change in concept.changes.values())


def test_a_concept_names_no_folder_of_this_machine(pipe, tmp_path):
    pipe.register_to_config(_name_or_path=str(tmp_path / "base"))
    (tmp_path / "base").mkdir()
    concept = pipe.customize(photo(), QUICK, steps=1, captioner=str(tmp_path / "base"))
    assert (concept.base_model, concept.settings["captioner"]) == ("base", "base")
    pipe.register_to_config(_name_or_path="owner/base")
    assert pipe.customize(photo(), QUICK, steps=1).base_model == "owner/base"


def test_stopping_early_and_looking_in_between(pipe):
    whole = pipe.customize(photo(), QUICK)
    concepts = {}
    with customizing(pipe, photo(), QUICK) as run:
        for record in run.learn():
            concepts[record.step] = run.concept()
            assert math.isfinite(record.loss) and record.seconds > 0
            if record.step == 2:
                break
        assert concepts[2].steps == 2 and list(concepts) == [1, 2]
        assert [record.step for record in run.learn()] == [3]  # it goes on where it stopped
        last = run.concept()
    assert all(torch.equal(change, whole.changes[name]) for name, change in last.changes.items())
    assert any(not torch.equal(change, concepts[2].changes[name]) for name, change in last.changes.items())


def test_pictures_are_encoded_before_the_first_step_only(pipe):
    calls = []
    hooks = [
        pipe.vae.encoder.register_forward_hook(lambda *_: calls.append("vae")),
        pipe.image_encoder.register_forward_hook(lambda *_: calls.append("image encoder")),
    ]
    with customizing(pipe, photo(), QUICK) as run:
        encoded = list(calls)
        steps = len(list(run.learn()))
    assert encoded and calls == encoded and steps == 3
    for hook in hooks:
        hook.remove()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device that is not the CPU")
def test_encoders_leave_the_device_while_learning(pipe):
    pipe.to("cuda")
    with customizing(pipe, photo(), QUICK) as run:
        next(run.learn())
        assert pipe.vae.device.type == pipe.image_encoder.device.type == "cpu"
        assert pipe.unet.device.type == "cuda"
    assert pipe.vae.device.type == pipe.image_encoder.device.type == "cuda"


def test_gradient_checkpointing_changes_nothing_but_memory(pipe):
    with customizing(pipe, photo(), QUICK) as run:
        plain = [record.loss for record in run.learn()]
    with customizing(pipe, photo(), QUICK.__class__(**vars(QUICK) | {"gradient_checkpointing": True})) as run:
        assert pipe.unet.is_gradient_checkpointing and pipe.promptnet.is_gradient_checkpointing
        checkpointed = [record.loss for record in run.learn()]
    np.testing.assert_allclose(checkpointed, plain, rtol=1e-5)
    assert not pipe.unet.is_gradient_checkpointing and not pipe.promptnet.is_gradient_checkpointing


def test_what_is_loaded_stays_loaded_meanwhile(pipe):
    pipe.load_concept(pipe.customize(photo(), QUICK))
    images = sample(pipe)
    concept = pipe.customize(photo(24), QUICK, mode="lora", seed=5)
    full = pipe.customize(photo(24), QUICK, mode="full", seed=5)
    assert torch.equal(sample(pipe), images)
    clean = tiny_pipeline()  # the loaded one had no part in what was learnt
    assert_same(concept.changes, clean.customize(photo(24), QUICK, mode="lora", seed=5).changes)
    assert_same(full.changes, clean.customize(photo(24), QUICK, mode="full", seed=5).changes)


def test_settings_go_before_the_config(pipe):
    concept = pipe.customize(photo(), QUICK, steps=1)
    assert concept.steps == 1 and concept.class_noun == "man"


# --- What is refused ------------------------------------------------------------------------------------------------


def test_a_base_without_promptnet(components):
    parts = {
        name: part for name, part in components.items() if name not in ("promptnet", "image_encoder", "controlnet")
    }
    base = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(ValueError, match="needs a pipeline with `promptnet`, this StableDiffusionPipeline has none"):
        with customizing(base, photo(), QUICK):
            pass


def test_a_pipeline_that_was_made_under_inference_mode():
    with torch.inference_mode():
        pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="UNet2DConditionModel was loaded under `torch.inference_mode\\(\\)`"):
        pipe.customize(photo(), QUICK)


def test_a_pipeline_without_image_encoder():
    with pytest.raises(ValueError, match="needs a pipeline with `image_encoder`, this ProFusionPipeline has none"):
        tiny_pipeline(image_encoder=None).customize(photo())


def test_a_scheduler_without_noise_levels():
    with pytest.raises(ValueError, match="needs a scheduler with alphas_cumprod, FlowMatchEulerDiscreteScheduler has"):
        tiny_pipeline(scheduler=FlowMatchEulerDiscreteScheduler()).customize(photo())


def test_a_mask_without_use(pipe):
    with pytest.raises(ValueError, match="`mask` is given, but `background` is 'keep', which paints nothing"):
        pipe.customize(photo(), mask=photo(), background="keep")


def test_a_prompt_without_placeholder(pipe):
    before = everything(pipe)
    with pytest.raises(ValueError, match="exactly once, got it 0 times in 'a photo'"):
        pipe.customize(photo(), prompt="a photo")
    assert_same(before, everything(pipe))


@MODES
def test_a_caption_is_learnt_with_and_remembered(pipe, mode):
    told = pipe.customize(photo(), QUICK, mode=mode, prompt="a photo of S*", caption="in a hat")
    meant = pipe.customize(photo(), QUICK, mode=mode, prompt="a photo of S*, in a hat")
    plain = pipe.customize(photo(), QUICK, mode=mode, prompt="a photo of S*")
    assert all(torch.equal(change, meant.changes[name]) for name, change in told.changes.items())
    assert any(not torch.equal(change, plain.changes[name]) for name, change in told.changes.items())
    assert (told.settings["caption"], plain.settings["caption"]) == ("in a hat", None)


def test_a_caption_with_a_second_placeholder(pipe):
    with pytest.raises(ValueError, match="exactly once, got it 2 times in"):
        pipe.customize(photo(), prompt="a photo of S*", caption="by S*")


def photos() -> list[Image.Image]:
    rotated = photo().transpose(Image.Transpose.ROTATE_90)
    return [photo(), rotated, photo(24)]


def test_several_photos_are_all_learnt_from(pipe):
    with customizing(pipe, photos(), QUICK) as run:
        assert len(run.pool.mean) == 3 * QUICK.pool_size
        each = [encode_pictures(pipe, [one], 16, 16).mean[0] for one in photos()]
        for number, latents in enumerate(each):
            torch.testing.assert_close(run.pool.mean[number * QUICK.pool_size], latents)
        next(run.learn())
        concept = run.concept()
    alone = pipe.encode_subject(photos()[0])
    assert torch.equal(concept.latents, alone.latents.half().cpu())


def test_a_list_of_one_photo_is_the_photo(pipe):
    one, listed = pipe.customize(photo(), QUICK), pipe.customize([photo()], QUICK)
    assert all(torch.equal(change, listed.changes[name]) for name, change in one.changes.items())


def test_each_photo_is_learnt_under_its_caption(pipe):
    captions = ("in a hat", "on the beach", "in a hat, on the beach")
    with customizing(pipe, photos(), replace(QUICK, caption=captions)) as run:
        numbers = range(40)
        target, _ = run.choose(numbers, len(run.pool.mean))
        words = run.draw_pairs(numbers)["input_ids"]
        assert set((target // QUICK.pool_size).tolist()) == {0, 1, 2}
        for row, picture in zip(words, target.tolist(), strict=True):
            assert torch.equal(row, run.input_ids[picture // QUICK.pool_size])
        next(run.learn())
        assert run.concept().settings["caption"] == list(captions)
    with customizing(pipe, photos(), replace(QUICK, caption="in a hat")) as run:
        assert len(run.draw_pairs(numbers)["input_ids"].unique(dim=0)) == 1


@pytest.mark.parametrize(
    "given, sentence",
    [
        (dict(photo=[]), "`photo` must be a photo or a list of them, got an empty list"),
        (dict(caption=("a", "b")), "`caption` must be one for all photos or one for each of 3, got 2"),
        (dict(mask=Image.new("L", (20, 20), 255)), "`mask` must be one for each of 3 photos, got 1"),
    ],
)
def test_several_photos_that_do_not_fit(pipe, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipe.customize(**{"photo": photos(), "config": QUICK} | given)


def test_a_captioner_is_asked_for_each_photo(pipe, monkeypatch):
    seen = []

    def describe(picture, captioner, **options):
        seen.append((picture.size, captioner, "woman" in options["leave_out"]))
        return f"at {len(seen)} o'clock"

    monkeypatch.setattr("profusion_pipeline.customization.customize.describe_photo", describe)
    concept = pipe.customize(photos()[1:], QUICK, caption="auto", captioner="me/captioner")
    assert concept.settings["captioner"] == "me/captioner"
    assert seen == [((20, 20), "me/captioner", True), ((24, 24), "me/captioner", True)]
    assert concept.settings["caption"] == ["at 1 o'clock", "at 2 o'clock"]


REFUSAL = "open the pipeline with `profusion_pipeline.ProFusionPipeline.from_pretrained`"


def test_a_class_without_customising(pipe, monkeypatch):
    monkeypatch.setattr(ProFusionPipeline, "_customize", None)
    with pytest.raises(ImportError, match=REFUSAL):
        pipe.customize(photo())


@pytest.mark.parametrize(
    "opened, answer",
    [
        ("__import__('profusion_pipeline').ProFusionPipeline.from_pretrained('pipeline')", "1 steps"),
        (
            "__import__('profusion_pipeline').load_demo_pipeline(folder=__import__('pathlib').Path('pipeline'))",
            "1 steps",
        ),
        ("__import__('diffusers').DiffusionPipeline.from_pretrained('pipeline', trust_remote_code=True)", REFUSAL),
    ],
    ids=["the public class", "the demo", "remote code beside the installed package"],
)
def test_which_pipelines_can_be_customised_in_a_fresh_process(pipe, tmp_path, opened, answer):
    pipe.save_pretrained(tmp_path / "pipeline")
    photo().save(tmp_path / "me.png")
    code = f"""
from pathlib import Path
from diffusers import DiffusionPipeline
import profusion_pipeline
pipe = {opened}
try:
    print(pipe.customize("me.png", steps=1, pool_size=1).steps, "steps")
except ImportError as error:
    print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer in done.stdout, done.stderr


def test_fused_projections(pipe):
    pipe.promptnet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="changes to_q, to_k and to_v, which PromptNet has fused"):
        pipe.customize(photo())


def test_a_thumbnail_is_kept_where_it_was_agreed_to(pipe):
    assert pipe.customize(photo(), QUICK, steps=1).thumbnail is None
    kept = pipe.customize(photo(300), QUICK, steps=1, keep_thumbnail=True).thumbnail
    with Image.open(io.BytesIO(kept)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (128, 128))
