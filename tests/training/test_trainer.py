import dataclasses
import json
import resource
import shutil
import sys
import tempfile
from contextlib import contextmanager

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calls import rounding
from profusion_pipeline.common.files import only_process
from profusion_pipeline.method.modeling_promptnet import PromptNet
from profusion_pipeline.training.checkpoints import list_checkpoints
from profusion_pipeline.training.run import TrainingRun
from profusion_pipeline.training.trainer import train_promptnet, train_steps
from training import assert_same_bits, assert_same_run, log_of, short_run, start, weights, write_base, write_shards

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("fresh_accelerate")]


def gradients(config) -> dict[str, torch.Tensor]:
    """Of PromptNet, as the first optimiser step uses them."""
    run = start(config)
    used = {}

    def look(*_):
        used.update({name: p.grad.clone() for name, p in run.components.promptnet.named_parameters()})

    run.optimizer.optimizer.register_step_pre_hook(look)
    next(train_steps(run))
    return used


def assert_close_gradients(ours, theirs, tolerance) -> None:
    worst = max((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max() for name in theirs)
    assert worst < tolerance


def test_the_loss_falls_on_a_few_pictures(folders):
    run = start(short_run(**folders, max_steps=30, learning_rate=3e-3, batch_size=8))
    first, *_ = (record.loss.item() for record in train_steps(run))
    run.step = 0
    assert next(train_steps(run)).loss < 0.7 * first  # of the same pictures, noise and timesteps


@pytest.mark.parametrize("cache_latents", [True, False])
def test_workers_change_nothing(folders, cache_latents):
    losses = [
        [record.loss for record in train_steps(start(short_run(**folders, cache_latents=cache_latents, num_workers=n)))]
        for n in (0, 2)
    ]
    assert losses[0] == losses[1]


def test_regularised_subjects_are_shorter(folders):
    lengths = {}
    for weight in (0.0, 1.0):
        run = start(short_run(**folders, max_steps=10, learning_rate=3e-3, subject_l2=weight))
        subjects = []
        run.components.promptnet.register_forward_hook(lambda *args, s=subjects: s.append(args[-1].prompt_embeds))
        list(train_steps(run))
        lengths[weight] = [s.norm(dim=-1).mean().item() for s in subjects]
    assert lengths[1.0][0] == lengths[0.0][0]
    assert lengths[1.0][-1] < 0.8 * lengths[0.0][-1]


def test_only_promptnet_learns(folders):
    run = start(short_run(**folders))
    components = run.components
    before = {name: p.clone() for name, p in components.promptnet.named_parameters()}
    frozen = [
        (parameter, parameter.clone())
        for model in (components.vae, components.unet, components.text_encoder, components.image_encoder)
        for parameter in model.parameters()
    ]
    next(train_steps(run))
    assert all(torch.equal(p, old) and p.grad is None and not p.requires_grad for p, old in frozen)
    assert [name for name, p in components.promptnet.named_parameters() if torch.equal(p, before[name])] == []


def test_records_say_step_rate_and_time(folders):
    run = start(short_run(**folders, lr_scheduler="linear", warmup_steps=2, max_steps=4))
    records = list(train_steps(run))
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert [record.learning_rate for record in records] == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert all(record.seconds > 0 for record in records)


def test_accumulated_gradients_are_those_of_the_large_batch(folders):
    large = gradients(short_run(**folders, batch_size=4, max_grad_norm=0.0))
    small = gradients(short_run(**folders, batch_size=1, gradient_accumulation_steps=4, max_grad_norm=0.0))
    assert_close_gradients(small, large, 1e-3)
    other = gradients(short_run(**folders, batch_size=4, max_grad_norm=0.0, seed=1))
    with pytest.raises(AssertionError):
        assert_close_gradients(other, large, 0.1)


def test_gradient_checkpointing_changes_no_gradient(folders):
    plain = gradients(short_run(**folders))
    checkpointed = gradients(short_run(**folders, gradient_checkpointing=True))
    assert_close_gradients(checkpointed, plain, 1e-5)


def test_gradients_are_clipped(folders):
    clipped = gradients(short_run(**folders, max_grad_norm=1e-3))
    assert torch.stack([g.norm() for g in clipped.values()]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_follows_float32(folders):
    losses = {
        precision: [r.loss.item() for r in train_steps(start(short_run(**folders, mixed_precision=precision)))]
        for precision in ("no", "bf16")
        if not AcceleratorState._reset_state(reset_partial_state=True)
    }
    assert losses["bf16"] == pytest.approx(losses["no"], rel=rounding(torch.bfloat16))
    assert losses["bf16"] != losses["no"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache_latents": False, "horizontal_flip": True, "reference": "other"},
        {
            "streaming": True,
            "cache_latents": False,
            "horizontal_flip": True,
            "shuffle_buffer": 3,
            "caption_dropout": 0.5,
        },
    ],
)
def test_an_interrupted_run_resumes_with_the_same_bits(folders, tmp_path, settings):
    if "streaming" in settings:
        folders["data"] = write_shards(tmp_path / "shards", shards=2, pictures=4)
    settings = (
        dict(checkpoint_every=2, max_steps=5, lr_scheduler="cosine", gradient_accumulation_steps=2, **folders)
        | settings
    )
    whole = train_promptnet(short_run(**settings | {"output": tmp_path / "whole"}))

    config = short_run(**settings)
    run = start(config)
    for record in train_steps(run):
        if record.step == 2:
            run.save_checkpoint(tmp_path / "run" / "checkpoints")
            (tmp_path / "run" / "log.jsonl").write_text((tmp_path / "whole" / "log.jsonl").read_text())
        if record.step == 3:  # learnt, but lost
            break
    resumed = train_promptnet(dataclasses.replace(config, resume=True))

    assert_same_run(resumed.parent, whole.parent)


def test_a_whole_training_leaves_promptnet_log_checkpoints_and_pictures(folders, tmp_path):
    photos = [str(folders["data"] / name) for name in ("anna-0.png", "ben-0.png")]
    config = short_run(
        **folders,
        mixed_precision="bf16",
        checkpoint_every=2,
        keep_checkpoints=1,
        validation_every=4,
        validation_images=tuple(photos),
        validation_prompts=("a photo of S*", "S* on the beach", "S* in a hat"),
        validation_inference_steps=2,
    )
    output = folders["output"]
    assert train_promptnet(config) == output / "promptnet"
    assert PromptNet.from_pretrained(output / "promptnet").config.region_proj_channel == 8
    log = log_of(output)
    assert [line["step"] for line in log] == [2, 4, 6]
    assert all(line["loss"] > 0 and line["images_per_second"] > 0 for line in log)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000006"]
    assert [path.name for path in (output / "validation").iterdir()] == ["step-00000004.png"]
    with Image.open(output / "validation" / "step-00000004.png") as grid:
        assert grid.size == (4 * 16, 2 * 16)
    assert list((output / "tensorboard").glob("events*"))

    # Going on after the end changes nothing; more steps go on from the last one.
    before = weights(output / "promptnet")
    train_promptnet(dataclasses.replace(config, resume=True))
    assert_same_bits(weights(output / "promptnet"), before)
    train_promptnet(dataclasses.replace(config, resume=True, max_steps=7))
    assert [line["step"] for line in log_of(output)] == [2, 4, 6, 7]


def test_validation_pictures_leave_the_training_as_it_was(folders, tmp_path):
    plain = train_promptnet(short_run(**folders | {"output": tmp_path / "plain"}, max_steps=3))
    watched = train_promptnet(
        short_run(
            **folders,
            max_steps=3,
            validation_every=1,
            validation_images=(str(folders["data"] / "anna-0.png"),),
            validation_prompts=("S*",),
            validation_inference_steps=1,
        )
    )
    assert_same_bits(weights(watched), weights(plain))


def test_a_run_is_not_overwritten(folders):
    (folders["output"] / "checkpoints" / "step-00000002").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="`output` '.*run' holds a run already: resume=True goes on with it"):
        train_promptnet(short_run(**folders))


