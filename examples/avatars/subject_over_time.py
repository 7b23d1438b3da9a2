"""How much of S* is the photo and how much the person, over noise: `python examples/avatars/subject_over_time.py`.

For each of some people S* is made from two photos in other clothes, elsewhere, and from a photo of somebody else, all
while the same picture of that person is at noise level t. How far the first two lie apart, as a share of how far the
person and somebody else do, is what S* carries besides the person. The table goes into docs/study.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from frontier_tables import DOCUMENT
from study import Avatars

from profusion_pipeline import ProFusionPipeline, SubjectEmbedding, load_demo_pipeline
from profusion_pipeline.demo import FOLDER
from profusion_pipeline.evaluation.metrics import bootstrap_means
from profusion_pipeline.evaluation.report import fill_marks, markdown
from profusion_pipeline.method.fusion_sampling import add_noise

TIMES = (20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980)


def subject_words(
    pipe: ProFusionPipeline, subjects: list[SubjectEmbedding], latents: torch.Tensor, noise: torch.Tensor, t: int
) -> torch.Tensor:
    """S* of each photo beside a picture at noise level t `[B, L x D]`."""
    noisy = add_noise(latents, noise, pipe.scheduler.alphas_cumprod[t])  # [B, C, h, w]
    reference, states = (torch.cat([getattr(one, name) for one in subjects]) for name in ("latents", "image_states"))
    with torch.no_grad():
        return pipe.promptnet(reference, torch.tensor(t), states, noisy).prompt_embeds.flatten(1)


def distances(pipe: ProFusionPipeline, people: int, split: str = "test") -> np.ndarray:
    """Of S* in other clothes, and of somebody else's `[people, times, 2]`."""
    avatars = Avatars(people, split)
    photos = [[one.photos[0], *(avatars.other_photo(one.name, i)[0] for i in (1, 2))] for one in avatars.subjects]
    first, second, drawn = ([pipe.encode_subject(photo) for photo in each] for each in zip(*photos, strict=True))
    latents = torch.cat([one.latents for one in drawn])  # [people, C, h, w]
    noise, found = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), []
    for t in TIMES:
        words, redressed, somebody = (
            subject_words(pipe, subjects, latents, noise, t) for subjects in (first, second, first[1:] + first[:1])
        )
        found.append(torch.stack([(words - other).norm(dim=1) for other in (redressed, somebody)], dim=1))
    return torch.stack(found, dim=1).numpy()


def table(apart: np.ndarray) -> str:
    """The share for each noise level, with its 95 % interval over people."""
    draws = bootstrap_means(apart)  # [draws, times, 2]
    low, high = np.quantile(draws[..., 0] / draws[..., 1], (0.025, 0.975), axis=0)
    (redressed, somebody) = apart.mean(axis=0).T
    lines = [["t of 1000", "other clothes and place", "somebody else", "share"], ["---"] * 4]
    for i, t in enumerate(TIMES):
        share = f"{redressed[i] / somebody[i]:.3f} ({low[i]:.3f} to {high[i]:.3f})"
        lines.append([str(t), f"{redressed[i]:.0f}", f"{somebody[i]:.0f}", share])
    return f"{len(apart)} test people; distances of S*.\n\n{markdown(lines)}"


def main(people: int = 30, model: Path = FOLDER / "model", publish: bool = False) -> None:
    """Measure, print, and put into the page if asked."""
    pipe = load_demo_pipeline(folder=model)
    found = table(distances(pipe, people))
    print(found)
    if publish:
        fill_marks(DOCUMENT, {"subject over time": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=30, help="test people")
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="a ProFusion folder")
    parser.add_argument("--publish", action="store_true", help="put the table into docs/study.md")
    main(**vars(parser.parse_args()))
