"""What is measured of pictures, as functions of features and scores: similarities, means, and how sure these are.

Subjects are what a study samples: two pictures of one person are not two pieces of evidence. So every interval comes
from a bootstrap over subjects, each drawn with all its pictures.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Estimate(NamedTuple):
    """A mean and its interval.

    Args:
        mean: Of all values.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much a first system differs from a second one on the same subjects, prompts and seeds.

    Args:
        mean: Of first - second.
        low: Lower end of its interval.
        high: Upper end.
        share: Share of the bootstrap's draws in which the first is ahead; draws in which both are equal count half.
    """

    mean: float
    low: float
    high: float
    share: float


def cosine_similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """cos(a, b) = a·b / (|a| |b|), row by row.

    Args:
        first: Features. [N, D]
        second: As many, or a single row for all. [N, D] or [1, D]

    Returns:
        Values in -1..1; nan where a feature is nan (no face was found, for example). [N]

    Raises:
        ValueError: The shapes don't fit each other.

    Example:
        >>> cosine_similarities(np.array([[3.0, 4.0], [-1.0, 0.0]]), np.array([[1.0, 0.0]])).tolist()
        [0.6, -1.0]
    """
    if first.ndim != 2 or second.ndim != 2 or second.shape not in (first.shape, (1, *first.shape[1:])):
        raise ValueError(
            f"`second` must be [N, D] or [1, D] beside `first` of [N, D], got {list(second.shape)} beside "
            f"{list(first.shape)}."
        )
    first, second = first.astype(np.float64), second.astype(np.float64)
    dots = (first * second).sum(axis=1)  # [N]
    return dots / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def diversity(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """1 - mean cos(a, b) over the other pictures b of the same group: how much seeds change a picture.

    Args:
        features: Of N pictures. [N, D]
        groups: A number or name for each; pictures of one group differ in nothing but the seed. [N]

    Returns:
        Values in 0..2; nan for a picture that is alone in its group. [N]

    Raises:
        ValueError: There is not one group for each picture.

    Example:
        >>> diversity(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 0, 1])).tolist()
        [1.0, 1.0, nan]
    """
    if len(groups) != len(features):
        raise ValueError(f"`groups` must name the group of each of {len(features)} pictures, got {len(groups)}.")
    features = features.astype(np.float64)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)  # [N, D]
    others = (groups[:, None] == groups) & ~np.eye(len(groups), dtype=bool)  # [N, N]
    counts = others.sum(axis=1)  # [N]
    similar = np.where(others, directions @ directions.T, 0.0).sum(axis=1)  # [N]
    return 1 - np.divide(similar, counts, out=np.full(len(groups), np.nan), where=counts > 0)


def bootstrap_interval(
    values: np.ndarray, subjects: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """The mean of all values, and the percentile interval of a bootstrap over subjects.

    Args:
        values: One for each picture; nan where nothing could be measured, which then counts for nothing. [N]
        subjects: Whose picture it is. [N]
        level: Share of the bootstrap's means that the interval holds, in 0..1.
        draws: How many times as many subjects as there are are drawn, with replacement.
        seed: Of these draws.

    Returns:
        Mean, low and high.

    Raises:
        ValueError: There is not one subject for each value, or no value at all.

    Example:
        >>> bootstrap_interval(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 0, 1, 1])).mean
        0.5
    """
    mean, means = _bootstrap(values, subjects, draws, seed)
    return Estimate(mean, *_ends(means, level))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    subjects: np.ndarray,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """The mean of first - second, picture by picture, and its interval over subjects.

    What makes a subject hard is hard for both systems and falls out, so this tells apart systems whose own intervals
    overlap.

    Args:
        first: A score of the first system. [N]
        second: Of the second, for the same subjects, prompts and seeds in the same order. [N]
        subjects: As of [`bootstrap_interval`]. [N]
        level: As of [`bootstrap_interval`].
        draws: As of [`bootstrap_interval`].
        seed: As of [`bootstrap_interval`].

    Returns:
        The difference, its interval, and in which share of the draws the first is ahead.

    Raises:
        ValueError: The lengths differ, or no picture has both scores.

    Example:
        >>> people = np.array([0, 0, 1, 1])
        >>> paired_difference(np.array([0.9, 0.8, 0.3, 0.2]), np.array([0.8, 0.7, 0.2, 0.1]), people).share
        1.0
    """
    if len(first) != len(second):
        raise ValueError(f"`first` and `second` must be scores of the same pictures, got {len(first)}, {len(second)}.")
    mean, means = _bootstrap(first - second, subjects, draws, seed)
    share = float(np.mean((np.sign(means) + 1) / 2))
    return Difference(mean, *_ends(means, level), share)


def bootstrap_means(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means over subjects that are drawn with replacement: what a function of means is then uncertain by.

    Args:
        values: Of each subject, equally sure for all. [S, ...]
        draws: How many times as many subjects as there are are drawn; the same ones for equal S and seed.
        seed: Of these draws.

    Returns:
        One mean for each draw. [draws, ...]

    Example:
        >>> bootstrap_means(np.ones((3, 2))).shape
        (2000, 2)
    """
    return values[_chosen(len(values), draws, seed)].mean(axis=1)  # [draws, S, ...] -> [draws, ...]


def _chosen(num_subjects: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(num_subjects, size=(draws, num_subjects))


def _bootstrap(values: np.ndarray, subjects: np.ndarray, draws: int, seed: int) -> tuple[float, np.ndarray]:
    """The mean, and the means of `draws` samples of the subjects. [draws]"""
    if len(values) != len(subjects):
        raise ValueError(f"`subjects` must name one for each of {len(values)} values, got {len(subjects)}.")
    known = np.isfinite(values)
    if not known.any():
        raise ValueError(f"There is no number among {len(values)} values.")
    _, owner = np.unique(subjects[known], return_inverse=True)
    totals = np.bincount(owner, weights=values[known])  # [S]
    counts = np.bincount(owner)  # [S]
    chosen = _chosen(len(totals), draws, seed)  # [draws, S]
    means = totals[chosen].sum(axis=1) / counts[chosen].sum(axis=1)  # [draws]
    return float(totals.sum() / counts.sum()), means


def _ends(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
