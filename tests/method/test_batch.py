"""What a call meets is in the tests of the pipeline; here is what the helpers give back, and errors of their own."""

import pytest

from profusion_pipeline.method import batch


def test_one_for_all_or_one_for_each():
    assert batch.list_prompts(["a", "b"]) == ["a", "b"]
    assert batch.list_texts("noun", "dog", 2) == ["dog", "dog"]
    assert batch.list_texts("noun", ["dog", "cat"], 2) == ["dog", "cat"]
    assert batch.list_weights(None, 2) == [None, None]
    assert batch.list_weights([1.0, 2.0], 2) == [[1.0, 2.0], [1.0, 2.0]]
    assert batch.list_weights([None, [1.0]], 2) == [None, [1.0]]
    with pytest.raises(ValueError, match="`image_weights` has 1 entries, but there are 2 prompts"):
        batch.list_weights([[1.0]], 2)


def test_class_prompts():
    prompts = ["S* on the beach", "a photo of S*"]
    assert batch.list_class_prompts(prompts, "S*", ["dog", "man"], None) == ["dog on the beach", "a photo of man"]
    assert batch.list_class_prompts(prompts, "S*", "dog", "a cat") == ["a cat", "a cat"]
