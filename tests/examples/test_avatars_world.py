"""The avatar world: deterministic, disjoint, described in right words, and drawn as it is described."""

import random
from dataclasses import replace

import numpy as np
import pytest
import styles
from world import (
    COLOURLESS_STYLES,
    COLOURS,
    CONTROL_VALUES,
    HIDDEN_BY,
    IDENTITY_VALUES,
    Portrait,
    Renderer,
    background,
    caption,
    describe_control,
    describe_identity,
    main,
    sample_control,
    sample_identity,
    sample_portrait,
    with_article,
)

PLAIN = {"hat": "none", "glasses": "none", "style": "none"}


@pytest.fixture(scope="module")
def render():
    return Renderer()


def portrait_with(seed: int = 0, *, identity: dict | None = None, **control) -> Portrait:
    portrait = sample_portrait(seed)
    return Portrait(replace(portrait.identity, **(identity or {})), replace(portrait.control, **{**PLAIN, **control}))


def test_the_same_seed_gives_the_same_portrait_and_picture(render):
    assert sample_portrait(5) == sample_portrait(5) != sample_portrait(6)
    picture = render(sample_portrait(5))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, Renderer()(sample_portrait(5)))


def test_the_splits_share_no_face():
    faces = {
        split: {
            tuple(getattr(sample_portrait(seed, split).identity, name) for name in IDENTITY_VALUES)
            for seed in range(400)
        }
        for split in ("train", "validation", "test")
    }
    assert not faces["train"] & faces["test"]
    assert not faces["train"] & faces["validation"]
    assert not faces["validation"] & faces["test"]


def test_about_a_tenth_of_all_people_is_held_out_for_each_purpose():
    rng = random.Random(0)
    splits = [sample_identity(rng).split for _ in range(4000)]
    assert 0.08 < splits.count("test") / 4000 < 0.12
    assert 0.08 < splits.count("validation") / 4000 < 0.12


def test_every_value_of_every_attribute_changes_the_picture(render):
    for name, values in {**IDENTITY_VALUES, **CONTROL_VALUES}.items():
        base = portrait_with(3, identity={"hair": "bob", "facial_hair": "beard"}, hat="cap")
        if name in IDENTITY_VALUES:
            people = [
                Portrait(replace(base.identity, **{name: value}), replace(base.control, hat="none")) for value in values
            ]
        else:
            people = [Portrait(base.identity, replace(base.control, **{name: value})) for value in values]
        if name.endswith("_colour") and name in IDENTITY_VALUES or name == "skin":
            continue  # shades are drawn from the `_rgb` fields, see below
        pictures = {render(person).tobytes() for person in people}
        assert len(pictures) == len(values), name


@pytest.mark.parametrize("field", ["hair_rgb", "skin_rgb", "eye_rgb"])
def test_shades_that_no_word_tells_are_drawn(render, field):
    person = portrait_with(2, identity={"hair": "bob"})
    shade = tuple(channel * 0.8 for channel in getattr(person.identity, field))
    other = Portrait(replace(person.identity, **{field: shade}), person.control)
    assert not np.array_equal(render(person), render(other))


def test_a_hat_leaves_long_hair_in_sight_and_covers_the_top(render):
    bare, hatted = (portrait_with(4, identity={"hair": "long straight"}, hat=hat) for hat in ("none", "beanie"))
    difference = np.abs(render(bare).astype(int) - render(hatted)).sum(-1) > 0
    assert difference[:20].any() and not difference[30:].any()


def test_clothes_and_hat_stand_out_from_a_plain_background():
    rng = random.Random(0)
    for _ in range(300):
        control = sample_control(rng)
        assert control.background not in (control.clothes_colour, control.hat_colour)


def test_what_hides_an_attribute_takes_it_off_the_score():
    assert "hair" in portrait_with(1).visible()
    for name, causes in HIDDEN_BY.items():
        for cause, values in causes.items():
            for value in values:
                person = {cause: value} if cause in IDENTITY_VALUES else {}
                control = {} if person else {cause: value}
                assert name not in portrait_with(1, identity=person, **control).visible()
    for style in COLOURLESS_STYLES:
        assert not {name for name in portrait_with(1, style=style).visible() if "colour" in name}
    for hair, seen in (("bob", True), ("spiky", False), ("bald", False)):
        assert ("hair_colour" in portrait_with(1, identity={"hair": hair}, hat="beanie").visible()) == seen


def test_a_caption_says_everything_once_when_nothing_is_dropped():
    portrait = portrait_with(
        0,
        identity={"hair": "bob", "hair_colour": "red", "facial_hair": "none", "skin": "pale", "eye_colour": "blue"},
        clothes="overalls",
        clothes_colour="orange",
        hat="top hat",
        hat_colour="blue",
        glasses="sunglasses",
        expression="tongue out",
        background="beach",
    )
    words = caption(portrait, random.Random(0))
    for part in ("red bob hair", "pale skin", "blue eyes", "wearing orange overalls", "wearing a blue top hat"):
        assert words.count(part) == 1
    for part in ("wearing sunglasses", "sticking tongue out", "at the beach"):
        assert words.count(part) == 1


def test_a_subject_word_stands_in_for_the_whole_identity():
    for seed in range(50):
        words = caption(sample_portrait(seed), random.Random(seed), subject="S*")
        assert words.count("S*") == 1
        assert not {"person", "hair", "skin", "eyes"} & set(words.replace(",", "").split())


def test_dropping_everything_leaves_the_style_and_a_person():
    portrait = portrait_with(0)
    assert describe_identity(portrait.identity, random.Random(0), drop=1.0) == "a person"
    assert describe_control(portrait.control, random.Random(0), drop=1.0) == []


@pytest.mark.parametrize(
    "noun, phrase",
    [("orange cap", "an orange cap"), ("red cap", "a red cap"), ("blue headphones", "blue headphones")],
)
def test_articles(noun, phrase):
    assert with_article(noun) == phrase


@pytest.mark.parametrize("name", list(styles.FILTERS))
def test_a_style_keeps_shape_and_range(name):
    image = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    styled = styles.FILTERS[name](image)
    assert styled.shape == image.shape and styled.min() >= 0 and styled.max() <= 1
    assert np.abs(styled - image).mean() > 0.02


def test_scenes_and_colours_make_different_backgrounds():
    pictures = {background(name, 64).tobytes() for name in CONTROL_VALUES["background"]}
    assert len(pictures) == len(COLOURS) + 4


def test_the_stored_parts_are_those_that_parts_py_draws(tmp_path):
    pytest.importorskip("skia", reason="the extra `avatars` is not installed")
    pytest.importorskip("python_avatars", reason="the extra `avatars` is not installed")
    import parts

    drawn = np.load(parts.main(out=tmp_path / "parts.npz"))
    stored = np.load(parts.__file__.replace("parts.py", "parts_64.npz"))
    assert set(drawn.files) == set(stored.files)
    for name in stored.files:
        difference = np.abs(drawn[name].astype(np.float32) - stored[name].astype(np.float32))
        assert difference.max() <= 0.02, name


def test_the_sheet_command_writes_a_picture(tmp_path):
    from PIL import Image

    with Image.open(main(tmp_path / "sheet.png", columns=2, rows=1)) as sheet:
        assert sheet.size == (256, 128)
