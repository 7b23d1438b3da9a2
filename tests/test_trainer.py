import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hub_server import serve
from profusion_pipeline.checkpoints import list_checkpoints
from profusion_pipeline.modeling_promptnet import PromptNet
from profusion_pipeline.trainer import train_promptnet, train_steps
from training import assert_same_bits, short_run, start, weights, write_base, write_portraits, write_shards

# What a process started by a test finds on its path: this folder.
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return dict(
        model=write_base(tmp_path_factory.mktemp("base")), data=write_portraits(tmp_path_factory.mktemp("portraits"))
    )


@pytest.fixture
def folders(inputs, tmp_path):
    return dict(**inputs, output=tmp_path / "run")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its state in class attributes; a test may choose another precision than the one before."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
    losses = [record.loss.item() for record in train_steps(run)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


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
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache_latents": False, "horizontal_flip": True, "reference": "other"},
        {"streaming": True, "cache_latents": False, "horizontal_flip": True, "shuffle_buffer": 3},
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
    with pytest.raises(ValueError, match="`accelerate launch --cpu` must start all processes, it has started one"):
        train_promptnet(short_run(**folders))
    monkeypatch.setenv("WORLD_SIZE", "1")  # a launcher that says how many
    train_promptnet(short_run(**folders, max_steps=1))


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


def test_the_trained_pipeline_is_published(folders):
    """With the real client, over HTTP, in a process that knows of no other Hub; loaded again from there."""
    words = ["train", "--model", folders["model"], "--data", folders["data"], "--output", folders["output"]]
    words += ["--max-steps", 2, "--batch-size", 1, "--region-proj-channel", 8, "--mixed-precision", "bf16"]
    words += ["--push-to-hub", "--hub-model-id", "me/portraits", "--placeholder", "person", "--prompt", "a person"]
    code = f"""
from profusion_pipeline import ProFusionPipeline
from profusion_pipeline.cli import main
words = {[str(word) for word in words]!r}
import torch, urllib.request
def refuse(what):
    urllib.request.urlopen(urllib.request.Request({{hub!r}} + "/-/refuse", what.encode(), method="POST")).close()
refuse("repos/create")
assert main(words) == 1
refuse("commit")
assert main(words) == 1  # trained, but not published
refuse("")
assert main([*words, "--resume"]) == 0
pipe = ProFusionPipeline.from_pretrained("me/portraits")
torch.save(pipe.promptnet.state_dict(), {str(folders["output"] / "published.pt")!r})
torch.save(pipe.unet.state_dict(), {str(folders["output"] / "published_unet.pt")!r})
print(pipe.config.placeholder, pipe.scheduler.config.prediction_type)
"""
    with serve() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "any", "HF_HUB_DISABLE_XET": "1"}
        cache = {"HF_HOME": str(folders["output"].with_name("hub"))}
        ended = subprocess.run(
            [sys.executable, "-c", code.replace("{hub!r}", repr(hub.url))],
            capture_output=True,
            text=True,
            env=ENV | settings | cache,
        )
        assert ended.returncode == 0, ended.stderr
        card = hub.repositories["me/portraits"].commits[hub.repositories["me/portraits"].refs["main"]]["README.md"]
    assert ended.stdout.splitlines()[-1] == "person epsilon"
    assert (
        "`hub_model_id` must name a repository that can be made or written, 'me/portraits' is not one" in ended.stderr
    )
    assert_same_bits(
        torch.load(folders["output"] / "published.pt", weights_only=True), weights(folders["output"] / "promptnet")
    )
    unet = load_file(folders["model"] / "unet" / "diffusion_pytorch_model.safetensors")  # not that of the run, in bf16
    assert_same_bits(torch.load(folders["output"] / "published_unet.pt", weights_only=True), unet)
    assert str(folders["model"]) not in card.decode()


def test_without_accelerate_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "profusion_pipeline.trainer")
    with pytest.raises(ImportError, match=r'Training needs accelerate: `pip install "profusion_pipeline\[train\]"`'):
        import profusion_pipeline.trainer  # noqa: F401


