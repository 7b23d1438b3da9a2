from collections import Counter

import numpy as np
import pytest

from profusion_pipeline.training.captions import SamplePrompts, drop_parts

CAPTION = "smiling, a photo of S*, in a hat"


def prompts(tokenizer=None, **settings) -> SamplePrompts:
    return SamplePrompts([tokenizer], "a photo of S*", "S*", 1, **settings)


def test_parts_are_dropped_by_chance_and_the_person_never():
    generator = np.random.default_rng(0)
    seen = Counter(drop_parts(CAPTION, "S*", 0.25, generator) for _ in range(4000))
    expected = {
        CAPTION: 9 / 16,
        " a photo of S*, in a hat": 3 / 16,
        "smiling, a photo of S*": 3 / 16,
        " a photo of S*": 1 / 16,
    }
    assert seen.keys() == {text.strip() for text in expected}
    for text, share in expected.items():
        assert seen[text.strip()] / 4000 == pytest.approx(share, abs=0.03)


def test_texts_belong_to_sample_numbers():
    some, others = prompts(dropout=0.5, seed=3), prompts(dropout=0.5, seed=4)
    texts = [some.text(number, CAPTION) for number in range(50)]
    assert texts == [some.text(number, CAPTION) for number in range(50)]
    assert texts != [others.text(number, CAPTION) for number in range(50)]
    assert len(set(texts)) == 4
    assert {prompts().text(number, CAPTION) for number in range(20)} == {CAPTION}
    assert {some.text(number, "") for number in range(20)} == {"a photo of S*"}


def test_tokens_are_those_of_the_texts(components):
    tokenizer = components["tokenizer"]
    ids, positions = prompts(tokenizer).tokens([0, 1], [CAPTION, ""])
    for row, place, text in zip(ids, positions, (CAPTION, "a photo of S*"), strict=True):
        before, after = text.split("S*")
        expected = [tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
        assert place == 1 + len(expected[0])
        assert row[1:place].tolist() == expected[0]
        assert row[place + 1 : place + 1 + len(expected[1])].tolist() == expected[1]
    alone, _ = prompts(tokenizer).tokens([0, 1], ["", ""])
    assert alone.tolist() == ids[1:].tolist()
