"""Reads every attribute of the avatar world from a picture: a small classifier, trained on true renders.

`python examples/avatars/attributes.py` trains it (about five minutes on two cores) and prints, for every attribute, how
often it is right on renders of held-out people: the trust that a score deserves.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from loop import Schedule, draw_generator, fit, processes
from pictures import pictures, portraits, to_tensor
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy
from world import CONTROL_VALUES, IDENTITY_VALUES, NOT_SCORED, Portrait, Renderer, sample_portrait

VALUES = {name: values for name, values in {**IDENTITY_VALUES, **CONTROL_VALUES}.items() if name not in NOT_SCORED}
HIDDEN = -100  # the label of an attribute that the picture does not show


def labels(people: list[Portrait]) -> torch.Tensor:
    """`[B, attributes]` indices into `VALUES`, `HIDDEN` where the picture does not show the attribute."""
    rows = torch.full((len(people), len(VALUES)), HIDDEN)
    for row, portrait in zip(rows, people, strict=True):
        named, visible = portrait.attributes(), portrait.visible()
        for column, (name, values) in enumerate(VALUES.items()):
            if name in visible:
                row[column] = values.index(named[name])
    return rows


class AttributeReader(ModelMixin, ConfigMixin):
    """Pictures `[B, 3, 64, 64]` in [-1, 1] -> a dictionary: attribute -> scores of its values `[B, values]`."""

    @register_to_config
    def __init__(self, width: int = 32, features: int = 256):
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 6 * width]
        layers = []
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 16, features), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in VALUES.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.trunk(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: np.ndarray) -> torch.Tensor:
        """`[B, 64, 64, 3]` uint8 -> `[B, attributes]` indices into `VALUES`."""
        scores = [self(to_tensor(images[first : first + 100])) for first in range(0, len(images), 100)]
        return torch.stack([torch.cat([s[name] for s in scores]).argmax(-1) for name in VALUES], dim=1)


class Reading(nn.Module):
    """Cross entropy over the visible attributes of fresh renders, slightly blurred and noisy as generated ones are."""

    def __init__(self, reader: AttributeReader, batch_size: int, seed: int = 1):
        super().__init__()
        self.reader, self.batch_size, self.seed, self.render = reader, batch_size, seed, Renderer()

    def forward(self, draw: int) -> torch.Tensor:
        generator = draw_generator(self.seed, draw)
        seeds = torch.randint(2**40, (self.batch_size,), generator=generator).tolist()
        people = [sample_portrait(seed, "train") for seed in seeds]
        images = to_tensor(np.stack([self.render(portrait) for portrait in people]))
        strength = torch.rand(2, self.batch_size, 1, 1, 1, generator=generator)
        images = images.lerp(avg_pool2d(images, 3, 1, 1, count_include_pad=False), 0.7 * strength[0])
        images += 0.1 * strength[1] * torch.randn(images.shape, generator=generator)
        target = labels(people).to(self.reader.device)
        scores = self.reader(images.to(self.reader.device))
        losses = [
            cross_entropy(scores[name].float(), target[:, column], ignore_index=HIDDEN, reduction="sum")
            for column, name in enumerate(VALUES)
        ]
        return sum(losses) / self.batch_size


def accuracy(reader: AttributeReader, people: list[Portrait], images: np.ndarray) -> dict[str, tuple[float, int]]:
    """Attribute -> (share of right readings, number of pictures that show it)."""
    right, target = reader.read(images), labels(people)
    shown = target != HIDDEN
    return {
        name: (
            (right[:, column] == target[:, column])[shown[:, column]].float().mean().item(),
            int(shown[:, column].sum()),
        )
        for column, name in enumerate(VALUES)
    }


def main(work: Path, steps: int = 3200, batch_size: int = 32, held_out: int = 4000) -> Path:
    """Train, save to `work/reader`, print the accuracy on renders of validation people, also style by style."""
    torch.manual_seed(0)
    reader = AttributeReader()
    people, images = portraits("validation", held_out), pictures("validation", held_out, work / "data")
    fit(Reading(reader, batch_size), Schedule(steps=steps, learning_rate=1.5e-3, ema_decay=0.995), work / "attributes")
    if not processes().is_main_process:
        return work / "reader"
    reader.save_pretrained(work / "reader")
    for name, (share, count) in accuracy(reader, people, images).items():
        print(f"{name:16s} {share:.4f} of {count}")
    for style in CONTROL_VALUES["style"]:
        rows = [row for row, portrait in enumerate(people) if portrait.control.style == style]
        found = accuracy(reader, [people[row] for row in rows], images[rows])
        print(f"{style}: " + ", ".join(f"{name} {share:.3f}" for name, (share, count) in found.items() if count))
    return work / "reader"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--steps", type=int, default=3200, help="optimizer steps")
    main(**vars(parser.parse_args()))
