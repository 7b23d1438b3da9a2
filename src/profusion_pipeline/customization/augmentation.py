"""One photo -> many pictures of the same subject: moved, turned, scaled, and with other backgrounds.

Customising draws reference and target from them independently, so that S* learns what they share, the subject, and
neither its place in the picture nor what is behind it. A picture here is a float tensor [3, H, W] in 0..1, a mask
[1, H, W] in 0..1 with 1 on the subject; whatever is random is drawn from a generator that the caller passes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

# (picture, mask, generator) -> a picture whose part outside the mask becomes the background
Painter = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]

EDGE = 0.03  # width of the soft edge between subject and background, as a share of the picture's shorter side


def affine_matrix(
    *, angle: float, shift: tuple[float, float], scale: float, flip: bool, aspect: float = 1.0
) -> torch.Tensor:
    """The 2 x 3 matrix by which `affine_grid` finds for each place of the new picture its place in the old one.

    Args:
        angle: By which the picture is turned counter-clockwise, in degrees.
        shift: By which it is moved to the right and down, as shares of its width and height.
        scale: By which it is enlarged.
        flip: Whether it is mirrored first.
        aspect: Width divided by height, so that turning doesn't shear.

    Returns:
        The matrix `[2, 3]`, in coordinates that go from -1 to 1 along both sides.

    Example:
        >>> affine_matrix(angle=0, shift=(0, 0), scale=2, flip=False)
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]])
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = torch.tensor([[cos, -sin / aspect], [sin * aspect, cos]]) / scale  # the inverse: it leads from new to old
    turn = turn + 0.0  # no -0.0
    mirror = torch.tensor([[-1.0 if flip else 1.0], [1.0]])
    move = turn @ torch.tensor([[-2.0 * shift[0]], [-2.0 * shift[1]]])
    return mirror * torch.cat([turn, move + 0.0], dim=1)


def warp(picture: torch.Tensor, matrix: torch.Tensor, *, outside: str) -> torch.Tensor:
    """The picture under an affine map.

    Args:
        picture: The pixels. [C, H, W]
        matrix: As from [`affine_matrix`].
        outside: What lies beyond the old picture's edges: "reflection" or "zeros".

    Returns:
        Pixels. [C, H, W]

    Example:
        >>> identity = affine_matrix(angle=0, shift=(0, 0), scale=1, flip=False)
        >>> warp(torch.eye(3)[None], identity, outside="zeros")[0, 0]
        tensor([1., 0., 0.])
    """
    grid = affine_grid(matrix[None].to(picture), [1, *picture.shape], align_corners=False)
    return grid_sample(picture[None], grid, padding_mode=outside, align_corners=False)[0].clamp(0, 1)


def ellipse_mask(height: int, width: int, size: float) -> torch.Tensor:
    """1 inside a centred ellipse, `size` of the picture wide and a quarter more high, as faces are.

    Args:
        height: Of the picture.
        width: Of the picture.
        size: Width of the ellipse, as a share of the picture's shorter side.

    Returns:
        The mask. [1, height, width]

    Example:
        >>> ellipse_mask(4, 4, 0.6)[0, 1]
        tensor([0., 1., 1., 0.])
    """
    short = min(height, width)
    y = (torch.arange(height) + 0.5 - height / 2) / (0.5 * 1.25 * size * short)
    x = (torch.arange(width) + 0.5 - width / 2) / (0.5 * size * short)
    return (x.square()[None, :] + y.square()[:, None] <= 1).float()[None]  # [1, H, W]


def blur(picture: torch.Tensor, radius: float) -> torch.Tensor:
    """A Gaussian blur, edges mirrored.

    Args:
        picture: The pixels. [C, H, W]
        radius: Standard deviation in pixels.

    Returns:
        Pixels. [C, H, W]

    Example:
        >>> blur(torch.ones(3, 8, 8), 2.0).allclose(torch.ones(3, 8, 8))
        True
    """
    height, width = picture.shape[1:]
    return _blur_matrix(height, radius).to(picture) @ picture @ _blur_matrix(width, radius).to(picture).T


