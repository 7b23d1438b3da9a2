"""The trainer as whole processes: killed, asked to stop, several at once, publishing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hub_server import serve
from profusion_pipeline import ProFusionPipeline
from profusion_pipeline.training.trainer import train_promptnet
from training import assert_same_bits, assert_same_run, log_of, short_run, weights, write_shards

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def words(**settings) -> list[str]:
    """Of `profusion train`, with these settings and those of a short run."""
    defaults = dict(batch_size=2, learning_rate=1e-3, ema_decay=0.9, region_proj_channel=8)
    said = ["train"]
    for name, value in (defaults | settings).items():
        flag = name.replace("_", "-")
        said += [f"--{flag}"] if value is True else [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
    return said


def program(name: str) -> str:
    """One that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def run(*command: str | Path, **environment: str | Path) -> subprocess.CompletedProcess:
    environment = {name: str(value) for name, value in environment.items()}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    "kills, data",
    [
        pytest.param(3, "folder", marks=pytest.mark.slow),
        pytest.param(10, "folder", marks=pytest.mark.slow),
        pytest.param(10, "stream", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(kills, data, inputs, tmp_path):
    steps = 10 * kills
    settings = dict(model=inputs["model"], max_steps=steps, checkpoint_every=2, log_every=3)
    if data == "stream":
        shards = write_shards(tmp_path / "shards", shards=3, pictures=5)
        settings |= dict(data=shards, streaming=True, shuffle_buffer=4, cache_latents=False, horizontal_flip=True)
    else:
        settings |= dict(data=inputs["data"], lr_scheduler="cosine", gradient_accumulation_steps=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    task = dict(words=words(**settings), whole=str(whole), killed=str(killed), kills=kills, seed=kills)
    ended = run(sys.executable, TESTS / "killed_training.py", json.dumps(task))
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["exits"] == [0, 0], ended.stderr
    assert [life["killed"] for life in report["lives"]] == [True] * kills
    assert any(life["saving"] for life in report["lives"])  # died while writing a checkpoint
    assert report["lives"][-1]["whole"] < steps
    assert_same_run(killed, whole)
    assert not list(killed.rglob(".profusion-*"))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_sigterm_saves_a_checkpoint_from_which_the_run_goes_on_exactly(folders, inputs, tmp_path, num_workers):
    """Sent to the whole process group, as launchers and batch systems do."""
    settings = dict(checkpoint_every=1000, log_every=2, num_workers=num_workers)
    command = [program("profusion"), *words(**folders, **settings, max_steps=100_000)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = folders["output"] / "log.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    (checkpoint,) = (folders["output"] / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert step >= 2
    assert not (folders["output"] / "promptnet").exists()

    last = step + 2
    whole = train_promptnet(short_run(**inputs, **settings, output=tmp_path / "whole", max_steps=last))
    resumed = train_promptnet(short_run(**folders, **settings, max_steps=last, resume=True))
    assert_same_bits(weights(resumed), weights(whole))


def test_the_trained_pipeline_is_published(folders, tmp_path):
    """With the real client, over HTTP; a process asks the Hub of its environment."""
    settings = dict(push_to_hub=True, hub_model_id="me/portraits", placeholder="person", prompt="a person")
    command = words(**folders, **settings, max_steps=2, mixed_precision="bf16")
    code = f"""
import os, urllib.request
from profusion_pipeline.cli import main

def refuse(what):
    where = os.environ["HF_ENDPOINT"] + "/-/refuse"
    urllib.request.urlopen(urllib.request.Request(where, what.encode(), method="POST")).close()

refuse("repos/create")
assert main({command!r}) == 1
refuse("commit")
assert main({command!r}) == 1  # trained, but not published
refuse("")
assert main({[*command, "--resume"]!r}) == 0
"""
    with serve() as hub:
        client = dict(HF_ENDPOINT=hub.url, HF_TOKEN="any", HF_HUB_DISABLE_XET="1", HF_HOME=tmp_path / "home")
        ended = run(sys.executable, "-c", code, **client)
        assert ended.returncode == 0, ended.stderr
        repository = hub.repositories["me/portraits"]
    assert "`hub_model_id` must name a repository that can be made or written, 'me/portraits' is not" in ended.stderr
    for path, content in repository.commits[repository.refs["main"]].items():
        (tmp_path / "published" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "published" / path).write_bytes(content)
    pipe = ProFusionPipeline.from_pretrained(tmp_path / "published")
    assert_same_bits(pipe.promptnet.state_dict(), weights(folders["output"] / "promptnet"))
    unet = load_file(folders["model"] / "unet" / "diffusion_pytorch_model.safetensors")
    assert_same_bits(pipe.unet.state_dict(), unet)  # not that of the run, which was cast to bfloat16
    assert pipe.config.placeholder == "person"
    assert str(folders["model"]) not in (tmp_path / "published" / "README.md").read_text()


def train(launcher: list[str], **settings) -> subprocess.CompletedProcess:
    """`profusion train` as a launcher starts it."""
    command = [*launcher, program("profusion"), *words(**settings, cache_latents=False, log_every=1)]
    return run(*command, OMP_NUM_THREADS="1")


TORCHRUN = [program("torchrun"), "--no-python", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [program("accelerate"), "launch", "--no_python", "--num_processes", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, data",
    [(TORCHRUN, "folder"), (TORCHRUN, "stream"), ([*ACCELERATE, "--multi_gpu", "--main_process_port", "0"], "folder")],
    ids=["torchrun", "torchrun-stream", "accelerate"],
)
def test_two_processes_learn_as_one(launcher, data, folders, tmp_path):
    settings = dict(max_steps=4, checkpoint_every=4, max_grad_norm=0.1, gradient_accumulation_steps=2)
    if data == "stream":  # two epochs and a half, mirrored at random
        folders["data"] = write_shards(tmp_path / "shards", shards=3, pictures=4)
        settings |= dict(streaming=True, shuffle_buffer=5, horizontal_flip=True)
    ended = train(launcher, **folders, **settings)
    assert ended.returncode == 0, ended.stderr
    alone = dict(output=tmp_path / "alone", batch_size=4, cache_latents=False, log_every=1)
    train_promptnet(short_run(**folders | settings | alone))
    ours, theirs = folders["output"], tmp_path / "alone"
    for path in (ours, theirs):  # two processes of two pictures, one of four; twice each
        assert json.loads((path / "checkpoints" / "step-00000004" / "state.json").read_text())["samples_per_step"] == 8
    assert [line["step"] for line in log_of(ours)] == [1, 2, 3, 4]
    assert [line["loss"] for line in log_of(ours)] == pytest.approx([line["loss"] for line in log_of(theirs)], rel=1e-4)
    averaged, expected = weights(ours / "promptnet"), weights(theirs / "promptnet")
    for name in expected:
        torch.testing.assert_close(averaged[name], expected[name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_torchrun_ends_its_report_with_the_reason(folders):
    ended = train(TORCHRUN, **folders | dict(data="nowhere"), max_steps=1)
    sentence = "profusion: `data` must be a folder of pictures that exists, got 'nowhere'."
    assert ended.returncode == 1
    assert [sentence in line for line in ended.stderr.splitlines() if line.strip(" =")][-1]


@pytest.mark.slow
def test_accelerate_on_a_cpu_starts_one_process_which_is_refused(folders):
    ended = train([*ACCELERATE, "--cpu"], **folders, max_steps=1)
    assert ended.returncode != 0
    assert "profusion: All processes must be started, got one of several" in ended.stderr
    assert not folders["output"].exists()


@pytest.mark.slow
@pytest.mark.parametrize("config_file", [False, True], ids=["flags", "config file"])
def test_accelerate_decides_precision_and_device(config_file, folders, inputs, tmp_path):
    """Of the module, as `accelerate launch -m` starts it; with the bits of the same flags."""
    said = ["--cpu", "--mixed_precision", "bf16"]
    if config_file:
        file = tmp_path / "accelerate.yaml"
        file.write_text(
            "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nnum_machines: 1\n"
            "num_processes: 1\nuse_cpu: true\n"
        )
        said = ["--config_file", file]
    launched = [program("accelerate"), "launch", *said, "-m", "profusion_pipeline"]
    settings = dict(max_steps=2, checkpoint_every=2, log_every=1)
    ended = run(*launched, *words(**folders, **settings), OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    train_promptnet(short_run(**inputs, **settings, output=tmp_path / "alone", mixed_precision="bf16"))
    assert_same_run(folders["output"], tmp_path / "alone")
    contradicted = run(*launched, *words(**inputs, output=tmp_path / "none", mixed_precision="fp16"))
    sentence = "profusion: `mixed_precision` must be left out or be 'bf16', as the launcher says, got 'fp16'."
    assert sentence in contradicted.stderr.splitlines()
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_two_processes_on_a_stream_resume_with_the_same_bits(folders, tmp_path):
    folders["data"] = write_shards(tmp_path / "shards", shards=2, pictures=5)
    settings = dict(**folders, streaming=True, shuffle_buffer=2, max_steps=4, checkpoint_every=2)
    ended = train(TORCHRUN, **settings)
    assert ended.returncode == 0, ended.stderr
    whole = folders["output"].rename(tmp_path / "whole")
    place = json.loads((whole / "checkpoints" / "step-00000004" / "stream.json").read_text())
    assert (place["taken"], place["epoch"]) == (16, 1)  # of ten pictures: in the second epoch

    def halfway() -> None:
        shutil.copytree(whole, folders["output"])
        shutil.rmtree(folders["output"] / "promptnet")
        shutil.rmtree(folders["output"] / "checkpoints" / "step-00000004")

    halfway()
    ended = train(TORCHRUN, **settings, resume=True)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(folders["output"], whole)

    shutil.rmtree(folders["output"])
    halfway()  # where one process goes on as well
    train_promptnet(short_run(**settings, cache_latents=False, log_every=1, batch_size=4, resume=True))
    ours, theirs = ([line["loss"] for line in log_of(output)] for output in (folders["output"], whole))
    assert ours == pytest.approx(theirs, rel=1e-4)