def script(folder: Path, settings: str) -> list[str]:
    """A file that trains with these settings, and the words that start it; folders are its arguments."""
    file = folder / "train.py"
    file.write_text(
        "import sys\n"
        "from profusion_pipeline.trainer import train_promptnet\n"
        "from training import short_run\n"
        "model, data, output = sys.argv[1:]\n"
        f"train_promptnet(short_run(model=model, data=data, output=output, {settings}))\n"
    )
    return [sys.executable, str(file)]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Same weights to the bit, same last checkpoint, same log but for the speed."""
    assert_same_bits(weights(ours / "promptnet"), weights(theirs / "promptnet"))
    ours_last, theirs_last = (list_checkpoints(path / "checkpoints")[-1] for path in (ours, theirs))
    assert ours_last.name == theirs_last.name
    for name in ("model.safetensors", "ema.safetensors"):
        assert_same_bits(load_file(ours_last / name), load_file(theirs_last / name))
    ours_state, theirs_state = (
        torch.load(path / "optimizer.bin", weights_only=True)["state"] for path in (ours_last, theirs_last)
    )
    for key in theirs_state:
        assert_same_bits(ours_state[key], theirs_state[key])
    assert [line | {"images_per_second": 0} for line in log_of(ours)] == [
        line | {"images_per_second": 0} for line in log_of(theirs)
    ]


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "kills, data",
    [
        (2, "stream"),
        pytest.param(10, "folder", marks=pytest.mark.slow),
        pytest.param(10, "stream", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(kills, data, folders, tmp_path):
    words = [
        "train",
        "--model",
        folders["model"],
        "--max-steps",
        15 * kills,
        "--batch-size",
        2,
        "--learning-rate",
        1e-3,
    ]
    words += ["--ema-decay", 0.9, "--region-proj-channel", 8, "--checkpoint-every", 2, "--log-every", 3]
    if data == "stream":
        words += ["--data", write_shards(tmp_path / "shards", shards=3, pictures=5), "--shuffle-buffer", 4]
        words += ["--streaming", "--no-cache-latents", "--horizontal-flip"]
    else:
        words += ["--data", folders["data"], "--lr-scheduler", "cosine", "--gradient-accumulation-steps", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    task = dict(words=[str(word) for word in words], whole=str(whole), killed=str(killed), kills=kills, seed=kills)
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("killing.py"), json.dumps(task)],
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    print(report)
    assert report["exit"] == 0, ended.stderr
    assert [life["killed"] for life in report["lives"]] == [True] * kills
    assert any(life["saving"] for life in report["lives"])  # some died while they wrote a checkpoint
    assert report["lives"][-1]["whole"] < 15 * kills
    assert_same_run(killed, whole)
    assert not list(killed.rglob(".*.part"))


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_from_which_the_run_goes_on_exactly(folders, inputs, tmp_path):
    command = script(tmp_path, "max_steps=100_000, checkpoint_every=1000")
    process = subprocess.Popen([*command, *map(str, folders.values())], stderr=subprocess.PIPE, text=True, env=ENV)
    log = folders["output"] / "log.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    (checkpoint,) = (folders["output"] / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert step >= 2
    assert not (folders["output"] / "promptnet").exists()

    last = step + 2
    whole = train_promptnet(short_run(**inputs, output=tmp_path / "whole", max_steps=last, checkpoint_every=1000))
    resumed = train_promptnet(short_run(**folders, max_steps=last, checkpoint_every=1000, resume=True))
    assert_same_bits(weights(resumed), weights(whole))


def program(name: str) -> str:
    """One that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def train(launcher: list, **settings) -> subprocess.CompletedProcess:
    """`profusion train` as a launcher starts it."""
    defaults = dict(batch_size=2, learning_rate=1e-3, ema_decay=0.9, region_proj_channel=8, log_every=1)
    words = [
        word
        for name, value in (defaults | settings).items()
        for word in ((f"--{name.replace('_', '-')}",) if value is True else (f"--{name.replace('_', '-')}", str(value)))
    ]
    command = [*launcher, program("profusion"), "train", *words, "--no-cache-latents"]
    return subprocess.run(command, capture_output=True, text=True, env=ENV | {"OMP_NUM_THREADS": "1"})


TORCHRUN = [program("torchrun"), "--no-python", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [program("accelerate"), "launch", "--no_python", "--num_processes", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [TORCHRUN, [*ACCELERATE, "--multi_gpu", "--main_process_port", "0"]], ids=["torchrun", "accelerate"]
)
def test_two_processes_learn_as_one(launcher, folders, inputs, tmp_path):
    settings = dict(max_steps=4, checkpoint_every=4, max_grad_norm=0.1, gradient_accumulation_steps=2)
    ended = train(launcher, **folders, **settings)
    assert ended.returncode == 0, ended.stderr
    alone = dict(output=tmp_path / "alone", batch_size=4, cache_latents=False, log_every=1)
    train_promptnet(short_run(**inputs, **settings | alone))
    ours, theirs = folders["output"], tmp_path / "alone"
    for path in (ours, theirs):  # two processes of two pictures, one of four; twice each
        assert json.loads((path / "checkpoints" / "step-00000004" / "state.json").read_text())["samples_per_step"] == 8
    assert [line["step"] for line in log_of(ours)] == [1, 2, 3, 4]
    assert [line["loss"] for line in log_of(ours)] == pytest.approx([line["loss"] for line in log_of(theirs)], rel=1e-4)
    averaged, expected = weights(ours / "promptnet"), weights(theirs / "promptnet")
    for name in expected:
        torch.testing.assert_close(averaged[name], expected[name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_accelerate_on_a_cpu_starts_one_process_which_is_refused(folders):
    ended = train([*ACCELERATE, "--cpu"], **folders, max_steps=1)
    assert ended.returncode != 0
    assert "profusion: `accelerate launch --cpu` must start all processes, it has started one" in ended.stderr
    assert not folders["output"].exists()


@pytest.mark.slow
def test_two_processes_share_a_stream_and_resume_with_the_same_bits(folders, tmp_path):
    folders["data"] = write_shards(tmp_path / "shards", shards=2, pictures=5)
    settings = dict(**folders, streaming=True, shuffle_buffer=2, max_steps=4, checkpoint_every=2)
    ended = train(TORCHRUN, **settings)
    assert ended.returncode == 0, ended.stderr
    whole = folders["output"].rename(tmp_path / "whole")
    shutil.copytree(whole, folders["output"])
    shutil.rmtree(folders["output"] / "promptnet")
    shutil.rmtree(folders["output"] / "checkpoints" / "step-00000004")
    ended = train(TORCHRUN, **settings, resume=True)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(folders["output"], whole)
    urls = [json.loads((whole / "checkpoints" / "step-00000004" / f"stream_{i}.json").read_text()) for i in (0, 1)]
    assert [place["taken"] for place in urls] == [8, 8]
    with pytest.raises(ValueError, match="num_processes was 2 and is 1 now"):
        train_promptnet(short_run(**settings, cache_latents=False, batch_size=4, resume=True))