def test_a_validation_photo_that_cannot_be_read_is_refused_before_any_work(folders):
    settings = dict(validation_every=1, validation_images=("gone.png",), validation_prompts=("S*",))
    with pytest.raises(ValueError, match="`validation_images` must be a file that exists, got 'gone.png'"):
        train_promptnet(short_run(**folders, **settings))
    assert not folders["output"].exists()


def test_a_broken_loss_stops_the_training_and_saves_nothing(inputs, tmp_path):
    base = write_base(tmp_path / "base")
    unet = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    unet["conv_out.bias"][0] = torch.nan
    save_file(unet, base / "unet" / "diffusion_pytorch_model.safetensors")
    config = short_run(model=base, data=inputs["data"], output=tmp_path / "run", checkpoint_every=2, log_every=3)
    with pytest.raises(FloatingPointError, match="The loss of step 1 must be finite, got nan"):
        train_promptnet(config)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_weights_that_a_last_gradient_has_broken_are_not_saved(folders, checkpoint_every):
    """The loss of the step is that of the weights before it, and finite."""
    config = short_run(**folders, checkpoint_every=checkpoint_every, max_steps=1, learning_rate=1e39)
    with pytest.raises(FloatingPointError, match="The weights after step 1 must be finite, some are not"):
        train_promptnet(config)
    assert not list(folders["output"].rglob("*.safetensors"))


