"""Pictures -> scores: what an encoder's features, or a reader of one's own, say of each picture."""

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from ..method.quoting import brief, quote
from .encoders import ENCODERS, Encoder, load_encoder
from .metrics import cosine_similarities, diversity
from .subjects import Picture


class Measure(ABC):
    """What scores pictures; `columns` names its scores.

    Example:
        >>> class Brightness(Measure):
        ...     columns = ("brightness",)
        ...
        ...     def __call__(self, pictures):
        ...         return {"brightness": np.array([np.asarray(one.image).mean() / 255 for one in pictures])}
    """

    columns: tuple[str, ...]

    @abstractmethod
    def __call__(self, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
        """The scores of each picture.

        Args:
            pictures: All seeds of a subject and prompt come together.

        Returns:
            For each column a number per picture; nan where nothing can be said. [N]
        """


class Similarity(Measure):
    """Cosines of one encoder's features: with the prompt, with the subject's photos, and between seeds.

    Args:
        name: What its columns are called after: `name prompt`, `name image`, `name diversity`.
        encoder: Pictures -> features; `name prompt` is there only if it also knows texts.
        class_noun: What stands for the placeholder in a prompt that is encoded.
        placeholder: Of the prompts.

    Example:
        >>> from PIL import Image
        >>> from profusion_pipeline.evaluation.subjects import Subject
        >>> photo = Image.new("RGB", (8, 8), "red")
        >>> measure = Similarity("colour", Encoder(lambda images: np.stack([np.asarray(i)[0, 0] for i in images])))
        >>> scores = measure([Picture(photo, Subject("ada", (photo,), ("S*",)), "S*", 0)])
        >>> scores["colour image"].tolist()
        [1.0]
    """

    def __init__(self, name: str, encoder: Encoder, class_noun: str = "person", placeholder: str = "S*"):
        self.name, self.encoder = name, encoder
        self.class_noun, self.placeholder = class_noun, placeholder
        self.columns = (*((f"{name} prompt",) if encoder.texts else ()), f"{name} image", f"{name} diversity")
        self._texts: dict[str, np.ndarray] = {}
        self._photos: dict[str, np.ndarray] = {}

    def __call__(self, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
        """Similarities in -1..1, diversity in 0..2.

        Args:
            pictures: Of any subjects; all seeds of a subject and prompt together.

        Returns:
            A number per picture in each column; nan where the encoder finds nothing, or a seed is alone. [N]
        """
        features = self.encoder.images([picture.image for picture in pictures])  # [N, D]
        groups = [f"{picture.subject.name}\n{picture.prompt}" for picture in pictures]
        scores = {
            f"{self.name} image": np.array(
                [self._likeness(feature, one) for feature, one in zip(features, pictures, strict=True)]
            ),
            f"{self.name} diversity": diversity(features, np.array(groups)),
        }
        if self.encoder.texts:
            texts = np.concatenate([self._text(picture.prompt) for picture in pictures])  # [N, D]
            scores[f"{self.name} prompt"] = cosine_similarities(features, texts)
        return scores

    def _likeness(self, feature: np.ndarray, picture: Picture) -> float:
        subject = picture.subject
        if subject.name not in self._photos:
            self._photos[subject.name] = self.encoder.images(subject.photos)  # [R, D]
        return float(np.mean(cosine_similarities(self._photos[subject.name], feature[None])))

    def _text(self, prompt: str) -> np.ndarray:
        if prompt not in self._texts:
            self._texts[prompt] = self.encoder.texts([prompt.replace(self.placeholder, self.class_noun)])  # [1, D]
        return self._texts[prompt]


def columns_of(measures: Sequence[Measure]) -> list[str]:
    """The names of all scores.

    Args:
        measures: What scores pictures.

    Returns:
        Their columns.

    Raises:
        TypeError: One can't be called, or has no `columns`, as a bare function.

    Example:
        >>> columns_of([Similarity("colour", Encoder(lambda images: np.zeros((len(images), 3))))])
        ['colour image', 'colour diversity']
    """
    columns = []
    for measure in measures:
        named = getattr(measure, "columns", None)
        if not (callable(measure) and isinstance(named, tuple | list) and all(isinstance(name, str) for name in named)):
            raise TypeError(
                "A metric must be called with pictures and name its scores in `columns`, a tuple of texts, got a "
                f"{type(measure).__name__} whose `columns` is {str(named)[:80]}."
            )
        columns += named
    return columns


def try_measures(measures: Sequence[Measure], picture: Picture) -> None:
    """Score one picture, so that a metric that can't is found out before many are drawn.

    Args:
        measures: What scores pictures.
        picture: Any.

    Raises:
        ValueError: The scores are not a number for each column.

    Example:
        >>> try_measures([], None)
    """
    for measure in measures:
        scores = measure([picture])
        for column in measure.columns:
            score = scores.get(column) if isinstance(scores, dict) else None
            if score is None or np.shape(score) != (1,) or np.asarray(score).dtype.kind not in "fiub":
                raise ValueError(
                    "A metric must return one number for each picture in each of its columns, "
                    f"{list(measure.columns)}, got {str(scores)[:80]} for one picture."
                )


def get_measure(
    name: str, *, class_noun: str = "person", placeholder: str = "S*", device: str | torch.device = "cpu"
) -> Measure:
    """The measure of this name.

    Args:
        name: An encoder's name, or `module:attribute`: something called with `class_noun`, `placeholder` and `device`
            that returns a measure.
        class_noun: As of [`Similarity`].
        placeholder: As of [`Similarity`].
        device: Where torch's models run.

    Returns:
        The measure.

    Raises:
        ValueError: There is no such encoder, module or attribute, or it can't be called so.
        ImportError: It needs an extra that is not installed; the sentence names it.

    Example:
        >>> get_measure("clip-vit-b-32", class_noun="person").columns  # doctest: +SKIP
        ('clip-vit-b-32 prompt', 'clip-vit-b-32 image', 'clip-vit-b-32 diversity')
    """
    if ":" not in name:
        if name not in ENCODERS:
            raise ValueError(
                f"A metric must be one of {', '.join(ENCODERS)}, or module:attribute for one of your own, "
                f"got {quote(name)}."
            )
        return Similarity(name, load_encoder(name, device), class_noun, placeholder)
    module, attribute = name.split(":", 1)
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"The metric {quote(name)} must name an attribute of a module: {brief(error)}.") from error
    given = {"class_noun": class_noun, "placeholder": placeholder, "device": device}
    try:
        inspect.signature(make).bind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The metric {quote(name)} must be called with {', '.join(given)}, and then be or return a "
            f"measure: {brief(error)}."
        ) from error
    return make(**given)
