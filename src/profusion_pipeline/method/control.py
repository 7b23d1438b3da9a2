"""ControlNet beside the UNet: pictures of edges, poses or depth that say how a picture is laid out.

The models and their forward are diffusers' own. Here is what each is given: every row of a prediction, with the row's
own text, goes through it as it goes through the UNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from . import call_inputs, checks, framing, guidance_scales, quoting, reference_images

PICTURES = VaeImageProcessor(do_normalize=False)

Residuals = tuple[Sequence[torch.Tensor], torch.Tensor]  # added to the UNet's skip connections, and to its middle


@dataclass(frozen=True)
class ControlInputs:
    """What a call says of its ControlNets, checked: an entry for each of them.

    Args:
        net: The component.
        pictures: RGB, for each ControlNet one for each prompt.
        scales: How much it counts.
        starts: Share of the steps after which it does.
        ends: Share of the steps at which it stops.

    Example:
        >>> ControlInputs(None, ((),), (1.0,), (0.0,), (0.5,)).scales_of_steps(2)
        [(1.0,), (0.0,)]
    """

    net: torch.nn.Module | None
    pictures: tuple[tuple[Image.Image, ...], ...]
    scales: tuple[float, ...]
    starts: tuple[float, ...]
    ends: tuple[float, ...]

    def scales_of_steps(self, num_steps: int) -> list[tuple[float, ...]]:
        """How much each ControlNet counts at each step.

        Args:
            num_steps: Of the call.

        Returns:
            For each step a number for each ControlNet.
        """
        windows = [
            guidance_scales.steps_between(start, end, num_steps)
            for start, end in zip(self.starts, self.ends, strict=True)
        ]
        return [
            tuple(scale * inside for scale, inside in zip(self.scales, step, strict=True))
            for step in zip(*windows, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Control:
    """One step's ControlNets: what they read and how much they count.

    Args:
        net: `ControlNetModel`, or a `MultiControlNetModel` of several.
        pictures: In 0..1, for each ControlNet. [B, 3, H, W]
        scales: How much each counts at this step.

    Example:
        >>> Control(pipe.controlnet, [pictures], (0.8,))  # doctest: +SKIP
    """

    net: torch.nn.Module
    pictures: list[torch.Tensor]
    scales: tuple[float, ...]

    def residuals(
        self,
        latents: torch.Tensor,
        t: torch.Tensor,
        text_states: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
        owner: torch.Tensor,
        num_null: int,
    ) -> Residuals:
        """What ControlNet adds to the UNet for every row of a prediction, from one call.

        Args:
            latents: x_t. [rows, C, h, w]
            t: The timestep.
            text_states: Of each row. [rows, T, D]
            added: What Stable Diffusion XL's UNet reads beside the time, for each row; else None.
            owner: The picture of each row. [rows]
            num_null: How many rows, the first ones, are of ∅. A ControlNet that pools what it reads over the picture
                (`global_pool_conditions`) says nothing to these, as in diffusers.

        Returns:
            Of each row.
        """
        left_out = num_null if nets_of(self.net)[0].config.global_pool_conditions else 0
        if left_out:
            latents, text_states, owner = latents[left_out:], text_states[left_out:], owner[left_out:]
            added = added and {name: tensor[left_out:] for name, tensor in added.items()}
        pictures, several = [picture[owner] for picture in self.pictures], len(self.pictures) > 1
        down, middle = self.net(
            latents,
            t,
            encoder_hidden_states=text_states,
            controlnet_cond=pictures if several else pictures[0],
            conditioning_scale=list(self.scales) if several else self.scales[0],
            added_cond_kwargs=added,
            return_dict=False,
        )
        if not left_out:
            return down, middle
        return [_with_rows_before(one, left_out) for one in down], _with_rows_before(middle, left_out)


def _with_rows_before(residual: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([residual.new_zeros(count, *residual.shape[1:]), residual])


def of_rows(residuals: Residuals, numbers: torch.Tensor) -> Residuals:
    """The residuals of some rows.

    Args:
        residuals: Of all rows.
        numbers: Which. [n]

    Returns:
        Of these.

    Example:
        >>> of_rows(([torch.arange(3)], torch.arange(3)), torch.tensor([2]))
        ([tensor([2])], tensor([2]))
    """
    down, middle = residuals
    return [one[numbers] for one in down], middle[numbers]


def nets_of(controlnet: torch.nn.Module) -> list[torch.nn.Module]:
    """The ControlNets in a component: one, or those of a `MultiControlNetModel`.

    Args:
        controlnet: The component, compiled or not.

    Returns:
        At least one.

    Example:
        >>> len(nets_of(ControlNetModel(block_out_channels=(32,), down_block_types=("DownBlock2D",))))
        1
    """
    net = getattr(controlnet, "_orig_mod", controlnet)
    nets = net.nets if isinstance(net, MultiControlNetModel) else [net]
    return [getattr(one, "_orig_mod", one) for one in nets]


def read(
    components: dict[str, Any],
    control_image: reference_images.Reference | list | None,
    num_prompts: int,
    scale: float | list[float],
    start: float | list[float],
    end: float | list[float],
) -> ControlInputs | None:
    """Read what a call is given for its ControlNets.

    Args:
        components: Of the pipeline, by name; `controlnet` is among them, or None.
        control_image: A picture for all prompts, or a list with one for each. For several ControlNets a list with one
            picture for each of these, or for each prompt such a list, as diffusers has it. None for no control.
        num_prompts: P.
        scale: 0 or more; a list has one for each ControlNet. So it is with the two below.
        start: Share of the steps, 0 to 1.
        end: Share of the steps, 0 to 1, after `start`.

    Returns:
        What was read, or None where no ControlNet is to say anything.

    Raises:
        TypeError: They are of another type.
        ValueError: There is no ControlNet or one for another base model, a number is out of range, a picture can't be
            read, or a list has another length.

    Example:
        >>> read({"controlnet": None}, None, 1, 1.0, 0.0, 1.0) is None
        True
    """
    controlnet = components["controlnet"]
    num_nets = 1 if controlnet is None else len(nets_of(controlnet))
    scales = _list_per_net("controlnet_conditioning_scale", scale, num_nets)
    starts = _list_per_net("control_guidance_start", start, num_nets, at_most=1)
    ends = _list_per_net("control_guidance_end", end, num_nets, at_most=1)
    for first, last in zip(starts, ends, strict=True):
        if not first < last:
            raise ValueError(
                f"`control_guidance_start` must be less than `control_guidance_end`, got {first!r} and {last!r}."
            )
    if control_image is None:
        return None
    if controlnet is None:
        raise ValueError(
            "This pipeline has no `controlnet`, which reads `control_image`: load one with `ControlNetModel`, and the "
            "pipeline with `controlnet=` it."
        )
    check_fits(controlnet, components)
    pictures = _read_pictures(control_image, num_nets, num_prompts)
    return ControlInputs(controlnet, pictures, scales, starts, ends) if any(scales) else None


def _list_per_net(name: str, value: Any, num_nets: int, **limits: float) -> tuple[float, ...]:
    values = list(value) if isinstance(value, list | tuple) else [value] * num_nets
    if len(values) != num_nets:
        raise ValueError(f"`{name}` must have an entry for each of {num_nets} ControlNets, got {len(values)}.")
    return tuple(checks.check_number(name, one, **limits) for one in values)


def _read_pictures(images: Any, num_nets: int, num_prompts: int) -> tuple[tuple[Image.Image, ...], ...]:
    """For each ControlNet a picture for each prompt."""
    name = "control_image"
    picture = reference_images.reading_once(reference_images.load_reference_image, name)
    if num_nets == 1:
        return (tuple(picture(one) for one in call_inputs.list_per_prompt(name, images, num_prompts)),)
    if not isinstance(images, list):
        raise TypeError(f"`{name}` must be a list with a picture for each of {num_nets} ControlNets, got one.")
    nested = [isinstance(one, list) for one in images]
    of_prompts = call_inputs.list_per_prompt(name, images, num_prompts) if any(nested) else [images] * num_prompts
    for of_nets in of_prompts:
        if not isinstance(of_nets, list) or len(of_nets) != num_nets:
            found = len(of_nets) if isinstance(of_nets, list) else quoting.quote(of_nets)
            raise ValueError(f"`{name}` must have a picture for each of {num_nets} ControlNets, got {found}.")
    return tuple(tuple(picture(of_nets[net]) for of_nets in of_prompts) for net in range(num_nets))


def check_fits(controlnet: torch.nn.Module, components: dict[str, Any]) -> None:
    """ControlNets must be as deep and wide as the UNet, and read pictures of the VAE's size."""
    unet, side = components["unet"], framing.vae_scale_factor(components["vae"])
    for net in nets_of(controlnet):
        if not isinstance(net, ControlNetModel):
            raise TypeError(f"`controlnet` must be of ControlNetModel, or several of these, got {type(net).__name__}.")
        for name in ("in_channels", "block_out_channels", "cross_attention_dim", "addition_embed_type"):
            own, of_unet = net.config[name], unet.config[name]
            if _flat(own) != _flat(of_unet):
                raise ValueError(
                    f"`controlnet` must fit `unet`, whose `{name}` is {of_unet}, got one with {own}: it was made for "
                    "another base model."
                )
        factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
        if factor != side or net.config.conditioning_channels != 3:
            raise ValueError(
                f"`controlnet` must read pictures of 3 channels, {side} times as large as the latents, got one that "
                f"reads {net.config.conditioning_channels} channels, {factor} times as large."
            )
        if net.dtype != unet.dtype:
            raise TypeError(f"`controlnet` must be of the pipeline's dtype {unet.dtype}, got {net.dtype}.")


def _flat(value: Any) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def plan(
    inputs: ControlInputs | None, size: tuple[int, int], num_pictures: int, num_steps: int, like: torch.Tensor
) -> list[Control | None]:
    """Each step's ControlNets: None where none of them counts, and none is computed.

    Args:
        inputs: Of the call, or None.
        size: Height and width to which pictures are scaled and cropped.
        num_pictures: B.
        num_steps: Of the call.
        like: A tensor of the device and dtype that pictures get.

    Returns:
        An entry for each step.

    Example:
        >>> plan(None, (64, 64), 1, 3, torch.zeros(1))
        [None, None, None]
    """
    if inputs is None:
        return [None] * num_steps
    pictures = []
    for of_prompts in inputs.pictures:
        pixels = torch.cat([framing.vae_pixels(PICTURES, [one], *size) for one in of_prompts])  # [P, 3, H, W]
        pictures.append(pixels.to(like).repeat_interleave(num_pictures // len(pixels), dim=0))  # [B, 3, H, W]
    return [
        Control(inputs.net, pictures, scales) if any(scales) else None for scales in inputs.scales_of_steps(num_steps)
    ]