@contextmanager
def full_disk(size: int):
    """No file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "file",
    [
        "checkpoints/step-00000001/model.safetensors",
        "checkpoints/step-00000001/optimizer.bin",
        "promptnet/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_full_disk_leaves_what_was_saved_before(folders, tmp_path, file):
    run = start(short_run(**folders))
    steps = train_steps(run)
    next(steps)
    path = run.save_checkpoint(tmp_path / "checkpoints")
    run.save_promptnet(tmp_path / "promptnet")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    next(steps)
    save = run.save_checkpoint if file.startswith("checkpoints") else run.save_promptnet
    with full_disk(len(before[tmp_path / file]) - 1):
        with pytest.raises(OSError, match="(step-00000002|promptnet)' could not be written, what was there before is"):
            save(tmp_path / file.split("/")[0])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    run.load_checkpoint(path)
    assert run.step == 1


def test_log_and_tensorboard_tell_of_every_step_once_after_a_resume(folders):
    config = short_run(**folders, max_steps=4, checkpoint_every=2, log_every=1)
    train_promptnet(config)
    output = folders["output"]
    shutil.rmtree(output / "checkpoints" / "step-00000004")  # as if killed before it
    train_promptnet(dataclasses.replace(config, resume=True, max_steps=5))
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in log_of(output)] == [1, 2, 3, 4, 5]


def test_a_launcher_that_started_one_process_of_several_is_refused(folders, monkeypatch):
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="All processes must be started"):
        train_promptnet(short_run(**folders))
    monkeypatch.setenv("WORLD_SIZE", "1")  # a launcher that says how many
    train_promptnet(short_run(**folders, max_steps=1))


def test_what_the_environment_says_holds_where_the_settings_say_nothing(inputs, tmp_path, monkeypatch):
    def state(output, **settings) -> dict:
        train_promptnet(short_run(**inputs, **settings, output=output, max_steps=2, checkpoint_every=2, log_every=1))
        return json.loads((output / "checkpoints" / "step-00000002" / "state.json").read_text())

    given = state(tmp_path / "given", mixed_precision="bf16", gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert state(tmp_path / "said") == given
    assert (given["mixed_precision"], given["samples_per_step"]) == ("bf16", 4)
    assert_same_run(tmp_path / "said", tmp_path / "given")


@pytest.mark.parametrize(
    "name, value, settings, message",
    [
        ("MIXED_PRECISION", "bf16", dict(mixed_precision="no"), "`mixed_precision` must be left out or be 'bf16'"),
        ("MIXED_PRECISION", "fp8", {}, "`mixed_precision` must be one of no, fp16, bf16, got 'fp8' from the launcher"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", dict(gradient_accumulation_steps=2), "must be left out or be 4"),
        ("USE_FSDP", "true", {}, "must be launched without FSDP"),
        ("DYNAMO_BACKEND", "EAGER", {}, "must be launched without compiling"),
    ],
)
def test_a_launcher_that_contradicts_is_refused_before_any_work(name, value, settings, message, folders, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(ValueError, match=message):
        train_promptnet(short_run(**folders, **settings))
    assert not folders["output"].exists()


def test_float16_on_a_cpu_is_refused(folders):
    with pytest.raises(ValueError, match="`mixed_precision` must be 'no' or 'bf16' on a CPU, got 'fp16'"):
        start(short_run(**folders, mixed_precision="fp16"))


def test_an_accelerator_of_another_precision_is_refused(folders):
    accelerator = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=2)
    assert TrainingRun(short_run(**folders), accelerator).samples_per_step == 4
    with pytest.raises(ValueError, match="`mixed_precision` must be that of the accelerator, 'no', got 'bf16'"):
        TrainingRun(short_run(**folders, mixed_precision="bf16"), accelerator)


def test_a_repository_that_cannot_be_made_is_refused_before_any_work(folders, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    config = short_run(**folders, push_to_hub=True, hub_model_id="two words/mine")
    with pytest.raises(ValueError, match="`push_to_hub` needs a token of the Hub: `hf auth login`, or HF_TOKEN"):
        train_promptnet(config)
    monkeypatch.setenv("HF_TOKEN", "any")
    with pytest.raises(ValueError, match="`hub_model_id` must name a repository .*, 'two words/mine' is not one: "):
        train_promptnet(config)
    assert not folders["output"].exists()


def test_without_accelerate_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "profusion_pipeline.training.trainer")
    with pytest.raises(ImportError, match="Training needs accelerate: `pip install accelerate`"):
        import profusion_pipeline.training.trainer  # noqa: F401


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_learns_where_gradients_are_off(folders, mode):
    with mode():
        train_promptnet(short_run(**folders, max_steps=1))
    assert (folders["output"] / "promptnet" / "config.json").is_file()


def test_two_runs_do_not_share_an_output(folders):
    folders["output"].mkdir()
    with only_process(folders["output"], "train", "never said"):
        for resume in (False, True):
            with pytest.raises(ValueError, match="`output` must not be in use: another process is training into"):
                train_promptnet(short_run(**folders, resume=resume))
    assert [path.name for path in folders["output"].iterdir()] == [".train.lock"]


def test_what_can_not_be_written_at_the_end_is_kept(folders, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folders["output"].mkdir()
    (folders["output"] / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="It is kept in '.*/temporary/profusion-"):
        train_promptnet(short_run(**folders, max_steps=1, checkpoint_every=1))
    (kept,) = (tmp_path / "temporary").glob("profusion-*")
    assert [path.name for path in list_checkpoints(kept / "checkpoints")] == ["step-00000001"]
