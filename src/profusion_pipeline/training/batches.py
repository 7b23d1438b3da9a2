"""Pictures -> batches of what PromptNet and UNet read: posterior of the latents, and vision states.

Two sources give the same batches: [`CachedPictures`] encodes every picture of a folder once and keeps the result in
memory, [`UncachedPictures`] opens and encodes pictures, of a folder or a stream, as they are needed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessor, CLIPVisionModel

from ..method import encoding, framing
from ..method.reference_images import load_reference_image
from .data import PictureFolder, Sample, choose_sample, leave_signals_to_the_main_process, load_batches
from .workers import read_loader


class Preprocessing:
    """From a picture to what VAE and vision tower read, as the pipeline prepares a reference.

    Args:
        resolution: Side to which pictures are scaled and centre-cropped for the VAE.
        feature_extractor: The vision tower's `CLIPImageProcessor`; it sees the whole picture.

    Example:
        >>> from transformers import CLIPImageProcessor
        >>> prepare = Preprocessing(64, CLIPImageProcessor())
        >>> pixels, vision_pixels = prepare(Image.new("RGB", (100, 80)))
        >>> pixels.shape
        torch.Size([3, 64, 64])
    """

    def __init__(self, resolution: int, feature_extractor: CLIPImageProcessor):
        self.resolution, self.feature_extractor = resolution, feature_extractor
        self.image_processor = VaeImageProcessor()

    def __call__(self, picture: Image.Image, *, flip: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare one picture.

        Args:
            picture: Of mode "RGB".
            flip: Whether to mirror it.

        Returns:
            Pixels in -1..1 `[3, H, W]` for the VAE, and the vision tower's `[3, H', W']`.
        """
        picture = ImageOps.mirror(picture) if flip else picture
        pixels = framing.vae_pixels(self.image_processor, [picture], self.resolution, self.resolution)
        return pixels[0], framing.vision_pixels(self.feature_extractor, [picture])[0]  # [3, H, W], [3, H', W']


@dataclass(frozen=True)
class Encoders:
    """The frozen models that turn pixels into what PromptNet and UNet read.

    Args:
        vae: The autoencoder.
        image_encoder: The CLIP vision tower.

    Example:
        >>> encoders = Encoders(pipe.vae, pipe.image_encoder)  # doctest: +SKIP
        >>> mean, std = encoders.posterior(torch.zeros(1, 3, 64, 64))  # doctest: +SKIP
    """

    vae: AutoencoderKL
    image_encoder: CLIPVisionModel

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the VAE knows of the latents of pictures.

        Args:
            pixels: In -1..1. [B, 3, H, W]

        Returns:
            Mean and standard deviation [B, C, h, w], times the VAE's scaling factor.
        """
        return encoding.posterior(self.vae, pixels, self.vae.device)

    def image_states(self, vision_pixels: torch.Tensor) -> torch.Tensor:
        """What the vision tower sees in pictures.

        Args:
            vision_pixels: From the feature extractor. [B, 3, H', W']

        Returns:
            The last hidden states of all tokens [B, N, V], without the post layer norm.
        """
        return encoding.vision_states(self.image_encoder, vision_pixels, self.image_encoder.device)


class Batch(NamedTuple):
    """Encoded pictures of some samples, in float32, or in float16 if they were kept in memory.

    Args:
        mean: Of the target latents' posterior. [B, C, h, w]
        std: Of the target latents' posterior. [B, C, h, w]
        reference_latents: Posterior mean of the references, which is what the pipeline gives PromptNet. [B, C, h, w]
        image_states: Vision states of the references. [B, N, V]
        captions: Of the targets, as the data has them: B texts, empty where there is none.
    """

    mean: torch.Tensor
    std: torch.Tensor
    reference_latents: torch.Tensor
    image_states: torch.Tensor
    captions: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The batch in float32 on a device; it is copied as it lies in memory, half as much if in half precision.

        Args:
            device: Where the models are.

        Returns:
            A new batch.
        """
        tensors = (part.to(device, non_blocking=True).float() for part in self[:-1])
        return Batch(*tensors, self.captions)