def paint_noise(picture: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Coloured noise, in patches of a random size.

    Args:
        picture: The pixels. [3, H, W]
        mask: Not read.
        generator: Where it is drawn from.

    Returns:
        Pixels. [3, H, W]

    Example:
        >>> paint_noise(torch.zeros(3, 8, 8), torch.ones(1, 8, 8), torch.Generator()).shape
        torch.Size([3, 8, 8])
    """
    side = 2 ** int(torch.randint(1, 6, (), generator=generator))  # 2 to 32 patches along each side
    noise = torch.rand(1, 3, side, side, generator=generator)
    return interpolate(noise, picture.shape[1:], mode="bilinear", align_corners=False)[0]


def paint_blur(picture: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The picture itself, out of focus.

    Args:
        picture: The pixels. [3, H, W]
        mask: Not read.
        generator: The radius is drawn from it.

    Returns:
        Pixels. [3, H, W]

    Example:
        >>> paint_blur(torch.ones(3, 16, 16), torch.ones(1, 16, 16), torch.Generator()).shape
        torch.Size([3, 16, 16])
    """
    share = 0.03 + 0.12 * torch.rand((), generator=generator).item()
    return blur(picture, share * min(picture.shape[1:]))


def paint_colour(picture: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One colour.

    Args:
        picture: The pixels. [3, H, W]
        mask: Not read.
        generator: The colour is drawn from it.

    Returns:
        Pixels. [3, H, W]

    Example:
        >>> paint_colour(torch.zeros(3, 2, 2), torch.ones(1, 2, 2), torch.Generator()).flatten(1).std(1).sum().item()
        0.0
    """
    return torch.rand(3, 1, 1, generator=generator).expand_as(picture)


PAINTERS: dict[str, Painter] = {"noise": paint_noise, "blur": paint_blur, "colour": paint_colour}


def paint_mixed(picture: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of noise, blur and colour by chance.

    Args:
        picture: The pixels. [3, H, W]
        mask: In 0..1, 1 on the subject. [1, H, W]
        generator: Where everything is drawn from.

    Returns:
        Pixels. [3, H, W]

    Example:
        >>> paint_mixed(torch.zeros(3, 16, 16), torch.ones(1, 16, 16), torch.Generator()).shape
        torch.Size([3, 16, 16])
    """
    choice = int(torch.randint(len(PAINTERS), (), generator=generator))
    return list(PAINTERS.values())[choice](picture, mask, generator)


def inpainter(pipeline: Callable, prompts: Sequence[str], **settings: Any) -> Painter:
    """A painter that lets an inpainting pipeline invent the background.

    Args:
        pipeline: Any inpainting pipeline of diffusers: it is called with `prompt`, `image`, `mask_image` (1 where it
            shall paint), `generator` and `output_type="pt"`, and answers with `images` `[1, 3, H, W]` of any size.
        prompts: Backgrounds in words; one is drawn for each picture.
        **settings: Passed to every call, e.g. `num_inference_steps=20`.

    Returns:
        The painter, to be given to `customize` as `paint`.

    Example:
        >>> from diffusers import AutoPipelineForInpainting  # doctest: +SKIP
        >>> paint = inpainter(AutoPipelineForInpainting.from_pretrained(model), ["a beach"])  # doctest: +SKIP
        >>> concept = pipe.customize("me.png", paint=paint)  # doctest: +SKIP
    """

    def paint(picture: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        prompt = prompts[int(torch.randint(len(prompts), (), generator=generator))]
        painted = pipeline(
            prompt=prompt,
            image=picture[None],
            mask_image=1 - mask[None],
            generator=generator,
            output_type="pt",
            **settings,
        ).images
        return interpolate(painted.to(picture), picture.shape[1:], mode="bilinear", antialias=True)[0]

    return paint


def augment(
    picture: torch.Tensor,
    mask: torch.Tensor | None,
    generator: torch.Generator,
    *,
    rotation: float,
    translation: float,
    zoom: float,
    flip: bool,
    paint: Painter | None,
) -> torch.Tensor:
    """One more picture of the same subject: an affine map drawn at random, then another background.

    Args:
        picture: `[3, H, W]` in 0..1.
        mask: The subject `[1, H, W]`; not read without `paint`.
        generator: Where everything is drawn from.
        rotation: Greatest angle in degrees, to both sides.
        translation: Greatest shift, as a share of the side, in all four directions.
        zoom: Greatest enlargement z: scales are drawn log-uniformly from 1 / (1 + z) to 1 + z.
        flip: Whether every second picture is mirrored.
        paint: What paints the background; None keeps it.

    Returns:
        `[3, H, W]` in 0..1.

    Example:
        >>> augment(torch.rand(3, 8, 8), None, torch.Generator(), rotation=10, translation=0.1, zoom=0.2, flip=False,
        ...     paint=None).shape
        torch.Size([3, 8, 8])
    """
    turn, right, down, size = (2 * torch.rand(4, generator=generator) - 1).tolist()
    mirrored = flip and bool(torch.randint(2, (), generator=generator))
    matrix = affine_matrix(
        angle=rotation * turn,
        shift=(translation * right, translation * down),
        scale=(1 + zoom) ** size,
        flip=mirrored,
        aspect=picture.shape[2] / picture.shape[1],
    )
    picture = warp(picture, matrix, outside="reflection")
    if paint is None:
        return picture
    mask = warp(mask, matrix, outside="zeros")
    mask = blur(mask, max(EDGE * min(picture.shape[1:]), 0.5))
    background = paint(picture, mask, generator).to(picture)
    return mask * picture + (1 - mask) * background


def _blur_matrix(length: int, radius: float) -> torch.Tensor:
    # On a CPU some ten times faster than a convolution with a kernel hundreds of pixels long.
    reach = min(math.ceil(3 * radius), length - 1)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(offsets / radius).square() / 2)
    sources = (torch.arange(length)[:, None] + offsets).abs()  # mirrored at the beginning
    sources = length - 1 - (length - 1 - sources).abs()  # and at the end
    return torch.zeros(length, length).scatter_add_(1, sources, (kernel / kernel.sum()).expand(length, -1))
