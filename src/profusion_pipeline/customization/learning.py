"""Optimiser steps on a pool of one subject's pictures: what the customiser and the systems compared with it share."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..method.pipeline_profusion import ProFusionPipeline
from ..training.data import draw_noise
from .config import CustomizeConfig
from .cuda_graph import Replayed
from .learning_weights import make_optimizer
from .subject_pool import EncodedPool

PRECISION = {"fp16": torch.float16, "bf16": torch.bfloat16}


class LearningStep(NamedTuple):
    """What [`Learning.learn`] yields.

    Args:
        step: Steps done, this one included.
        loss: Mean over the step's pairs.
        seconds: Time that the step took.
    """

    step: int
    loss: float
    seconds: float


class Learning(ABC):
    """Optimiser steps on a pool of one subject's pictures. What is made smaller, `objective`, is a subclass's.

    Args:
        pipe: With the learning weights in it.
        config: All settings.
        pool: From which references and targets are drawn.
        weights: What learns.

    Example:
        >>> with customizing(pipe, photo, config) as run:  # doctest: +SKIP
        ...     for record in run.learn():
        ...         print(record.step, record.loss)
    """

    def __init__(
        self, pipe: ProFusionPipeline, config: CustomizeConfig, pool: EncodedPool, weights: Iterable[nn.Parameter]
    ):
        self.pipe, self.config, self.pool, self.weights = pipe, config, pool, list(weights)
        self.step, self.losses = 0, []
        self.device = pipe._execution_device
        self.noise_schedule = dict(
            alphas_cumprod=pipe.scheduler.alphas_cumprod.to(self.device),
            prediction_type=pipe.scheduler.config.prediction_type,
        )
        self.precision = PRECISION.get(config.mixed_precision, pipe.text_encoder.dtype)  # which never learns
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.optimizer = make_optimizer(config, self.weights)
        self.gradients = Replayed(self._gradients) if self._can_be_replayed() else self._gradients

    @abstractmethod
    def objective(self, **pairs: torch.Tensor) -> torch.Tensor:
        """What is made smaller: a function of `pairs` and the weights alone, as [`Replayed`] needs it.

        Args:
            **pairs: As from `draw_pairs`.

        Returns:
            The loss `[]`.
        """

    def learn(self) -> Iterator[LearningStep]:
        """One optimiser step after another, up to `config.steps`; the consumer may stop when it likes.

        Yields:
            A record of each step.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        config = self.config
        while self.step < config.steps:
            started = time.perf_counter()
            first = self.step * config.batch_size
            loss = self.learn_from(**self.draw_pairs(range(first, first + config.batch_size)))
            self.step += 1
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss is {loss} at step {self.step} of {config.steps}, so nothing was made: try a lower "
                    "`learning_rate`, or `mixed_precision='bf16'`."
                )
            self.losses.append(loss)
            yield LearningStep(self.step, loss, time.perf_counter() - started)

    def draw_pairs(self, numbers: Sequence[int], pool: EncodedPool | None = None) -> dict[str, torch.Tensor]:
        """Reference, target, timestep and noise of some pairs, each drawn by its own number.

        Args:
            numbers: Of the pairs, counted over all steps.
            pool: From which they are drawn; the subject's if None.

        Returns:
            Arguments of `promptnet_loss`, on the pipeline's device.
        """
        pool = pool or self.pool
        draws = draw_noise(
            numbers,
            seed=self.config.seed,
            num_timesteps=len(self.noise_schedule["alphas_cumprod"]),
            latent_shape=tuple(pool.mean.shape[1:]),
        )
        target, reference = self.choose(numbers, len(pool.mean)).to(self.device)  # [B], [B]
        posterior_noise = draws.posterior_noise.to(self.device)
        return dict(
            latents=pool.mean[target] + pool.std[target] * posterior_noise,
            reference_latents=pool.mean[reference],
            image_states=pool.image_states[reference],
            noise=draws.noise.to(self.device),
            timesteps=draws.timesteps.to(self.device),
        )

    def choose(self, numbers: Sequence[int], pictures: int) -> torch.Tensor:
        """Which pictures of a pool are target and reference of some pairs.

        Args:
            numbers: Of the pairs, counted over all steps.
            pictures: How many the pool has.

        Returns:
            Targets and references. [2, B]
        """
        generators = [np.random.default_rng((self.config.seed, number)) for number in numbers]
        return torch.from_numpy(np.stack([one.integers(pictures, size=2) for one in generators], axis=1))

    def learn_from(self, **pairs: torch.Tensor) -> float:
        """One optimiser step on given pairs.

        Args:
            **pairs: As from `draw_pairs`.

        Returns:
            The loss before the step.
        """
        loss = self.gradients(**pairs)
        if self.config.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()

    def _gradients(self, **pairs: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        half = self.precision != torch.float32
        with torch.enable_grad(), torch.autocast(self.device.type, self.precision) if half else nullcontext():
            loss = self.objective(**pairs)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _can_be_replayed(self) -> bool:
        if not self.config.cuda_graph or self.device.type != "cuda":
            return False
        # A checkpoint asks the GPU for its random state, and off-loading (accelerate's, diffusers') moves weights.
        layers = [layer for model in (self.pipe.unet, self.pipe.promptnet) for layer in model.modules()]
        off_loaded = any(hasattr(layer, hook) for layer in layers for hook in ("_hf_hook", "_diffusers_hook"))
        return not (self.config.gradient_checkpointing or off_loaded)
