"""Pre-training of E4T: its encoder and its offsets learn on many pictures, as a PromptNet does, but for the loss."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ...common.files import whole_folder
from ...customization.learning_weights import adapters, only_learning
from ...method.modeling_promptnet import PromptNet
from ...method.pipeline_profusion import ProFusionPipeline
from ...training.batches import CachedPictures
from ...training.data import draw_noise
from .e4t import OFFSETS, e4t_loss
from .rival_parts import ATTENTION, WordPrompts, noun_vector, word_prompts


class E4TPretraining(nn.Module):
    """An objective: a number that no other step gets -> the loss of one batch; made by [`pretraining_e4t`].

    Args:
        pipe: With the offsets in its UNet.
        encoder: A PromptNet.
        offsets: The weights of the offsets, by name.
        source: Of the pictures.
        prompt: Under which a picture is to be brought back.
        noun: v_c, the class noun's vector. [D]
        batch_size: Pictures of one loss.
        offset_l2: λ.
        seed: Decides noise and timesteps.

    Example:
        >>> with pretraining_e4t(pipe, source) as objective:  # doctest: +SKIP
        ...     objective(0).backward()
    """

    def __init__(
        self,
        pipe: ProFusionPipeline,
        encoder: PromptNet,
        offsets: dict[str, nn.Parameter],
        source: CachedPictures,
        prompt: WordPrompts,
        noun: torch.Tensor,
        *,
        batch_size: int,
        offset_l2: float,
        seed: int,
    ):
        super().__init__()
        self.unet, self.text_encoder, self.encoder = pipe.unet, pipe.text_encoder, encoder
        self.offsets, self.source = offsets, source
        self.batch_size, self.offset_l2, self.seed = batch_size, offset_l2, seed
        self.prediction_type = pipe.scheduler.config.prediction_type
        self.register_buffer("noun", noun)
        self.register_buffer("input_ids", prompt.input_ids)
        self.register_buffer("positions", prompt.positions)
        self.register_buffer("alphas_cumprod", pipe.scheduler.alphas_cumprod.clone())

    def forward(self, draw: int) -> torch.Tensor:
        """The loss of batch number `draw`.

        Args:
            draw: Decides the pictures, their noise and their timesteps.

        Returns:
            The loss `[]`.
        """
        device = self.noun.device
        numbers = range(draw * self.batch_size, (draw + 1) * self.batch_size)
        mean, std, reference, states, _ = next(self.source.batches([numbers])).to(device)
        draws = draw_noise(
            numbers, seed=self.seed, num_timesteps=len(self.alphas_cumprod), latent_shape=tuple(mean.shape[1:])
        )
        timesteps, noise, posterior_noise = (part.to(device) for part in draws)
        return e4t_loss(
            self.unet,
            self.text_encoder,
            self.encoder,
            self.noun,
            WordPrompts(self.input_ids, self.positions),
            latents=mean + std * posterior_noise,
            reference_latents=reference,
            image_states=states,
            noise=noise,
            timesteps=timesteps,
            alphas_cumprod=self.alphas_cumprod,
            prediction_type=self.prediction_type,
            offset_l2=self.offset_l2,
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write encoder and offsets in float16, whole or not at all.

        Args:
            folder: An older one is replaced.
        """
        with whole_folder(folder) as part:
            nn.Module.half(copy.deepcopy(self.encoder)).save_pretrained(part)
            save_file({name: weight.detach().half().cpu() for name, weight in self.offsets.items()}, part / OFFSETS)


@contextmanager
def pretraining_e4t(
    pipe: ProFusionPipeline,
    source: CachedPictures,
    *,
    class_noun: str = "person",
    prompt: str = "a photo of S*",
    batch_size: int = 8,
    rank: int = 8,
    region_proj_channel: int = 128,
    offset_l2: float = 0.01,
    seed: int = 0,
    frozen_dtype: torch.dtype = torch.float32,
) -> Iterator[E4TPretraining]:
    """For the length of the block, an encoder begun from the UNet and offsets begun at nothing can learn.

    Args:
        pipe: In float32; its PromptNet isn't used.
        source: Of the pictures.
        class_noun: What is in the pictures.
        prompt: Under which a picture is to be brought back.
        batch_size: Pictures of one loss.
        rank: Of the offsets.
        region_proj_channel: As of a new PromptNet.
        offset_l2: λ, weight of the regulariser.
        seed: Decides first weights, noise and timesteps.
        frozen_dtype: Of UNet and text encoder while the block runs.

    Yields:
        The objective; its parameters that require a gradient learn.

    Example:
        >>> with pretraining_e4t(pipe, source, class_noun="a person") as objective:  # doctest: +SKIP
        ...     fit(objective)
        ...     objective.save_pretrained("rivals/e4t")
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = PromptNet.from_unet(
            pipe.unet,
            image_embed_dim=pipe.image_encoder.config.hidden_size,
            text_embed_dim=pipe.text_encoder.config.hidden_size,
            region_proj_channel=region_proj_channel,
        )
    noun, side = noun_vector(pipe, class_noun), pipe.unet.config.sample_size
    places = word_prompts(pipe, [prompt], class_noun, num_words=encoder.num_subject_tokens(side, side))
    with ExitStack() as undo:
        for model in (pipe.unet, pipe.text_encoder):
            for parameter in model.parameters():
                undo.callback(setattr, parameter, "data", parameter.data)
                parameter.data = parameter.data.to(frozen_dtype)
        offsets = undo.enter_context(adapters({"unet": pipe.unet}, rank=rank, seed=seed, projections=ATTENTION))
        learning = offsets | {f"encoder.{name}": weight for name, weight in encoder.named_parameters()}
        undo.enter_context(only_learning((pipe.unet, pipe.text_encoder), learning))
        settings = dict(batch_size=batch_size, offset_l2=offset_l2, seed=seed)
        yield E4TPretraining(pipe, encoder, offsets, source, places, noun, **settings)
