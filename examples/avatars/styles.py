"""Styles of the avatar world: filters `[n, n, 3]` in [0, 1] -> the same, deterministic."""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def blur(image: np.ndarray) -> np.ndarray:
    """Mean of the 3 x 3 neighbours."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def edges(image: np.ndarray) -> np.ndarray:
    """Length of the central-difference gradient, the largest of the three channels, `[n, n, 1]`."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    dx = padded[1:-1, 2:] - padded[1:-1, :-2]
    dy = padded[2:, 1:-1] - padded[:-2, 1:-1]
    return np.sqrt((dx * dx + dy * dy).max(-1, keepdims=True))


def luma(image: np.ndarray) -> np.ndarray:
    return (image @ LUMA)[..., None]


def pixel_art(image: np.ndarray) -> np.ndarray:
    """Blocks of 3 x 3 pixels, six levels a channel."""
    size = image.shape[0]
    centres = np.minimum(np.arange(size) // 3 * 3 + 1, size - 1)
    return np.round(blur(image)[centres][:, centres] * 5) / 5


def pencil_sketch(image: np.ndarray) -> np.ndarray:
    """Dark outlines on paper; dark areas are hatched."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    light = luma(image)
    paper = 0.97 - 0.75 * np.clip(edges(image) * 1.6, 0, 1) - 0.28 * (1 - light)
    hatching = (((x + y) % 4) < 2)[..., None] * (light < 0.45) * 0.10
    return np.clip(paper - hatching, 0, 1).repeat(3, -1)


def sepia(image: np.ndarray) -> np.ndarray:
    tone = luma(image) ** 0.9 * np.array([1.05, 0.86, 0.62], np.float32)
    return np.clip(tone + np.array([0.05, 0.03, 0.0], np.float32), 0, 1)


def neon(image: np.ndarray) -> np.ndarray:
    """Glowing outlines on a dark ground."""
    high, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    hue = np.clip((image - low) / (high - low + 0.08), 0, 1)
    outline = np.clip(edges(image) * 1.8, 0, 1)
    return np.clip(0.04 + outline * (0.25 + 0.75 * hue) * 1.1 + 0.22 * hue * high, 0, 1)


def watercolor(image: np.ndarray) -> np.ndarray:
    """Pale washes of few tones, soft outlines, the grain of the paper."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    soft = blur(image)
    grain = np.sin(x * 0.9 + np.sin(y * 0.7) * 1.5) * np.sin(y * 0.8 + np.sin(x * 0.5)) * 0.045
    washes = 0.72 * np.round(soft * 4) / 4 + 0.28
    outline = np.clip(edges(soft), 0, 0.35) * 0.5
    return np.clip(washes + grain[..., None] - outline, 0, 1).astype(np.float32)


FILTERS = {
    "pixel art": pixel_art,
    "pencil sketch": pencil_sketch,
    "sepia": sepia,
    "neon": neon,
    "watercolor": watercolor,
}
