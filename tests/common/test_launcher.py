"""What launchers say by environment variables; real ones start a training in `training/test_launched.py`."""

import json

import pytest
import torch

from profusion_pipeline.common.launcher import (
    check_launcher,
    chosen_device,
    launched_accumulation,
    launched_device,
    launched_precision,
    local_rank,
    tell_launcher,
)

VARIABLES = """ACCELERATE_MIXED_PRECISION ACCELERATE_GRADIENT_ACCUMULATION_STEPS ACCELERATE_USE_CPU
    ACCELERATE_TORCH_DEVICE ACCELERATE_DYNAMO_BACKEND WORLD_SIZE LOCAL_RANK MASTER_ADDR
    TORCHELASTIC_ERROR_FILE""".split()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing is said; a test says what it likes."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "said, given, expected",
    [
        (None, None, "no"),
        (None, "bf16", "bf16"),
        ("no", "bf16", "bf16"),  # accelerate launch says no also where nobody did
        ("no", None, "no"),
        ("bf16", None, "bf16"),
        ("BF16", None, "bf16"),
        ("fp16", "fp16", "fp16"),
    ],
)
def test_precision(environment, said, given, expected):
    if said:
        environment.setenv("ACCELERATE_MIXED_PRECISION", said)
    assert launched_precision(given, "no") == expected


@pytest.mark.parametrize(
    "said, given, message",
    [
        ("bf16", "fp16", "`mixed_precision` must be left out or be 'bf16', as the launcher says, got 'fp16'"),
        ("bf16", "no", "as the launcher says, got 'no'"),
        ("fp8", None, "`mixed_precision` must be one of no, fp16, bf16, got 'fp8' from the launcher"),
        ("x" * 1000, None, "got 'x{57}[.]{3}' from"),
    ],
)
def test_precision_in_vain(environment, said, given, message):
    environment.setenv("ACCELERATE_MIXED_PRECISION", said)
    with pytest.raises(ValueError, match=message):
        launched_precision(given, "no")


def test_accumulation(environment):
    assert launched_accumulation(None) == 1
    assert launched_accumulation(3) == 3
    environment.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert launched_accumulation(None) == launched_accumulation(4) == 4
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be left out or be 4, .*, got 1"):
        launched_accumulation(1)


@pytest.mark.parametrize("said", ["0", "-1", "many", "", "1.5", "auto", "9" * 30])
def test_accumulation_that_is_no_number(environment, said):
    environment.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", said)
    with pytest.raises(ValueError, match="`ACCELERATE_GRADIENT_ACCUMULATION_STEPS` must be a whole number from 1 on"):
        launched_accumulation(None)


def test_device(environment):
    assert launched_device(None) is None
    environment.setenv("ACCELERATE_TORCH_DEVICE", "cuda:1")
    assert launched_device(None) == "cuda:1"
    environment.setenv("ACCELERATE_USE_CPU", "True")
    assert launched_device(None) == launched_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="`device` must be left out or be 'cpu', as the launcher says, got 'cuda'"):
        launched_device("cuda")
    environment.setenv("ACCELERATE_USE_CPU", "perhaps")
    with pytest.raises(ValueError, match="`ACCELERATE_USE_CPU` must be true or false, got 'perhaps'"):
        launched_device(None)


def test_local_rank(environment):
    assert local_rank() == 0
    environment.setenv("LOCAL_RANK", "3")
    assert local_rank() == 3


@pytest.mark.parametrize(
    "said, message",
    [
        (dict(ACCELERATE_USE_DEEPSPEED="true"), "without DeepSpeed, got ACCELERATE_USE_DEEPSPEED='true'"),
        (dict(ACCELERATE_USE_FSDP="1"), "without FSDP"),
        (dict(ACCELERATE_USE_MEGATRON_LM="true"), "without Megatron-LM"),
        (dict(ACCELERATE_USE_PARALLELISM_CONFIG="true"), "without tensor, context and sequence parallelism"),
        (dict(ACCELERATE_USE_SAGEMAKER="true"), "without SageMaker"),
        (dict(ACCELERATE_DYNAMO_BACKEND="INDUCTOR"), "without compiling .* got ACCELERATE_DYNAMO_BACKEND='INDUCTOR'"),
        (dict(ACCELERATE_USE_CPU="True", MASTER_ADDR="127.0.0.1"), "All processes must be started, got one of several"),
        # What accelerate launch --num_processes 2 says where there is no GPU, without --cpu.
        (dict(ACCELERATE_USE_CPU="False", MASTER_ADDR="127.0.0.1"), "All processes must be started, got one of sev"),
    ],
)
def test_what_no_training_does(environment, said, message):
    for name, value in said.items():
        environment.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_launcher("profusion train", several_processes=True, accumulation=True)


@pytest.mark.parametrize(
    "said",
    [
        dict(ACCELERATE_DYNAMO_BACKEND="NO", ACCELERATE_USE_DEEPSPEED="false", ACCELERATE_USE_FSDP=""),
        dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="True"),  # torchrun, mpirun's wrapper
        dict(PMI_SIZE="2", MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="True"),
        dict(MASTER_ADDR="127.0.0.1"),  # a batch system's, for whoever wants it
        dict(ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4"),
    ],
)
def test_what_a_training_does(environment, said):
    for name, value in said.items():
        environment.setenv(name, value)
    check_launcher("profusion train", several_processes=True, accumulation=True)


@pytest.mark.parametrize(
    "said, message",
    [
        (dict(WORLD_SIZE="2"), "`profusion customize` must be launched as one process, got 2"),
        (dict(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="False"), "as one process, got several"),
        (
            dict(ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4"),
            "without accumulated gradients, got ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4",
        ),
        (dict(ACCELERATE_MIXED_PRECISION="bf16"), "without mixed precision, got ACCELERATE_MIXED_PRECISION='bf16'"),
    ],
)
def test_what_a_single_process_does_not(environment, said, message):
    for name, value in said.items():
        environment.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_launcher("profusion customize")


def test_the_launchers_precision_is_the_dtype_of_what_is_drawn(environment):
    assert chosen_device("cpu", None)["dtype"] == torch.float32
    environment.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert chosen_device("cpu", None)["dtype"] == chosen_device("cpu", "bfloat16")["dtype"] == torch.bfloat16
    assert chosen_device("cpu", None, mixed=True)["dtype"] == torch.float32
    with pytest.raises(ValueError, match="`dtype` must be left out or be 'bfloat16', as the launcher says, got 'floa"):
        chosen_device("cpu", "float16")


def test_what_went_wrong_is_what_torchrun_reports(environment, tmp_path):
    file = tmp_path / "error.json"
    environment.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    tell_launcher("profusion: `data` must be there.")
    message = json.loads(file.read_text())["message"]
    assert message["extraInfo"]["py_callstack"] == "profusion: `data` must be there."
    environment.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "nowhere" / "error.json"))
    tell_launcher("nobody hears it")