class CachedPictures:
    """All pictures of a folder, encoded once, in memory in half precision.

    Args:
        pictures: The data set.
        preprocessing: How to prepare a picture.
        encoders: How to encode what was prepared.
        seed: Of the run.
        batch_size: Pictures encoded at once.
        num_workers: Processes that read pictures meanwhile; if there are any, one goes on making batches ahead.
        progress: Wraps the iteration over batches, for example `tqdm`.

    Example:
        >>> source = CachedPictures(pictures, preprocessing, encoders, seed=0)  # doctest: +SKIP
        >>> batch = next(source.batches([range(0, 8)]))  # doctest: +SKIP
    """

    def __init__(
        self,
        pictures: PictureFolder,
        preprocessing: Preprocessing,
        encoders: Encoders,
        *,
        seed: int,
        batch_size: int = 16,
        num_workers: int = 0,
        progress: Callable[[Iterable], Iterable] = iter,
    ):
        self.pictures, self.seed, self.ahead = pictures, seed, num_workers > 0
        self.pin_memory = encoders.vae.device.type == "cuda"
        files = _Files(pictures.files, preprocessing)
        loader = DataLoader(files, batch_size=batch_size, num_workers=num_workers)
        self.mean = self.std = self.states = None
        start = 0
        for pixels, vision_pixels in read_loader(progress(loader)):
            encoded = (*encoders.posterior(pixels), encoders.image_states(vision_pixels))
            if self.mean is None:
                self.mean, self.std, self.states = (
                    torch.empty(len(files), *part.shape[1:], dtype=torch.float16) for part in encoded
                )
            end = start + len(pixels)
            for store, part in zip((self.mean, self.std, self.states), encoded, strict=True):
                store[start:end] = part
            start = end

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        return sum(store.nbytes for store in (self.mean, self.std, self.states))

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Batches of samples, on the CPU.

        Args:
            numbers: Sample numbers of each batch.

        Yields:
            One batch for each.
        """
        return load_batches(self._batch, numbers, ahead=self.ahead, pin_memory=self.pin_memory)

    def _batch(self, numbers: Sequence[int]) -> Batch:
        choices = [choose_sample(number, self.pictures, seed=self.seed) for number in numbers]
        targets = torch.tensor([choice.target for choice in choices])  # [B]
        references = torch.tensor([choice.reference for choice in choices])  # [B]
        captions = [choice.caption for choice in choices]
        return Batch(self.mean[targets], self.std[targets], self.mean[references], self.states[references], captions)


def folder_samples(
    numbers: Iterable[Sequence[int]], pictures: PictureFolder, *, seed: int, horizontal_flip: bool = False
) -> Iterator[list[Sample]]:
    """The samples of a folder of pictures, by their numbers.

    Args:
        numbers: Sample numbers of each batch.
        pictures: The data set.
        seed: Of the run.
        horizontal_flip: Mirror every second sample, at random.

    Yields:
        One batch for each.

    Example:
        >>> pictures = PictureFolder((Path("a.png"), Path("b.png")), (0, 1), ((0,), (1,)))
        >>> [len(batch) for batch in folder_samples([range(0, 8), range(8, 10)], pictures, seed=0)]
        [8, 2]
    """
    for batch in numbers:
        choices = [choose_sample(number, pictures, seed=seed, horizontal_flip=horizontal_flip) for number in batch]
        yield [
            Sample(
                target=partial(_open_file, pictures.files[choice.target]),
                reference=partial(_open_file, pictures.files[choice.reference])
                if choice.reference != choice.target
                else None,
                flip=choice.flip,
                caption=choice.caption,
            )
            for choice in choices
        ]


class UncachedPictures:
    """Pictures opened and encoded when they are needed.

    Args:
        samples: Sample numbers of batches -> samples in batches; [`folder_samples`] or `PictureStream.samples`.
        preprocessing: How to prepare a picture.
        encoders: How to encode what was prepared.
        num_workers: Processes that open pictures ahead.

    Example:
        >>> samples = partial(folder_samples, pictures=pictures, seed=0)  # doctest: +SKIP
        >>> source = UncachedPictures(samples, preprocessing, encoders, num_workers=4)  # doctest: +SKIP
        >>> batch = next(source.batches([range(0, 8)]))  # doctest: +SKIP
    """

    def __init__(
        self,
        samples: Callable[[Iterable[Sequence[int]]], Iterator[list[Sample]]],
        preprocessing: Preprocessing,
        encoders: Encoders,
        *,
        num_workers: int = 0,
    ):
        self.samples, self.encoders, self.num_workers = samples, encoders, num_workers
        self.prepared = _PreparedSamples(preprocessing)

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Batches of samples, on the encoders' device.

        Args:
            numbers: Sample numbers of each batch.

        Yields:
            One batch for each.
        """
        # The samples themselves take the place of indices: chosen here, one after another, and opened by the workers.
        loader = DataLoader(
            self.prepared,
            batch_sampler=self.samples(numbers),
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_the_main_process,
        )
        for pixels, reference_pixels, vision_pixels, captions in read_loader(loader):
            mean, std = self.encoders.posterior(pixels)
            reference_latents, _ = self.encoders.posterior(reference_pixels)
            yield Batch(mean, std, reference_latents, self.encoders.image_states(vision_pixels), list(captions))


def _open_file(file: Path) -> Image.Image:
    return load_reference_image(file, name=str(file))


class _Files(Dataset):
    def __init__(self, files: tuple[Path, ...], preprocessing: Preprocessing):
        self.files, self.preprocessing = files, preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.preprocessing(_open_file(self.files[index]))


class _PreparedSamples(Dataset):
    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def __getitem__(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        pixels, vision_pixels = self.preprocessing(sample.target(), flip=sample.flip)
        if sample.reference is None:
            return pixels, pixels, vision_pixels, sample.caption
        return pixels, *self.preprocessing(sample.reference(), flip=sample.flip), sample.caption
