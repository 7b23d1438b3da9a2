"""What Stable Diffusion XL's UNet reads beside the time: pooled text and the sizes of pictures, for each row.

Letters in shapes: B pictures, K references of all pictures together, F width of the pooled text.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import checks, quoting


@dataclass(frozen=True, eq=False, kw_only=True)
class AddedConditions:
    """Pooled text of the texts that stay the same over a call, and sizes. That of S* comes from every prediction.

    Args:
        null_pooled: Of ∅. [B, F]
        class_pooled: Of C, or None. [B, F]
        null_sizes: Original size, place of the crop and target size, of ∅. [6]
        sizes: The same of C and S*. [6]

    Example:
        >>> pooled, sizes = torch.zeros(2, 4), torch.tensor([512.0, 512, 0, 0, 512, 512])
        >>> added = AddedConditions(null_pooled=pooled, class_pooled=None, null_sizes=sizes, sizes=sizes)
        >>> added.of_rows(num_null=2, num_class=0, subject_pooled=torch.ones(3, 4))["time_ids"].shape
        torch.Size([5, 6])
    """

    null_pooled: torch.Tensor
    class_pooled: torch.Tensor | None
    null_sizes: torch.Tensor
    sizes: torch.Tensor

    def of_rows(
        self,
        *,
        num_null: int,
        num_class: int,
        words_pooled: torch.Tensor | None = None,
        subject_pooled: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """For the rows of a prediction in the order ∅, C, learnt words, S*.

        Args:
            num_null: Rows of ∅: B or 0.
            num_class: Rows of C: B or 0.
            words_pooled: Of learnt words, where there are such rows. [J, F]
            subject_pooled: Of S*, where there are such rows. [K, F]

        Returns:
            What the UNet takes as `added_cond_kwargs`.
        """
        pooled = [self.null_pooled[:num_null], self.class_pooled if num_class else None, words_pooled, subject_pooled]
        pooled = torch.cat([one for one in pooled if one is not None])  # [rows, F]
        sizes = [self.null_sizes.expand(num_null, -1), self.sizes.expand(len(pooled) - num_null, -1)]
        return {"text_embeds": pooled, "time_ids": torch.cat(sizes)}


def check_pair(name: str, pair: Any) -> tuple[int, int] | None:
    """Height and width, or a place from the top and from the left; or None."""
    if pair is None:
        return None
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"`{name}` must be a pair of whole numbers, got {quoting.quote(pair)}.")
    return tuple(checks.check_count(name, number, at_least=0) for number in pair)


def check_unet(unet: nn.Module, projection: int) -> None:
    """That a UNet reads pooled text and six numbers beside the time, as Stable Diffusion XL's does."""
    embedding, numbers = getattr(unet, "add_embedding", None), unet.config.get("addition_time_embed_dim")
    if embedding is None or not numbers:
        raise ValueError("`unet` must be of Stable Diffusion XL, got one that reads no sizes, as ProFusionPipeline's.")
    width, reads = 6 * numbers + projection, embedding.linear_1.in_features
    if reads != width:
        raise ValueError(
            f"`unet` must read {width} numbers beside the time, six sizes and the pooled text of `text_encoder_2`, got "
            f"one that reads {reads}."
        )


def whole_picture(height: int, width: int) -> torch.Tensor:
    """The six numbers of a picture that is what it was, neither cropped nor scaled.

    Args:
        height: In pixels.
        width: As `height`.

    Returns:
        Original size, place of the crop and target size. [6]

    Example:
        >>> whole_picture(512, 256).tolist()
        [512.0, 256.0, 0.0, 0.0, 512.0, 256.0]
    """
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)


def sizes_of(given: dict[str, Any], height: int, width: int) -> tuple[list[float], list[float]]:
    """The sizes of C and S*, and those of ∅.

    Args:
        given: Arguments of the call: pairs or None.
        height: Of the pictures, in pixels.
        width: As `height`.

    Returns:
        Six numbers each: original size, place of the crop and target size.

    Example:
        >>> names = ("original_size", "crops_coords_top_left", "target_size")
        >>> given = {f"{of}{name}": None for of in ("", "negative_") for name in names}
        >>> sizes_of(given | {"crops_coords_top_left": (8, 4)}, 512, 256)[1]
        [512.0, 256.0, 8.0, 4.0, 512.0, 256.0]
    """

    def numbers(prefix: str) -> list[float]:
        pairs = [given[f"{prefix}{name}"] for name in ("original_size", "crops_coords_top_left", "target_size")]
        defaults = [(height, width), (0, 0), (height, width)]
        return [float(number) for pair, default in zip(pairs, defaults, strict=True) for number in pair or default]

    own = numbers("")
    both = given["negative_original_size"] and given["negative_target_size"]
    return own, numbers("negative_") if both else own
