import sys
import types

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cosine

from profusion_pipeline.evaluation.encoders import Encoder
from profusion_pipeline.evaluation.measures import Similarity, columns_of, get_measure, try_measures
from profusion_pipeline.evaluation.subjects import Picture, Subject

WORDS = {"a person at sea": (0.0, 0.0, 1.0), "a person on fire": (1.0, 0.2, 0.0)}


def colours(images) -> np.ndarray:
    """The mean colour; black is nothing."""
    found = np.stack([np.asarray(image, dtype=float).mean((0, 1)) for image in images])
    found[(found == 0).all(1)] = np.nan
    return found


def plain(*colour: int) -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


@pytest.fixture
def pictures():
    ada = Subject("ada", (plain(255, 0, 0), plain(0, 0, 255)), ("S* at sea", "S* on fire"))
    bob = Subject("bob", (plain(10, 20, 30),), ("S* at sea",))
    return [
        Picture(plain(200, 10, 0), ada, "S* at sea", 0),
        Picture(plain(0, 10, 200), ada, "S* at sea", 1),
        Picture(plain(1, 2, 3), bob, "S* at sea", 0),
        Picture(plain(0, 0, 0), ada, "S* on fire", 0),
    ]


def test_similarities_against_scipy(pictures):
    texts = Encoder(colours, lambda words: np.array([WORDS[word] for word in words]))
    measure = Similarity("colour", texts, class_noun="a person")
    scores = measure(pictures)
    assert set(scores) == set(measure.columns) == {"colour prompt", "colour image", "colour diversity"}
    first, second, third, _ = (colours([picture.image])[0] for picture in pictures)
    assert scores["colour prompt"][:3] == pytest.approx([1 - cosine(one, (0, 0, 1)) for one in (first, second, third)])
    likeness = [np.mean([1 - cosine(one, photo) for photo in ((1, 0, 0), (0, 0, 1))]) for one in (first, second)]
    assert scores["colour image"][:3] == pytest.approx([*likeness, 1.0])
    assert scores["colour diversity"][:2] == pytest.approx([cosine(first, second)] * 2)
    assert np.isnan(scores["colour diversity"][2:]).all()  # alone
    assert np.isnan(scores["colour prompt"][3]) and np.isnan(scores["colour image"][3])  # nothing found


def test_an_encoder_without_texts_has_no_column_for_them(pictures):
    assert Similarity("colour", Encoder(colours)).columns == ("colour image", "colour diversity")
    assert set(Similarity("colour", Encoder(colours))(pictures)) == {"colour image", "colour diversity"}


def test_a_measure_of_ones_own(monkeypatch):
    module = types.ModuleType("my_measures")
    module.make = lambda **given: given
    monkeypatch.setitem(sys.modules, "my_measures", module)
    given = get_measure("my_measures:make", class_noun="man", placeholder="S*", device="cpu")
    assert given == {"class_noun": "man", "placeholder": "S*", "device": "cpu"}


@pytest.mark.parametrize("name", ["my_measures:make", "math:nothing"])
def test_a_measure_that_is_nowhere(name):
    with pytest.raises(ValueError, match=f"The metric '{name}' must name an attribute of a module: "):
        get_measure(name)


def test_an_unknown_metric():
    with pytest.raises(ValueError, match="A metric must be one of clip-vit-b-32, .*, or module:attribute.*got 'FID'"):
        get_measure("FID")


def bare(pictures):
    return {"brightness": np.zeros(len(pictures))}


def test_a_bare_function_is_no_measure(monkeypatch):
    module = types.ModuleType("my_measures")
    module.bare, module.anything = bare, lambda **words: bare
    monkeypatch.setitem(sys.modules, "my_measures", module)
    with pytest.raises(ValueError, match="'my_measures:bare' must be called with class_noun, placeholder, device"):
        get_measure("my_measures:bare")
    with pytest.raises(TypeError, match="name its scores in `columns`, a tuple of texts, got a function"):
        columns_of([get_measure("my_measures:anything")])


@pytest.mark.parametrize(
    "scores", [None, np.zeros(1), {}, {"other": np.zeros(1)}, {"a b": np.zeros(2)}, {"a b": ["high"]}, {"a b": 0.5}]
)
def test_a_measure_is_tried_on_one_picture(scores, pictures):
    class Mine:
        columns = ("a b",)

        def __call__(self, pictures):
            return scores

    with pytest.raises(ValueError, match=r"one number for each picture in each of its columns, \['a b'\], got"):
        try_measures([Mine()], pictures[0])


def test_a_measure_that_scores_is_let_through(pictures):
    try_measures([Similarity("colour", Encoder(colours))], pictures[3])  # nan, for nothing is found
