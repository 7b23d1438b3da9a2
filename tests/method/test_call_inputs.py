"""What a call meets is in the tests of the pipeline; here is what the helpers give back, and errors of their own."""

import pytest
import torch

from profusion_pipeline.method import call_inputs as inputs


def test_sizes(pipe):
    components = pipe.components
    assert inputs.choose_size(None, None, [], components) == (16, 16)
    with pytest.raises(ValueError, match=r"`height` x `width` must be at most 16777216 pixels .*, got 4112 x 4096"):
        inputs.choose_size(4112, 4096, [], components)
    with pytest.raises(ValueError, match=r"got a whole number of 333 bits x 16\."):
        inputs.choose_size(16 * 10**99, 16, [], components)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_a_compiled_promptnet_gives_the_sizes_that_it_gave(components):
    """What `torch.compile` returns has no truth value; nothing is compiled before its first call."""
    compiled = components | {"promptnet": torch.compile(components["promptnet"])}
    assert inputs.choose_size(None, None, [], compiled) == inputs.choose_size(None, None, [], components)
