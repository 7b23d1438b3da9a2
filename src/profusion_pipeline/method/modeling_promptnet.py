"""PromptNet: one look at a picture -> the pseudo word(s) S* of its subject.

    code name                paper    what
    sample                   z        clean latents of the reference picture            [B, C, h, w]
    promptnet_cond           x_t      noisy latents of the picture being made           [B, C, h, w]
    encoder_hidden_states    V        last hidden state of the CLIP vision tower        [B, N, V]
    prompt_embeds            S*       rows for the text encoder's embedding sequence    [B, L, D]

This file is also the component's file in a Hub repository, so it imports no other file of the package.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn, get_down_block
from diffusers.utils import BaseOutput
from torch import nn

# `from_unet` takes over every setting that PromptNet shares with a UNet. These a UNet may vary from block to block:
UNIFORM_SETTINGS = ("layers_per_block", "cross_attention_dim", "only_cross_attention")
# These concern its decoder, or what it is told besides latents and time: they may have any value. Every other setting
# must have the UNet's default, because PromptNet has no counterpart of it.
FOREIGN_SETTINGS = """sample_size out_channels up_block_types reverse_transformer_layers_per_block conv_out_kernel
    encoder_hid_dim encoder_hid_dim_type addition_embed_type addition_embed_type_num_heads addition_time_embed_dim
    projection_class_embeddings_input_dim mid_block_only_cross_attention""".split()


def _grid_stride(block_out_channels: tuple[int, ...]) -> int:
    return max(8, 2 ** (len(block_out_channels) - 1))


def _of_each_block(name: str, value: int | Sequence[int], num_blocks: int) -> list[int]:
    values = [value] * num_blocks if isinstance(value, int) else list(value)
    if len(values) != num_blocks:
        raise ValueError(
            f"`{name}` has {len(values)} entries, but there are {num_blocks} blocks: give one number, or one for each "
            "block."
        )
    return values


@dataclass
class PromptNetOutput(BaseOutput):
    """What [`PromptNet`] returns.

    Args:
        prompt_embeds: The pseudo words S*: L rows as wide as the text encoder, to stand in place of token and position
            embedding. [B, L, D]
    """

    prompt_embeds: torch.Tensor


class PromptNet(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    r"""S* = PromptNet(z, t, V, x_t): the encoder half of a UNet that reads a reference picture into pseudo words.

    h_0 = conv_in(z) + E(x_t), where E is two convolutions, runs through the UNet's down and mid blocks with Linear(V)
    as context. Strided convolutions ("taps") bring h_0 and the output of every block to one grid, 1/8 of the latent
    grid (1/2^(n-1) for more than four blocks); a last strided convolution turns `region_kernel_size` x
    `region_kernel_size` cells of that grid into one pseudo word, so that L = 1 at the trained size. The names of all
    parameters are those of the authors' release.

    Args:
        in_channels: Channels of the latents.
        flip_sin_to_cos, freq_shift: As in the UNet's time embedding.
        down_block_types: Down blocks, by diffusers' names; every one but the last halves the grid.
        only_cross_attention, layers_per_block, downsample_padding,
        mid_block_scale_factor, dropout, act_fn, norm_num_groups,
        norm_eps, transformer_layers_per_block, use_linear_projection,
        upcast_attention, resnet_time_scale_shift: As in `UNet2DConditionModel`.
        block_out_channels: Width of each block.
        cross_attention_dim: Width of the context that the blocks attend to.
        attention_head_dim: *Number* of heads, of all blocks or of each: the UNet's misnomer.
        image_embed_dim: Width of the vision tower's hidden states.
        text_embed_dim: Width of the text encoder's embeddings, D.
        region_kernel_size: Side of the square of grid cells that makes one pseudo word.
        region_proj_channel: Width of each tap.

    Source: Zhou et al. 2023, "Enhancing Detail Preservation for Customized Text-to-Image Generation: A
    Regularization-Free Approach" (arXiv 2305.13579), section 3.1, and the authors' code.

    Example:
        >>> import torch
        >>> from profusion_pipeline import PromptNet
        >>> promptnet = PromptNet(
        ...     block_out_channels=(32, 64),
        ...     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        ...     attention_head_dim=4,
        ...     cross_attention_dim=64,
        ...     image_embed_dim=48,
        ...     text_embed_dim=64,
        ...     region_kernel_size=1,
        ... )
        >>> z, x_t, states = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 48)
        >>> promptnet(z, 500, states, x_t).prompt_embeds.shape
        torch.Size([2, 1, 64])
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D"]
    _skip_layerwise_casting_patterns = ["norm"]
    _repeated_blocks = ["BasicTransformerBlock"]

    # Its blocks are a UNet's, and so is what can be done with their attention.
    set_attention_slice = UNet2DConditionModel.set_attention_slice
    set_default_attn_processor = UNet2DConditionModel.set_default_attn_processor
    fuse_qkv_projections = UNet2DConditionModel.fuse_qkv_projections
    unfuse_qkv_projections = UNet2DConditionModel.unfuse_qkv_projections

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        only_cross_attention: bool = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        attention_head_dim: int | tuple[int, ...] = (5, 10, 20, 20),
        use_linear_projection: bool = True,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        image_embed_dim: int = 1280,
        text_embed_dim: int = 1024,
        region_kernel_size: int = 8,
        region_proj_channel: int = 128,
    ):
        super().__init__()
        num_blocks = len(block_out_channels)
        if len(down_block_types) != num_blocks:
            raise ValueError(
                f"`down_block_types` names {len(down_block_types)} blocks, but `block_out_channels` has {num_blocks}."
            )
        num_heads = _of_each_block("attention_head_dim", attention_head_dim, num_blocks)
        depths = _of_each_block("transformer_layers_per_block", transformer_layers_per_block, num_blocks)

        width = block_out_channels[0]
        time_embed_dim = 4 * width
        self.conv_in = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(width, time_embed_dim, act_fn=act_fn)
        self.promptnet_cond_embedding = nn.Sequential()  # E, with the names of the release
        self.promptnet_cond_embedding.add_module("conv_in", nn.Conv2d(in_channels, width, kernel_size=3, padding=1))
        self.promptnet_cond_embedding.add_module("silu", nn.SiLU())
        self.promptnet_cond_embedding.add_module("conv_out", nn.Conv2d(width, width, kernel_size=3, padding=1))
        self.vision_embedding = nn.Linear(image_embed_dim, cross_attention_dim)

        def tap(channels: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(channels, region_proj_channel, kernel_size=stride, stride=stride)

        stride = self.grid_stride
        self.first_prompt_projection = tap(width, stride)
        shared = dict(  # of all blocks
            temb_channels=time_embed_dim,
            resnet_eps=norm_eps,
            resnet_act_fn=act_fn,
            resnet_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            use_linear_projection=use_linear_projection,
            upcast_attention=upcast_attention,
            resnet_time_scale_shift=resnet_time_scale_shift,
            dropout=dropout,
        )
        self.down_blocks = nn.ModuleList()
        self.down_prompt_projections = nn.ModuleList()
        for i, (block_type, out_width) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            is_last = i == num_blocks - 1
            block = get_down_block(
                block_type,
                num_layers=layers_per_block,
                transformer_layers_per_block=depths[i],
                in_channels=width,
                out_channels=out_width,
                add_downsample=not is_last,
                num_attention_heads=num_heads[i],
                attention_head_dim=num_heads[i],
                downsample_padding=downsample_padding,
                only_cross_attention=only_cross_attention,
                **shared,
            )
            self.down_blocks.append(block)
            stride = stride if is_last else stride // 2
            self.down_prompt_projections.append(tap(out_width, stride))
            width = out_width
        self.mid_block = UNetMidBlock2DCrossAttn(
            transformer_layers_per_block=depths[-1],
            in_channels=width,
            output_scale_factor=mid_block_scale_factor,
            num_attention_heads=num_heads[-1],
            **shared,
        )
        self.mid_prompt_projection = tap(width, stride)
        self.region_prompt_output = nn.Conv2d(
            (num_blocks + 2) * region_proj_channel,
            text_embed_dim,
            kernel_size=region_kernel_size,
            stride=region_kernel_size,
        )

    @classmethod
    def from_config(cls, config, **kwargs):
        """As `ConfigMixin.from_config`, but a setting that PromptNet doesn't have is an error, not a warning.

        Args:
            config: Settings by name.
            **kwargs: As of `ConfigMixin.from_config`.

        Raises:
            ValueError: If `config` holds a setting that PromptNet doesn't know.
        """
        known = set(inspect.signature(cls.__init__).parameters) | {"quantization_config"}
        unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
        if unknown:
            raise ValueError(
                f"PromptNet has no setting {', '.join(f'`{key}`' for key in unknown)}. If this is a checkpoint in the "
                "layout of the authors' release, `profusion convert` brings it to this one."
            )
        return super().from_config(config, **kwargs)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        *,
        image_embed_dim: int,
        text_embed_dim: int | None = None,
        region_kernel_size: int | None = None,
        region_proj_channel: int = 128,
    ) -> "PromptNet":
        """Starts a PromptNet from a UNet: encoder copied, taps and pseudo word head fresh (torch's default).

        Args:
            unet: The UNet that PromptNet shall work with. It isn't changed.
            image_embed_dim: Width of the vision tower's hidden states.
            text_embed_dim: Width of the text encoder's embeddings. As wide as the text states that
                `unet` takes, if not given.
            region_kernel_size: Side of the square of grid cells that makes one pseudo word. If not
                given, all of the grid at `unet.config.sample_size`, so that L = 1 there.
            region_proj_channel: Width of each tap.

        Returns:
            `PromptNet`, in the UNet's dtype and on its device.

        Raises:
            ValueError: If the UNet has a setting that PromptNet has no counterpart of, or `region_kernel_size` is
                missing where `unet.config.sample_size` doesn't say it.

        Example:
            >>> from profusion_pipeline import PromptNet, load_demo_pipeline
            >>> unet = load_demo_pipeline().unet
            >>> promptnet = PromptNet.from_unet(unet, image_embed_dim=192)
        """
        ours = inspect.signature(cls.__init__).parameters
        theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
        for name, parameter in theirs.items():
            value = unet.config.get(name, parameter.default)
            if name not in (*ours, *FOREIGN_SETTINGS) and value != parameter.default:
                raise ValueError(
                    f"PromptNet can't be built like this UNet: `{name}` is {value!r}; only "
                    f"{parameter.default!r} works here."
                )
        for name in UNIFORM_SETTINGS:
            if not isinstance(unet.config[name], int):
                raise ValueError(
                    f"PromptNet can't be built like this UNet: `{name}` is {unet.config[name]!r}, only one value "
                    "for all blocks works."
                )
        settings = {name: unet.config[name] for name in theirs if name in ours and name != "self"}
        if region_kernel_size is None:
            region_kernel_size = cls._whole_grid(unet)
        if text_embed_dim is None:
            text_embed_dim = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
        promptnet = cls(
            **settings,
            image_embed_dim=image_embed_dim,
            text_embed_dim=text_embed_dim,
            region_kernel_size=region_kernel_size,
            region_proj_channel=region_proj_channel,
        )
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            getattr(promptnet, name).load_state_dict(getattr(unet, name).state_dict())
        return promptnet.to(unet.device, unet.dtype)

    @staticmethod
    def _whole_grid(unet: UNet2DConditionModel) -> int:
        size, stride = unet.config.sample_size, _grid_stride(unet.config.block_out_channels)
        if not isinstance(size, int) or size % stride:
            raise ValueError(
                f"`region_kernel_size` must be given: the UNet's `sample_size` is {size!r}, "
                f"not one multiple of {stride}."
            )
        return size // stride

    def to_json_string(self) -> str:
        """The config, as it is written, without the place that this PromptNet was loaded from.

        Returns:
            JSON.
        """
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2) + "\n"

    @property
    def grid_stride(self) -> int:
        """Latent cells per grid cell, along one side: 8, or 2^(n-1) with n > 4 blocks."""
        return _grid_stride(self.config.block_out_channels)

    def num_subject_tokens(self, height: int, width: int) -> int:
        """L, the number of pseudo words for latents of `height` x `width` cells.

        Args:
            height: Rows of the latents.
            width: Columns of the latents.

        Raises:
            ValueError: If a side isn't a multiple of `grid_stride`, or too small for one pseudo word.
        """
        stride, kernel = self.grid_stride, self.config.region_kernel_size
        if height % stride or width % stride or min(height, width) < stride * kernel:
            raise ValueError(
                f"PromptNet reads latents whose sides are multiples of {stride} and at least {stride * kernel}, "
                f"not {height} x {width}."
            )
        return (height // stride // kernel) * (width // stride // kernel)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        promptnet_cond: torch.Tensor,
        return_dict: bool = True,
    ) -> PromptNetOutput | tuple[torch.Tensor]:
        """S* = PromptNet(z, t, V, x_t).

        Args:
            sample: Clean latents of the reference pictures, z. [B, C, h, w]
            timestep: t, one for all or one for each. [B]
            encoder_hidden_states: Vision states of the references, all tokens. [B, N, V]
            promptnet_cond: Noisy latents x_t, of the size of `sample`. [B, C, h, w]
            return_dict: Whether to return a [`PromptNetOutput`] or a tuple.

        Returns:
            A [`PromptNetOutput`] or a tuple: S*, L in row-major order of the grid. [B, L, D]

        Raises:
            ValueError: If sizes of the latents differ, or don't fit the grid.
        """
        if sample.shape != promptnet_cond.shape:
            raise ValueError(
                f"`promptnet_cond` must have the shape of `sample`, {tuple(sample.shape)}, not "
                f"{tuple(promptnet_cond.shape)}."
            )
        self.num_subject_tokens(*sample.shape[-2:])

        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])  # [B]
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))  # [B, 4 C0]
        context = self.vision_embedding(encoder_hidden_states)  # [B, N, cross_attention_dim]

        hidden = self.conv_in(sample) + self.promptnet_cond_embedding(promptnet_cond)  # [B, C0, h, w]
        taps = [self.first_prompt_projection(hidden)]  # each [B, P, h/8, w/8]
        for block, projection in zip(self.down_blocks, self.down_prompt_projections, strict=True):
            if getattr(block, "has_cross_attention", False):
                hidden, _ = block(hidden, temb=time, encoder_hidden_states=context)
            else:
                hidden, _ = block(hidden, temb=time)
            taps.append(projection(hidden))
        hidden = self.mid_block(hidden, temb=time, encoder_hidden_states=context)
        taps.append(self.mid_prompt_projection(hidden))

        regions = self.region_prompt_output(torch.cat(taps, dim=1))  # [B, D, rows, columns]
        prompt_embeds = regions.flatten(2).transpose(1, 2)  # [B, L, D]
        return PromptNetOutput(prompt_embeds=prompt_embeds) if return_dict else (prompt_embeds,)
