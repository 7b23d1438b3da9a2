"""What a call meets is in the tests of the pipeline; here is what the helpers give back, and errors of their own."""

import pytest
import torch

from profusion_pipeline.method import call_inputs as inputs


def test_numbers():
    for value in (0, 0.0, 7, 1e-9):
        inputs.check_number("scale", value)
    inputs.check_number("scale", 2.0, at_least=2)
    with pytest.raises(ValueError, match="`scale` must be a finite number of at least 2, not 1"):
        inputs.check_number("scale", 1, at_least=2)
    with pytest.raises(TypeError, match="`scale` must be a number, not True"):
        inputs.check_number("scale", True)
    inputs.check_count("steps", 1, at_least=1)


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
    with pytest.raises(ValueError, match="`fusion_eta` must be at most 1.4142 with this schedule, not 2.0"):
        inputs.check_fusion_eta(2.0, [0.5, 1 - 2.0**2])


def test_sizes(pipe):
    components = pipe.components
    assert inputs.choose_size(None, None, [], components) == (16, 16)
    assert inputs.choose_size(32, None, [], components) == (32, 16)
    pipe.unet.register_to_config(sample_size=[16, 8])
    assert inputs.choose_size(None, None, [], components) == (32, 16)
    with pytest.raises(ValueError, match="multiples of 16 and at least 16, not 24 and 16"):
        inputs.choose_size(24, 16, [], components)
