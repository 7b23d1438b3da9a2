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
