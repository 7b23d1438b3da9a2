"""The scripts that make the demo model: each stage runs, resumes exactly and keeps its promises, at toy size."""

import random

import numpy as np
import pytest
import torch
from attributes import HIDDEN, VALUES, AttributeReader, Reading, accuracy, labels
from loop import Schedule, draw_generator, fit
from pictures import pictures, portraits, to_pixels, to_tensor
from PIL import Image
from torch import nn
from train_autoencoder import Reconstruction, fold_normalisation, new_autoencoder, psnr
from train_promptnet import passport_photo, write_captioned_pictures
from train_unet import Denoising, encode_pictures, new_unet
from world import Renderer, sample_portrait

from profusion_pipeline.training.data import read_picture_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Fit(nn.Module):
    """A line through random points."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)

    def forward(self, draw: int) -> torch.Tensor:
        points = torch.randn(8, 3, generator=draw_generator(0, draw))
        return ((self.line(points)[:, 0] - points.sum(1)) ** 2).mean()


def test_an_interrupted_fit_ends_as_the_undisturbed_one(tmp_path):
    schedule = Schedule(steps=30, learning_rate=0.05, warmup=3, checkpoint_every=10)
    whole = fit(Fit(), schedule, tmp_path / "whole", precision="no")

    class Interrupted(Fit):
        def forward(self, draw: int) -> torch.Tensor:
            if draw == 17:
                raise KeyboardInterrupt
            return super().forward(draw)

    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(), schedule, tmp_path / "parts", precision="no")
    resumed = fit(Fit(), schedule, tmp_path / "parts", precision="no")
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_fit_learns_and_names_the_step_of_a_loss_that_is_no_number(tmp_path):
    schedule = Schedule(steps=300, learning_rate=0.1, warmup=3, ema_decay=0.5)
    model = fit(Fit(), schedule, tmp_path / "fit", precision="no")
    assert torch.allclose(model.line.weight, torch.ones(1, 3), atol=0.02)

    class Broken(Fit):
        def forward(self, draw: int) -> torch.Tensor:
            return super().forward(draw) * float("nan")

    with pytest.raises(FloatingPointError, match="the loss of broken is nan at step 5"):
        fit(Broken(), Schedule(steps=5, learning_rate=0.1), tmp_path / "broken", precision="no")


def test_the_learning_rate_warms_up_stays_and_falls():
    schedule = Schedule(steps=1000, learning_rate=1.0, warmup=10, tail=0.5)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(10) == schedule.rate(500) == pytest.approx(1.0)
    assert schedule.rate(999) == pytest.approx(0.02, abs=1e-3)


def test_pictures_are_kept_and_are_those_of_the_portraits(tmp_path):
    stored = pictures("test", 3, tmp_path)
    render = Renderer()
    assert all(np.array_equal(stored[row], render(one)) for row, one in enumerate(portraits("test", 3)))
    assert np.array_equal(to_pixels(to_tensor(stored)), stored)


def test_folding_the_normalisation_changes_no_reconstruction(tmp_path):
    torch.manual_seed(0)
    vae = new_autoencoder(channels=(8, 8, 8, 8), latent_channels=4).eval()
    with torch.no_grad():
        vae.quant_conv.bias += 3 * torch.randn_like(vae.quant_conv.bias)
    images = to_tensor(pictures("test", 8, tmp_path))
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        spread = vae.encode(images).latent_dist
        relative = spread.std / spread.mean.std((0, 2, 3))[:, None, None]
        fold_normalisation(vae, images)
        after = vae.encode(images).latent_dist
        assert torch.allclose(vae.decode(after.mean).sample, before, atol=1e-5)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-5)
    assert torch.allclose(after.std, relative, rtol=1e-4)


def test_the_autoencoder_and_the_unet_learn_at_toy_size(tmp_path):
    from tiny import make_components

    components = make_components()
    images, people = pictures("train", 8, tmp_path), portraits("train", 8)
    vae = new_autoencoder(channels=(8, 8, 8, 8), latent_channels=4)
    first = psnr(vae.eval(), images).mean()
    fit(
        Reconstruction(vae.train(), images, 4),
        Schedule(steps=20, learning_rate=3e-3, warmup=1, ema_decay=0.5),
        tmp_path / "vae",
    )
    assert psnr(vae.eval(), images).mean() > first
    latents = encode_pictures(vae, images, tmp_path / "latents.npy")
    assert latents.shape == (8, 2, 4, 8, 8)
    text_encoder = components["text_encoder"]
    unet = new_unet(4, text_encoder.config.hidden_size, channels=(16, 32))
    objective = Denoising(unet, text_encoder, components["tokenizer"], latents, people, batch_size=4)
    with torch.no_grad():
        before = sum(objective(draw) for draw in range(8))
    fit(objective, Schedule(steps=20, learning_rate=3e-3, warmup=1, ema_decay=0.5), tmp_path / "unet")
    with torch.no_grad():
        assert sum(objective(draw) for draw in range(8)) < before
    assert not any(parameter.requires_grad for parameter in text_encoder.parameters())


def test_labels_are_indices_of_what_can_be_seen():
    people = [sample_portrait(seed) for seed in range(20)]
    for row, portrait in zip(labels(people), people, strict=True):
        for index, (name, values) in zip(row.tolist(), VALUES.items(), strict=True):
            seen = name in portrait.visible()
            assert (index == HIDDEN) != seen
            assert not seen or values[index] == portrait.attributes()[name]


def test_the_reader_learns(tmp_path):
    torch.manual_seed(0)
    reading = Reading(AttributeReader(width=8, features=32), batch_size=8)
    with torch.no_grad():
        before = sum(reading(draw) for draw in range(4))
    fit(reading, Schedule(steps=30, learning_rate=3e-3, warmup=1, ema_decay=0.5), tmp_path / "reader", precision="no")
    with torch.no_grad():
        assert sum(reading(draw) for draw in range(4)) < before
    found = accuracy(reading.reader, portraits("test", 6), pictures("test", 6, tmp_path))
    assert all(0 <= share <= 1 for share, count in found.values() if count)


def test_the_captions_of_training_leave_out_more_or_less():
    objective = Denoising.__new__(Denoising)
    nn.Module.__init__(objective)
    objective.people = portraits("train", 1)
    texts = {objective.caption(0, random.Random(seed)) for seed in range(200)}
    assert "" in texts and len(texts) > 50


def test_captioned_pictures_say_all_but_the_person(tmp_path):
    write_captioned_pictures(tmp_path / "captioned", 12)
    folder = read_picture_folder(tmp_path / "captioned", reference="other", placeholder="S*")
    people, render = portraits("train", 12), Renderer()
    photos = [passport_photo(person, index) for index, person in enumerate(people)]
    shown = [one for pair in zip(people, photos, strict=True) for one in pair]
    assert len(folder.files) == len(folder.targets) == 24
    plain = 0
    for index, (portrait, target) in enumerate(zip(shown, folder.targets, strict=True)):
        with Image.open(folder.files[target]) as image:
            assert np.array_equal(image, render(portrait))
        # A photo shows itself; any other portrait is to be made from the photo, or from itself.
        assert set(folder.references[index]) == ({target} if index % 2 else {target, target + 1})
        text = folder.captions[index]
        assert not any(f"{value} {part}" in text for value, part in ((portrait.identity.skin, "skin"), ("", " hair")))
        plain += text == "a portrait of S*"
        assert text == "a portrait of S*" or f"{portrait.control.clothes_colour} {portrait.control.clothes}" in text
    assert 0 < plain < 12 and "a portrait of S*" not in folder.captions[::2]
    other = passport_photo(people[0], 0)
    assert other.identity == people[0].identity and other.control != people[0].control
    assert (other.control.hat, other.control.glasses, other.control.style) == ("none",) * 3
