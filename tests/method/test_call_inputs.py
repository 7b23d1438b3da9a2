"""What a call meets is in the tests of the pipeline; here is what the helpers give back, and errors of their own."""

import numpy as np
import pytest
import torch

from profusion_pipeline.method import call_inputs as inputs


def test_numbers():
    for value in (0, 0.0, 7, 1e-9, np.float64(3), np.float32(0.5), np.int64(2)):
        number = inputs.check_number("scale", value)
        assert number == value and type(number) is float
    inputs.check_number("scale", 2.0, at_least=2)
    with pytest.raises(ValueError, match="`scale` must be a finite number of at least 2, got 1"):
        inputs.check_number("scale", 1, at_least=2)
    with pytest.raises(TypeError, match="`scale` must be a number, got True"):
        inputs.check_number("scale", True)
    for value in (1, np.int64(1), np.uint8(1)):
        assert type(inputs.check_count("steps", value, at_least=1)) is int


def test_long_values_are_cut():
    assert inputs.shown("S*") == "'S*'" and inputs.shown(torch.zeros(10**4)) == "Tensor"
    with pytest.raises(TypeError) as raised:
        inputs.check_number("scale", "x" * 10**6)
    assert len(str(raised.value)) < 200


def test_weights():
    assert inputs.check_weights(None, 4) == [0.25] * 4
    assert inputs.check_weights((1, 0.0), 2) == [1, 0.0]


def test_generators():
    inputs.check_generator(None, 3)
    inputs.check_generator(torch.Generator(), 3)
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator or a list of them"):
        inputs.check_generator([None], 1)


def test_the_largest_eta_is_named():
    inputs.check_fusion_eta(2**0.5, [-1.0])
    inputs.check_fusion_eta(9.0, [])
    with pytest.raises(ValueError, match="`fusion_eta` must be at most 1.4142 with this schedule, got 2.0"):
        inputs.check_fusion_eta(2.0, [0.5, 1 - 2.0**2])


def test_sizes(pipe):
    components = pipe.components
    assert inputs.choose_size(None, None, [], components) == (16, 16)
    assert inputs.choose_size(32, None, [], components) == (32, 16)
    pipe.unet.register_to_config(sample_size=[16, 8])
    assert inputs.choose_size(None, None, [], components) == (32, 16)
    with pytest.raises(ValueError, match="multiples of 16 and at least 16, got 24 and 16"):
        inputs.choose_size(24, 16, [], components)


def test_one_for_all_or_one_for_each():
    assert inputs.list_prompts(["a", "b"]) == ["a", "b"]
    assert inputs.list_texts("noun", "dog", 2) == ["dog", "dog"]
    assert inputs.list_texts("noun", ["dog", "cat"], 2) == ["dog", "cat"]
    assert inputs.list_weights(None, 2) == [None, None]
    assert inputs.list_weights([1.0, 2.0], 2) == [[1.0, 2.0], [1.0, 2.0]]
    assert inputs.list_weights([None, [1.0]], 2) == [None, [1.0]]
    with pytest.raises(ValueError, match="`image_weights` must have an entry for each of 2 prompts, got 1"):
        inputs.list_weights([[1.0]], 2)


def test_class_prompts():
    prompts = ["S* on the beach", "a photo of S*"]
    assert inputs.list_class_prompts(prompts, "S*", ["dog", "man"], None) == ["dog on the beach", "a photo of man"]
    assert inputs.list_class_prompts(prompts, "S*", "dog", "a cat") == ["a cat", "a cat"]
