"""What a launcher says about a run: `accelerate launch`, torchrun, or the environment variables that they set.

A setting that was not given is the launcher's. One that was given and contradicts the launcher is refused, and so is
what a command can't do. Only the standard library is imported here.
"""

import json
import os
import time
from contextlib import suppress
from typing import Any, TypeVar

Value = TypeVar("Value")

# Ways to share a training among processes that are not ours, by the variable that asks for them.
FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context and sequence parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
PRECISIONS = ("no", "fp16", "bf16")
TRUE, FALSE = ("1", "true", "yes", "on", "y", "t"), ("", "0", "false", "no", "off", "n", "f")


def check_launcher(
    command: str, *, several_processes: bool = False, accumulation: bool = False, precision: bool = False
) -> None:
    """Refuse what a launcher asks for and a command can't do, before any work.

    Args:
        command: Whose name the sentence says, such as "profusion customize".
        several_processes: Whether several processes may share its work.
        accumulation: Whether it can accumulate gradients.
        precision: Whether it can compute in another precision.

    Raises:
        ValueError: DeepSpeed, FSDP or the like, compiling, several processes, accumulated gradients or a precision are
            asked for in vain; or fewer processes were started than asked for.

    Example:
        >>> check_launcher("profusion customize")
    """
    for variable, name in FOREIGN.items():
        if _is_true(variable):
            raise ValueError(f"`{command}` must be launched without {name}, got {variable}={os.environ[variable]!r}.")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        raise ValueError(
            f"`{command}` must be launched without compiling (--dynamo_backend no), got "
            f"ACCELERATE_DYNAMO_BACKEND={_short(backend)}."
        )
    if not several_processes and (_asks_for_more() or _count("WORLD_SIZE", 1) > 1):
        processes = os.environ.get("WORLD_SIZE", "several")
        raise ValueError(f"`{command}` must be launched as one process, got {processes} (--num_processes 1 is one).")
    if _asks_for_more():
        raise ValueError(
            "All processes must be started, got one of several: `accelerate launch --multi_gpu --num_processes 2` "
            "starts two (on a CPU too), as does `torchrun --nproc-per-node 2`; without --multi_gpu accelerate leaves "
            "that to mpirun."
        )
    steps = _count("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1)
    if not accumulation and steps > 1:
        raise ValueError(
            f"`{command}` must be launched without accumulated gradients, got "
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps}."
        )
    word = launched_precision(None, "no")
    if not precision and word != "no":
        raise ValueError(
            f"`{command}` must be launched without mixed precision, got ACCELERATE_MIXED_PRECISION={word!r}."
        )


def launched_precision(given: str | None, default: Value) -> str | Value:
    """The mixed precision of a run.

    `accelerate launch` says "no" also where nobody spoke of it, so that counts as nothing said.

    Args:
        given: The run's own setting, "no", "fp16" or "bf16"; None if there is none.
        default: What holds if the launcher doesn't say anything either.

    Returns:
        What was given, else what the launcher says, else the default.

    Raises:
        ValueError: The two contradict each other, or the launcher's is none of the three.

    Example:
        >>> launched_precision("bf16", default="no")
        'bf16'
    """
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if said not in PRECISIONS:
        raise ValueError(
            f"`mixed_precision` must be one of {', '.join(PRECISIONS)}, got {_short(said)} from the launcher "
            "(ACCELERATE_MIXED_PRECISION)."
        )
    return _agreed("mixed_precision", given, None if said == "no" else said, default)


def launched_accumulation(given: int | None) -> int:
    """How many forward passes an optimiser step takes.

    Args:
        given: The run's own setting; None if there is none.

    Returns:
        What was given, else what the launcher says, else 1.

    Raises:
        ValueError: The two contradict each other, or the launcher's is not a whole number from 1 on.

    Example:
        >>> launched_accumulation(None)
        1
    """
    said = _count("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    return _agreed("gradient_accumulation_steps", given, said, 1)


def launched_device(given: str | None) -> str | None:
    """Where models run.

    Args:
        given: The run's own setting, such as "cuda:1"; None if there is none.

    Returns:
        What was given, else what the launcher says, else None.

    Raises:
        ValueError: The two contradict each other.

    Example:
        >>> launched_device("cpu")
        'cpu'
    """
    said = "cpu" if _is_true("ACCELERATE_USE_CPU") else os.environ.get("ACCELERATE_TORCH_DEVICE")
    return _agreed("device", given, said, None)


def local_rank() -> int:
    """The number of this process on its machine, which decides its GPU; 0 if nobody says.

    Example:
        >>> local_rank()
        0
    """
    return _count("LOCAL_RANK", 0, minimum=0)


def tell_launcher(sentence: str) -> None:
    """Let torchrun's report on processes that failed end with the reason, and not with advice to programmers.

    Args:
        sentence: What this process failed of.

    Example:
        >>> tell_launcher("profusion: `data` must be a folder of pictures that exists, got 'nowhere'.")
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        about = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(file, "w", encoding="utf-8") as report:  # the report of a report is nobody's work
            json.dump({"message": {"message": sentence, "extraInfo": about}}, report)


def _agreed(name: str, given: Value | None, said: Value | None, default: Value) -> Value:
    if given is not None and said is not None and given != said:
        raise ValueError(f"`{name}` must be left out or be {said!r}, as the launcher says, got {given!r}.")
    return given if given is not None else said if said is not None else default


def _asks_for_more() -> bool:
    # `accelerate launch --num_processes 2` without --multi_gpu starts one process. It tells it where the others would
    # be, but not how many; mpirun would.
    launched = "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return launched and not any(name in os.environ for name in sizes)


def _is_true(variable: str) -> bool:
    word = os.environ.get(variable, "").lower()
    if word not in TRUE + FALSE:
        raise ValueError(f"`{variable}` must be true or false, got {_short(word)}.")
    return word in TRUE


def _count(variable: str, default: Value, *, minimum: int = 1) -> int | Value:
    text = os.environ.get(variable)
    if text is None:
        return default
    if not (text.isdecimal() and len(text) < 10 and int(text) >= minimum):
        raise ValueError(f"`{variable}` must be a whole number from {minimum} on, got {_short(text)}.")
    return int(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def chosen_device(device: str | None, dtype: str | None, *, mixed: bool = False) -> dict[str, Any]:
    """Where a command computes and in which dtype: what was typed, else what suits the machine.

    Args:
        device: Such as "cpu" or "cuda:1"; None for CUDA where there is one, of a launcher's processes each its own.
        dtype: "float32", "float16" or "bfloat16"; None for the launcher's precision, else for float16 on CUDA and
            float32 elsewhere.
        mixed: Whether the launcher's precision is that of products only, and not the weights' dtype.

    Returns:
        `dtype` and `device`, as `load_pipeline` takes them.

    Raises:
        ValueError: The machine has no such device, or the launcher contradicts what was typed.

    Example:
        >>> chosen_device("cpu", "bfloat16")
        {'dtype': torch.bfloat16, 'device': 'cpu'}
    """
    import torch

    device = launched_device(device)
    if device is None and torch.cuda.is_available():
        device = f"cuda:{local_rank() % torch.cuda.device_count()}"
    device = device or "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ValueError(f"--device must be one of this machine, such as cpu or cuda:1, got {device!r}.") from error
    usual = "float16" if device.startswith("cuda") else "float32"
    said = None if mixed else {"fp16": "float16", "bf16": "bfloat16"}.get(launched_precision(None, "no"))
    return {"dtype": getattr(torch, _agreed("dtype", dtype, said, usual)), "device": device}
