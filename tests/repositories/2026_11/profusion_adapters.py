"""What a concept changes in a model: adapters of PEFT that compute some rows of a batch, or the weights themselves."""

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

BASE = "__base__"  # PEFT's name for "no adapter"
SAMPLED = 2**16  # entries of a weight that count for the hash, at most


def base_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a model by the names they have without adapters.

    Args:
        model: With or without adapters of PEFT, compiled or not.

    Returns:
        Name -> parameter, without those of adapters.

    Example:
        >>> list(base_weights(nn.Linear(2, 2)))
        ['weight', 'bias']
    """
    return {
        name.replace(".base_layer.", ".").replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


def base_hash(unet: nn.Module, text_encoder: nn.Module, promptnet: nn.Module) -> str:
    """A hash of the weights that a concept depends on, the same for copies in float32, float16 and bfloat16.

    It is taken over the signs of the weights, which no rounding changes; of large tensors 65,536 evenly spread entries
    count. The table of token embeddings is left out, because textual inversion adds rows to it.

    Args:
        unet: Of the pipeline.
        text_encoder: Of the pipeline.
        promptnet: Of the pipeline.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: The weights are not in memory, as under sequential off-loading.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> len(base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet))
        64
    """
    digest = hashlib.sha256()
    for model in (unet, text_encoder, promptnet):
        # transformers 4 nests what 5 doesn't
        weights = {name.removeprefix("text_model."): weight for name, weight in base_weights(model).items()}
        for name in sorted(name for name in weights if not name.endswith("token_embedding.weight")):
            weight = weights[name].detach()
            if weight.is_meta:
                raise ValueError(
                    f"The weights of {type(model).__name__} are not in memory: load, unload and make concepts before "
                    "`enable_sequential_cpu_offload`."
                )
            signs = weight.flatten()[:: math.ceil(weight.numel() / SAMPLED)].signbit()
            digest.update(f"{tuple(weight.shape)}".encode() + np.packbits(signs.cpu().numpy()).tobytes())
    return digest.hexdigest()


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


class RowAdapters:
    """Says which adapter of a model computes which row of a batch: PEFT's layers are told by hooks.

    The hooks stay as long as the adapters do, so that a prediction only says whose rows it has.

    Example:
        >>> rows = RowAdapters()
        >>> rows.follow(pipe.unet)  # doctest: +SKIP
        >>> with rows.computed_by(("__base__", "concept_ada")):  # doctest: +SKIP
        ...     output = pipe.unet(latents, t, states)
    """

    def __init__(self):
        self._names: tuple[str, ...] = ()
        self._hooks: list[RemovableHandle] = []

    def follow(self, model: nn.Module) -> None:
        """Put hooks on the layers that have adapters now, in place of those of before.

        Args:
            model: With adapters of PEFT or without.
        """
        for hook in self._hooks:
            hook.remove()
        layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
        self._hooks = [layer.register_forward_pre_hook(self._tell, with_kwargs=True) for layer in layers]

    @contextmanager
    def computed_by(self, names: tuple[str, ...]) -> Iterator[None]:
        """In the block, row i of every batch is computed with the adapter `names[i]`.

        Args:
            names: One for each row, "__base__" for none; or nothing, for the adapters that are active.

        Yields:
            Nothing.
        """
        self._names = names
        try:
            yield
        finally:
            self._names = ()

    def _tell(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        return (args, kwargs | {"adapter_names": self._names}) if self._names else None


@contextmanager
def changed_weights(model: nn.Module, changes: dict[str, torch.Tensor], scale: float) -> Iterator[None]:
    """W + scale ΔW in place of W while the block runs; afterwards the very tensors of before.

    Args:
        model: Whose weights they are.
        changes: ΔW of each changed weight, by its name.
        scale: By which the changes are multiplied.

    Yields:
        Nothing.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad(), changed_weights(layer, {"weight": 2 - layer.weight}, 1.0):
        ...     layer.weight.item()
        2.0
    """
    weights = base_weights(model)
    before = {name: weights[name].data for name in changes}
    try:
        for name, change in changes.items():
            weights[name].data = before[name] + scale * change.to(before[name])
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data


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
