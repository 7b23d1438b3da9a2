"""IP-Adapters of diffusers on a pipeline: the rows of S* read their picture, those of ∅ and C read none.

diffusers gives every row of a batch an image prompt, and one without gets that of a black picture or of zeros, which is
not nothing. Here its tokens are zero in such rows, whose keys and values then are zero too: to the bit the base model.

Letters in shapes: E entries, n pictures of a subject, F width of the image encoder's embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.loaders import IPAdapterMixin
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.pipelines.stable_diffusion import StableDiffusionPipeline
from torch import nn

from . import adapters, concept_loader, learnt_subject


class ImagePrompts(NamedTuple):
    """What the IP-Adapters of a call may read: an entry of zeros, then for each subject its null entry and its own.

    Args:
        entries: For each loaded IP-Adapter. [E, n, F], or [E, n, T, F] of those that read all tokens
        of_picture: The number of its subject's own entry for each picture, 0 where it has none.

    Example:
        >>> prompts = ImagePrompts((torch.zeros(3, 1, 8),), (0, 2))
        >>> prompts.entries_of([0, 1, 0, 1], num_null=2, num_shared=2, base_guidance=False)
        [0, 1, 0, 2]
    """

    entries: tuple[torch.Tensor, ...]
    of_picture: tuple[int, ...]

    def entries_of(self, owner: Sequence[int], *, num_null: int, num_shared: int, base_guidance: bool) -> list[int]:
        """The entry of each row of a prediction, 0 where the untouched base computes it.

        Args:
            owner: The picture of each row.
            num_null: Rows of ∅, which come first.
            num_shared: Rows of ∅ and C.
            base_guidance: Whether the base computes those of ∅ and C.

        Returns:
            As many numbers.
        """
        own = [self.of_picture[picture] if self.of_picture else 0 for picture in owner]
        without = num_shared if base_guidance else 0
        of_null = [max(entry - 1, 0) for entry in own[without:num_null]]
        return [0] * without + of_null + own[max(without, num_null) :]


def projections(unet: nn.Module) -> list[nn.Module]:
    """What reads the pictures of each IP-Adapter that a UNet has.

    Args:
        unet: Of diffusers.

    Returns:
        A layer each; nothing where none is loaded.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> projections(load_demo_pipeline().unet)
        []
    """
    projection = getattr(unet, "encoder_hid_proj", None)
    return list(projection.image_projection_layers) if isinstance(projection, MultiIPAdapterImageProjection) else []


def _zeros_for(projection: nn.Module, like: torch.Tensor) -> torch.Tensor:
    """A picture of zeros, as small as an IP-Adapter reads it."""
    width = next(layer for layer in projection.modules() if isinstance(layer, nn.Linear)).in_features
    return like.new_zeros((1, 1, width) if isinstance(projection, ImageProjection) else (1, 1, 1, width))


class ImagePromptsMixin(IPAdapterMixin):
    """A pipeline whose IP-Adapters are read by the rows of S* only, if a subject has pictures for them.

    Example:
        >>> pipe.load_ip_adapter(  # doctest: +SKIP
        ...     "h94/IP-Adapter", subfolder="models", weight_name="ip-adapter_sd15.bin")
        >>> her = LearntSubject("a woman", class_noun="a person", ip_adapter_image="ada.jpg")  # doctest: +SKIP
        >>> pipe("S* on the moon", subject=her).images[0]  # doctest: +SKIP
    """

    encode_image = StableDiffusionPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionPipeline.prepare_ip_adapter_image_embeds

    def unload_ip_adapter(self) -> None:
        """As of `StableDiffusionPipeline`; an image encoder that PromptNet needs stays."""
        kept = {name: getattr(self, name) for name in ("image_encoder", "feature_extractor")}
        super().unload_ip_adapter()
        if self.promptnet is not None:
            self.register_modules(**kept)

    def _check_image_prompts(self, subjects: Sequence[Any]) -> None:
        """Before any work: the pictures of a call's subjects are such as the loaded IP-Adapters read."""
        layers, numbers = projections(self.unet), set()
        for one in filter(None, subjects):
            for name, given in (one.ip_adapter_given or {}).items():
                if not layers:
                    raise ValueError(
                        f"`{name}` of a LearntSubject needs an IP-Adapter: `pipe.load_ip_adapter` loads one, none is."
                    )
                if len(given) != len(layers):
                    raise ValueError(
                        f"`{name}` of a LearntSubject must have an entry for each of {len(layers)} loaded "
                        f"IP-Adapters, got {len(given)}."
                    )
                if name == "ip_adapter_image":
                    self._check_tower(layers)
                    numbers.add(tuple(map(len, given)))
                else:
                    for layer, tensor in zip(layers, given, strict=True):
                        shape = _zeros_for(layer, torch.zeros(0)).shape
                        if tensor.ndim != len(shape) or tensor.shape[-1] != shape[-1] or len(tensor) not in (1, 2):
                            raise ValueError(
                                f"`{name}` of a LearntSubject must have the shape [1 or 2, n, ..., {shape[-1]}], got "
                                f"{list(tensor.shape)}."
                            )
                    numbers.add(tuple(tensor.shape[1] for tensor in given))
        if len(numbers) > 1:
            raise ValueError(
                "Learnt subjects of one call must have as many pictures for an IP-Adapter each, got "
                f"{' and '.join(str(list(one)) for one in sorted(numbers))}."
            )

    def _check_tower(self, layers: Sequence[nn.Module]) -> None:
        advice = "give `ip_adapter_image_embeds`, or load the pipeline with an `image_encoder` that has one"
        if self.image_encoder is None or self.feature_extractor is None:
            raise ValueError(f"`ip_adapter_image` needs an image encoder, this pipeline has none: {advice}.")
        reads_embedding = any(isinstance(layer, ImageProjection) for layer in layers)
        if reads_embedding and not hasattr(self.image_encoder, "visual_projection"):
            raise ValueError(
                "`ip_adapter_image` needs an image encoder with a projection, which the "
                f"{type(self.image_encoder).__name__} that PromptNet reads has not: {advice}."
            )

    def _encode_image_prompts(self, concepts: concept_loader.CallConcepts) -> ImagePrompts | None:
        """Of a call's subjects; None where no IP-Adapter is loaded."""
        layers = projections(self.unet)
        if not layers:
            return None
        adapters.follow_image_rows(self.unet.encoder_hid_proj)
        device, like = self._execution_device, torch.zeros(0, dtype=self.unet.dtype)
        encoded, of_picture = {}, []
        for subject in concepts.learnt:
            if subject is None or not subject.ip_adapter_given:
                of_picture.append(0)
                continue
            if id(subject) not in encoded:
                embeds = self._image_embeds(subject, layers)
                encoded[id(subject)] = (2 * len(encoded) + 2, [one.to(device, like.dtype) for one in embeds])
            of_picture.append(encoded[id(subject)][0])
        entries = []
        for number, layer in enumerate(layers):
            own = [embeds[number] for _, embeds in encoded.values()]
            zeros = torch.zeros_like(own[0][:1]) if own else _zeros_for(layer, like.to(device))
            entries.append(torch.cat([zeros, *own]))
        return ImagePrompts(tuple(entries), tuple(of_picture))

    def _image_embeds(self, subject: learnt_subject.LearntSubject, layers: Sequence[nn.Module]) -> list[torch.Tensor]:
        """Null and own of each IP-Adapter. [2, n, F]"""
        ((name, given),) = subject.ip_adapter_given.items()
        device = self._execution_device
        if name == "ip_adapter_image":
            return self.prepare_ip_adapter_image_embeds(given, None, device, 1, True)
        return [one if len(one) == 2 else torch.cat([torch.zeros_like(one), one]) for one in given]

    def _image_embeds_of_rows(
        self,
        prompts: ImagePrompts | None,
        owner: Sequence[int],
        *,
        num_null: int,
        num_shared: int,
        base_guidance: bool,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """What the IP-Adapters get of each row, and whether the row reads it. [rows, n, F] each, and [rows]"""
        if prompts is None:
            return (), None
        rows = prompts.entries_of(owner, num_null=num_null, num_shared=num_shared, base_guidance=base_guidance)
        entries = torch.tensor(rows, device=prompts.entries[0].device)  # [rows]
        return tuple(one[entries] for one in prompts.entries), entries > 0
