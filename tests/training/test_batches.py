from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline.method.reference_images import load_reference_image as read
from profusion_pipeline.training.batches import (
    Batch,
    CachedPictures,
    Encoders,
    Preprocessing,
    UncachedPictures,
    folder_samples,
)
from profusion_pipeline.training.data import PictureFolder, choose_sample, read_picture_folder
from profusion_pipeline.training.stream import PictureStream, open_picture_stream
from training import write_shards

NUMBERS = [range(0, 3), range(3, 6), range(6, 9)]


@pytest.fixture
def folder(tmp_path):
    """Four pictures, one of them not square, one with alpha."""
    generator = np.random.default_rng(0)
    for i, (height, width, channels) in enumerate([(16, 16, 3), (24, 16, 3), (16, 16, 4), (40, 40, 3)]):
        pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def encoders(components):
    return Encoders(components["vae"], components["image_encoder"])


@pytest.fixture
def preprocessing(components):
    return Preprocessing(16, components["feature_extractor"])


def uncached(pictures, preprocessing, encoders, num_workers=0, **settings) -> UncachedPictures:
    samples = partial(folder_samples, pictures=pictures, **settings)
    return UncachedPictures(samples, preprocessing, encoders, num_workers=num_workers)


def pairs(folder: Path) -> PictureFolder:
    """Every picture has the next as its only reference."""
    files = read_picture_folder(folder).files
    captions = tuple(f"S*, number {i}" for i in range(4))
    return PictureFolder(files, tuple(range(4)), tuple(((i + 1) % 4,) for i in range(4)), captions)


def assert_same(ours: Batch, theirs: Batch) -> None:
    assert ours.captions == theirs.captions
    assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))


def test_a_reference_is_encoded_as_the_pipeline_encodes_it(pipe, folder, preprocessing, encoders):
    for file in sorted(folder.iterdir()):
        subject = pipe.encode_subject(file)
        pixels, vision_pixels = preprocessing(read(file))
        mean, _ = encoders.posterior(pixels[None])
        states = encoders.image_states(vision_pixels[None])
        torch.testing.assert_close(mean, subject.latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(states, subject.image_states, rtol=0, atol=1e-5)


def test_pixels_are_the_pictures(folder, preprocessing):
    pixels, vision_pixels = preprocessing(read(folder / "0.png"))
    expected = np.asarray(Image.open(folder / "0.png"), dtype=np.float32) / 127.5 - 1
    np.testing.assert_allclose(pixels.permute(1, 2, 0), expected, atol=1e-6)
    assert vision_pixels.shape == (3, 8, 8)
    mirrored, vision_mirrored = preprocessing(read(folder / "0.png"), flip=True)
    assert torch.equal(mirrored, pixels.flip(2))
    torch.testing.assert_close(vision_mirrored, vision_pixels.flip(2), rtol=0, atol=0.02)  # resized from 16 to 8


def test_posterior_is_what_the_vae_samples_from(folder, preprocessing, encoders, components):
    vae = components["vae"]
    pixels = preprocessing(read(folder / "0.png"))[0][None]
    mean, std = encoders.posterior(pixels)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        sample = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3)) * vae.config.scaling_factor
    torch.testing.assert_close(mean + std * noise, sample, rtol=0, atol=1e-6)
    assert std.min() > 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pictures_give_the_same_batches_cached_or_not(folder, preprocessing, encoders, batch_size):
    pictures = pairs(folder)
    cached = CachedPictures(pictures, preprocessing, encoders, seed=5, batch_size=batch_size)
    opened = uncached(pictures, preprocessing, encoders, seed=5)
    for ours, theirs in zip(cached.batches(NUMBERS), opened.batches(NUMBERS), strict=True):
        assert ours.captions == theirs.captions and all(ours.captions)
        for ours_part, theirs_part in zip(ours[:-1], theirs[:-1], strict=True):
            assert (ours_part.dtype, theirs_part.dtype) == (torch.float16, torch.float32)
            torch.testing.assert_close(ours_part.float(), theirs_part, rtol=2e-3, atol=1e-4)


