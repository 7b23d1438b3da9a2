"""What Stable Diffusion XL's UNet reads beside the time: pooled text and the sizes of pictures, for each row.

Letters in shapes: B pictures, K references of all pictures together, F width of the pooled text.
"""

from dataclasses import dataclass

import torch


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
