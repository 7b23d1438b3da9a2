"""What a concept changes in a model: adapters of PEFT that compute some rows of a batch, or the weights themselves."""

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import nn

from . import base_hash

BASE = "__base__"  # PEFT's name for "no adapter"


def check_changes(model: nn.Module, changes: dict[str, torch.Tensor], mode: str) -> None:
    """What was learnt must be of weights that the model has: of their shape, or factors `lora_A` and `lora_B` of it."""
    weights = base_hash.base_weights(model)
    if mode == "lora" and not changes:
        raise ValueError(f"The concept must change something of {type(model).__name__}, got nothing.")
    for name, tensor in changes.items():
        layer, _, factor = name.partition(".lora_")
        weight = weights.get(name if mode == "full" else f"{layer}.weight")
        shape = None if weight is None else list(weight.shape)
        if mode == "lora" and shape is not None:
            down, up = (changes.get(f"{layer}.lora_{one}.weight") for one in "AB")
            rank = 0 if down is None or up is None or down.ndim != 2 else len(down)
            shape = {"A.weight": [rank, shape[-1]], "B.weight": [shape[0], rank]}.get(factor) if rank else None
        if list(tensor.shape) != shape:
            raise ValueError(
                f"The concept must change weights that {type(model).__name__} has, in their own shapes, got "
                f"{name[:100]!r} {list(tensor.shape)}."
            )


def active_adapters(model: nn.Module) -> list[str]:
    """The adapters of a model that compute every row of a batch.

    Args:
        model: Of diffusers.

    Returns:
        Their names.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> active_adapters(load_demo_pipeline().unet)
        []
    """
    return list(model.active_adapters()) if getattr(model, "peft_config", None) else []


@contextmanager
def keep_active(model: nn.Module) -> Iterator[None]:
    """Whatever happens to adapters in the block, those that were active before are active afterwards.

    And the weights that PEFT freezes for a new one may learn again.

    Args:
        model: Of diffusers.

    Yields:
        Nothing.

    Example:
        >>> with keep_active(pipe.unet):  # doctest: +SKIP
        ...     pipe.unet.add_adapter(config, "trial")
    """
    before = active_adapters(model)
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several are what we want
            yield
    finally:
        if getattr(model, "peft_config", None):
            model.set_adapter(before)
        for parameter, learnt in learns:
            parameter.requires_grad_(learnt)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter out; with the last one the model's layers are again the ones of before.

    Args:
        model: Of diffusers.
        name: Of the adapter.

    Example:
        >>> remove_adapter(pipe.unet, "trial")  # doctest: +SKIP
    """
    if name in active_adapters(model):
        model.set_adapter([other for other in active_adapters(model) if other != name])
    model.delete_adapters(name)
    if not getattr(model, "peft_config", None):
        model.unload_lora()


class RowAdapters(NamedTuple):
    """What adapters compute of a batch, beside those that are active and compute all of it.

    Args:
        groups: Adapter, weight, and the rows to which it adds that much of its change.
        left_out: Adapters that compute no other rows, even if they are active.
        num_rows: Of the batch; None where `groups` is empty.
        image_rows: Whether each row reads the picture of an IP-Adapter; None where all do. [rows]
    """

    groups: tuple[tuple[str, float, tuple[int, ...]], ...] = ()
    left_out: tuple[str, ...] = ()
    num_rows: int | None = None
    image_rows: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[str, float]]], left_out: Sequence[str] = ()) -> "RowAdapters":
        """Sort the rows of a batch by adapter.

        Args:
            rows: For each row the adapters that compute it, with their weights; those of weight 0 do not.
            left_out: As above.

        Returns:
            The groups.

        Example:
            >>> RowAdapters.of([[], [("ada", 1.0)], [("ada", 1.0), ("ink", 0.5)]]).groups
            (('ada', 1.0, (1, 2)), ('ink', 0.5, (2,)))
        """
        groups = {}
        for number, pairs in enumerate(rows):
            for pair in pairs:
                groups.setdefault(pair, []).append(number)
        return cls(
            tuple((name, weight, tuple(numbers)) for (name, weight), numbers in groups.items() if weight != 0),
            tuple(left_out),
            len(rows),
        )


# What computes the batch that this thread is predicting. Hooks on a layer are shared by all pipelines around its model,
# so what they read must belong to one thread.
NOBODY = RowAdapters()
_ROWS: ContextVar[RowAdapters] = ContextVar("adapters of rows", default=NOBODY)
_FOLLOWING = threading.Lock()


class _CompiledRows:
    """What compiled code reads instead: torch.compile traces no context variable. One thread at a time."""

    rows = RowAdapters()
    lock = threading.RLock()


def follow_rows(model: nn.Module) -> None:
    """Let the layers that have adapters ask, whenever they run, which of them computes which row.

    PEFT has a way of its own, `adapter_names`, with one adapter for a row, and none that is active for all of them. So
    active ones are left to PEFT, and what belongs to some rows only is added to its output.

    Args:
        model: With adapters of PEFT, or without.

    Example:
        >>> follow_rows(pipe.unet)  # doctest: +SKIP
        >>> with computed_by(RowAdapters.of([[], [("ada", 1.0)]])):  # doctest: +SKIP
        ...     output = pipe.unet(latents, t, states)
    """
    with _FOLLOWING:
        for layer in model.modules():
            if hasattr(layer, "lora_A") and _add_rows not in layer._forward_hooks.values():
                layer.register_forward_pre_hook(_leave_out, with_kwargs=True)
                layer.register_forward_hook(_add_rows, with_kwargs=True)


@contextmanager
def computed_by(rows: RowAdapters, *, compiled: bool = False) -> Iterator[None]:
    """In the block, adapters compute every batch of this thread as `rows` says.

    Args:
        rows: Which adapter computes which row; with nothing in it, active adapters compute all.
        compiled: Whether the model that computes is compiled, as [`is_compiled`] says.

    Yields:
        Nothing.

    Example:
        >>> with computed_by(RowAdapters()):
        ...     pass
    """
    before = _ROWS.set(rows)
    try:
        if compiled:
            with _CompiledRows.lock:
                outer, _CompiledRows.rows = _CompiledRows.rows, rows
                try:
                    yield
                finally:
                    _CompiledRows.rows = outer
        else:
            yield
    finally:
        _ROWS.reset(before)


def _current_rows() -> RowAdapters:
    return _CompiledRows.rows if torch.compiler.is_compiling() else _ROWS.get()


def _leaves_out(layer: nn.Module, rows: RowAdapters) -> bool:
    """Whether PEFT must not compute what is active in a layer, because some of it belongs to some rows only."""
    return not (layer.merged or layer.disable_adapters) and any(name in rows.left_out for name in layer.active_adapters)


def _leave_out(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    if _leaves_out(layer, _current_rows()):
        return args, kwargs | {"adapter_names": (BASE,) * len(args[0])}
    return None


def _add_rows(layer: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
    rows, batch, dtype = _current_rows(), args[0], output.dtype
    if _leaves_out(layer, rows):
        for name in layer.active_adapters:
            if name not in rows.left_out and name in layer.lora_A:
                output = output + _change(layer, name, 1.0, batch)
    for name, weight, numbers in rows.groups:
        if name not in layer.lora_A:
            continue
        if len(batch) != rows.num_rows:
            raise ValueError(f"Adapters compute some of {rows.num_rows} rows, got a batch of {len(batch)}.")
        if len(numbers) == len(batch):
            output = output + _change(layer, name, weight, batch)
        else:
            is_run = numbers[-1] - numbers[0] + 1 == len(numbers)
            some = slice(numbers[0], numbers[-1] + 1) if is_run else list(numbers)
            output[some] += _change(layer, name, weight, batch[some]).to(output.dtype)
    return output.to(dtype)


def _change(layer: nn.Module, name: str, weight: float, batch: torch.Tensor) -> torch.Tensor:
    """What an adapter adds to a layer's output, in PEFT's own arithmetic."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    return up(down(layer.lora_dropout[name](batch.to(down.weight.dtype)))) * (layer.scaling[name] * weight)


