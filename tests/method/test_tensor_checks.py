import pytest
import torch

from profusion_pipeline.method import tensor_checks


def test_generators():
    tensor_checks.check_generator(None, 3)
    tensor_checks.check_generator(torch.Generator(), 3)
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator or a list of them"):
        tensor_checks.check_generator([None], 1)


@pytest.mark.parametrize(
    "tensor, kind", [(torch.zeros(4, device="meta"), "the device meta"), (torch.zeros(4).to_sparse(), "sparse")]
)
def test_tensors_without_numbers(tensor, kind):
    with pytest.raises(
        ValueError, match=f"`latents` must be a dense tensor that holds its numbers, got one of .*{kind}"
    ):
        tensor_checks.check_tensor("latents", tensor, (4,), torch.float32)


def test_numbers_have_an_end():
    tensor_checks.check_tensor("latents", torch.full((4,), -1e6), (4,), torch.float32)
    with pytest.raises(ValueError, match="`latents` must hold numbers of at most 1000000, got one of 1e\\+30"):
        tensor_checks.check_tensor("latents", torch.tensor([0, -1e30]), (2,), torch.float32)
    ones = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 24)
    with pytest.raises(ValueError, match="`weights` must be at most 10000, whatever its sign, got 20000.0"):
        tensor_checks.check_subject(*ones, torch.full((1,), 2e4))
