"""The weights that learn while customising: put in, taken out again, and the optimiser that moves them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..method.adapters import keep_active, remove_adapter
from ..method.base_hash import base_weights
from .config import CustomizeConfig

LEARNING = "customizing"  # the adapter's name while it learns
PROJECTIONS = ("to_q", "to_k", "to_v")


class LearningWeights(NamedTuple):
    """What [`learning_weights`] yields.

    Args:
        weights: What learns, in float32, by the name it has in a [`Concept`].
        before: The tensors that it began with, in full mode.
    """

    weights: dict[str, nn.Parameter]
    before: dict[str, torch.Tensor]


@contextmanager
def learning_weights(pipe: DiffusionPipeline, config: CustomizeConfig) -> Iterator[LearningWeights]:
    """Only what `config.mode` says learns, in float32; when the block ends, every weight is the tensor of before.

    Args:
        pipe: Whose UNet and PromptNet learn.
        config: `mode`, `rank` and `seed` are read.

    Yields:
        The weights that learn.

    Raises:
        ImportError: PEFT isn't installed, in lora mode.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> with learning_weights(load_demo_pipeline(), CustomizeConfig(mode="full")) as learning:
        ...     len([name for name in learning.weights if name.startswith("unet.")])
        42
    """
    models = {"unet": pipe.unet, "promptnet": pipe.promptnet}
    with ExitStack() as undo:
        if config.mode == "lora":
            weights = undo.enter_context(adapters(models, rank=config.rank, seed=config.seed))
        else:
            weights = {
                f"{component}.{name}": weight
                for component, model in models.items()
                for name, weight in base_weights(model).items()
                if component == "promptnet" or name.split(".")[-2] in PROJECTIONS
            }
        before = undo.enter_context(only_learning((*models.values(), *pipe._text_encoders), weights))
        yield LearningWeights(weights, before if config.mode == "full" else {})


@contextmanager
def only_learning(models: Iterable[nn.Module], weights: dict[str, nn.Parameter]) -> Iterator[dict[str, torch.Tensor]]:
    """Of some models only some weights learn, in float32; when the block ends, all are as before.

    Args:
        models: Of which nothing else learns.
        weights: What learns, by any names; it may be of no model.

    Yields:
        The tensors that they began with, by the same names.

    Example:
        >>> line = nn.Linear(2, 2)
        >>> with only_learning([line], {"weight": line.weight}):
        ...     line.bias.requires_grad
        False
    """
    with ExitStack() as undo:
        parameters = [*(parameter for model in models for parameter in model.parameters()), *weights.values()]
        for parameter in parameters:
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        before = {name: weight.data for name, weight in weights.items()}
        for weight in weights.values():
            undo.callback(setattr, weight, "data", weight.data)
            undo.callback(setattr, weight, "grad", None)
            weight.data = weight.data.to(torch.float32, copy=True)
            weight.requires_grad_(True)
        yield before


@contextmanager
def adapters(
    models: dict[str, nn.Module], *, rank: int, seed: int = 0, projections: Sequence[str] = PROJECTIONS
) -> Iterator[dict[str, nn.Parameter]]:
    """For the length of the block, models have one LoRA adapter more, that does nothing yet.

    Args:
        models: By the name that their weights' names begin with.
        rank: Of the adapter.
        seed: Of its first weights.
        projections: The layers of attention that it changes.

    Yields:
        The adapter's weights, by the name they have in a [`Concept`].

    Raises:
        ImportError: PEFT isn't installed.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> with adapters({"unet": load_demo_pipeline().unet}, rank=4) as weights:
        ...     len(weights)
        84
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(
            "Customising in lora mode needs PEFT: `pip install peft`, or choose `mode='full'`."
        ) from error
    weights = {}
    with ExitStack() as undo:
        for component, model in models.items():
            undo.enter_context(keep_active(model))
            undo.callback(remove_adapter, model, LEARNING)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(projections))
                model.add_adapter(config, LEARNING)
            for name, weight in model.named_parameters():
                if f".{LEARNING}." in name:
                    weights[f"{component}.{name.replace(f'.{LEARNING}.', '.')}"] = weight
        yield weights


def make_optimizer(config: CustomizeConfig, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, in 32 or 8 bits.

    Args:
        config: `optimizer`, learning rate and `weight_decay` are read.
        weights: What it moves.

    Returns:
        The optimiser.

    Raises:
        ImportError: bitsandbytes isn't installed, for the 8 bits.

    Example:
        >>> type(make_optimizer(CustomizeConfig(), [nn.Parameter(torch.zeros(1))])).__name__
        'AdamW'
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=config.rate, weight_decay=config.weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError("`optimizer` 'adamw8bit' needs bitsandbytes: `pip install bitsandbytes`.") from error
    return AdamW8bit(weights, lr=config.rate, weight_decay=config.weight_decay)