def follow_image_rows(projection: nn.Module) -> None:
    """Let what reads an IP-Adapter's pictures ask, whenever it runs, which rows have one: the others' tokens are 0.

    Args:
        projection: The UNet's `encoder_hid_proj`, with IP-Adapters.

    Example:
        >>> follow_image_rows(pipe.unet.encoder_hid_proj)  # doctest: +SKIP
    """
    with _FOLLOWING:
        if _keep_image_rows not in projection._forward_hooks.values():
            projection.register_forward_hook(_keep_image_rows)


def _keep_image_rows(projection: nn.Module, args: tuple, output: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """Tokens [rows, n, T, D] of each IP-Adapter"""
    reads = _current_rows().image_rows
    if reads is None:
        return None
    return [torch.where(reads.view(-1, *[1] * (tokens.ndim - 1)), tokens, 0) for tokens in output]


def is_compiled(model: nn.Module) -> bool:
    """Whether a model, or a part of it, was given to `torch.compile`.

    Args:
        model: Any.

    Returns:
        True if so, in place or wrapped.

    Example:
        >>> is_compiled(nn.Linear(2, 2))
        False
    """
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())


def with_changes(model: nn.Module, changes: dict[str, torch.Tensor], scale: float) -> nn.Module:
    """A model with W + scale ΔW in place of W, beside the one that it is made of.

    It shares every weight that isn't changed. The model itself stays as it is, because other calls may be computing
    with it at this moment. A compiled model is not compiled again for it.

    Args:
        model: Whose weights they are.
        changes: ΔW of each changed weight, by its name.
        scale: By which the changes are multiplied.

    Returns:
        A model of the same class.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> changed = with_changes(layer, {"weight": 2 - layer.weight.data}, 1.0)
        >>> changed.weight.item(), changed.weight is layer.weight
        (2.0, False)
    """
    model = getattr(model, "_orig_mod", model)
    weights = base_hash.base_weights(model)
    in_place_of = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, change in changes.items():
        changed = weights[name].data + scale * change.to(weights[name])
        in_place_of[id(weights[name])] = nn.Parameter(changed, requires_grad=False)
    return copy.deepcopy(model, in_place_of)


def is_offloaded(model: nn.Module) -> bool:
    """Whether layers fetch their weights from elsewhere when they run, so that nobody else can change them.

    Args:
        model: Of diffusers.

    Returns:
        True under sequential or group off-loading.

    Example:
        >>> is_offloaded(nn.Linear(2, 2))
        False
    """
    hooks = [layer._diffusers_hook.hooks for layer in model.modules() if hasattr(layer, "_diffusers_hook")]
    return any("group_offloading" in names for names in hooks) or any(weight.is_meta for weight in model.parameters())