def test_batches_hold_target_and_reference(folder, preprocessing, encoders):
    pictures = pairs(folder)
    batches = list(CachedPictures(pictures, preprocessing, encoders, seed=5).batches(NUMBERS))
    for numbers, batch in zip(NUMBERS, batches, strict=True):
        for i, number in enumerate(numbers):
            choice = choose_sample(number, pictures, seed=5)
            assert choice.reference == (choice.target + 1) % 4
            assert batch.captions[i] == f"S*, number {choice.target}"
            target, reference = (
                preprocessing(read(pictures.files[index])) for index in (choice.target, choice.reference)
            )
            mean, std = encoders.posterior(target[0][None])
            for part, expected in (
                (batch.mean, mean),
                (batch.std, std),
                (batch.reference_latents, encoders.posterior(reference[0][None])[0]),
                (batch.image_states, encoders.image_states(reference[1][None])),
            ):
                torch.testing.assert_close(part[i : i + 1].float(), expected, rtol=2e-3, atol=1e-4)


def test_the_cache_says_its_size_and_shows_its_progress(folder, preprocessing, encoders):
    seen = []

    def watch(loader):
        for batch in loader:
            seen.append(len(batch[0]))
            yield batch

    cached = CachedPictures(read_picture_folder(folder), preprocessing, encoders, seed=0, batch_size=3, progress=watch)
    assert seen == [3, 1]
    assert cached.num_bytes == 2 * 4 * (2 * 4 * 8 * 8 + 5 * 24)  # half precision, pictures, two latents and five tokens


def test_a_cache_filled_and_read_by_workers_is_the_same(folder, preprocessing, encoders):
    alone, helped = (
        CachedPictures(pairs(folder), preprocessing, encoders, seed=0, batch_size=3, num_workers=workers)
        for workers in (0, 2)
    )
    for ours, theirs in zip(alone.batches(iter(NUMBERS)), helped.batches(iter(NUMBERS)), strict=True):
        assert_same(ours, theirs)


def test_pictures_read_by_workers_are_the_same(folder, preprocessing, encoders):
    pictures = pairs(folder)
    alone, helped = (
        uncached(pictures, preprocessing, encoders, seed=0, horizontal_flip=True, num_workers=workers)
        for workers in (0, 2)
    )
    for ours, theirs in zip(alone.batches(NUMBERS), helped.batches(NUMBERS), strict=True):
        assert_same(ours, theirs)


def test_a_stream_gives_the_same_batches_with_workers_and_without(tmp_path, preprocessing, encoders):
    write_shards(tmp_path / "shards", shards=2, pictures=5)
    streams = [PictureStream(open_picture_stream(str(tmp_path / "shards")), seed=0, shuffle_buffer=4) for _ in "ab"]
    sources = [
        UncachedPictures(stream.samples, preprocessing, encoders, num_workers=workers)
        for stream, workers in zip(streams, (0, 2), strict=True)
    ]
    for ours, theirs in zip(*(source.batches(NUMBERS) for source in sources), strict=True):
        assert_same(ours, theirs)
        assert torch.equal(ours.mean, ours.reference_latents)
    assert streams[0].bookmark(9) == streams[1].bookmark(9)


def test_flips_mirror_target_and_reference_alike(folder, preprocessing, encoders):
    pictures = read_picture_folder(folder)
    prepared = uncached(pictures, preprocessing, encoders, seed=0).prepared
    flips = 0
    (samples,) = folder_samples([range(8)], pictures, seed=0, horizontal_flip=True)
    for number, sample in enumerate(samples):
        choice = choose_sample(number, pictures, seed=0, horizontal_flip=True)
        pixels, reference_pixels, *_ = prepared[sample]
        assert torch.equal(pixels, preprocessing(read(pictures.files[choice.target]), flip=choice.flip)[0])
        assert torch.equal(reference_pixels, pixels)
        flips += choice.flip
    assert 0 < flips < 8


def test_an_unreadable_picture_is_named(folder, preprocessing, encoders):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="2.png` must be a whole image"):
        CachedPictures(read_picture_folder(folder), preprocessing, encoders, seed=0)
    (folder / "2.png").write_text("no picture")
    with pytest.raises(ValueError, match="must be an image file that Pillow can read, '.*2.png' is not one"):
        list(uncached(read_picture_folder(folder), preprocessing, encoders, seed=0).batches(NUMBERS))
