import itertools

import numpy as np
import pytest
import torch

from calls import rounding
from concepts import QUICK, assert_same, everything, photo, tiny_pipeline
from profusion_pipeline.customization.customize import Customization, customizing
from profusion_pipeline.customization.learning_weights import learning_weights
from profusion_pipeline.customization.subject_pool import EncodedPool

pytestmark = pytest.mark.numeric

MODES = pytest.mark.parametrize("mode", ["lora", "full"])


@MODES
def test_it_learns(pipe, mode):
    """On pairs that stay the same the loss goes down; on others it is noise at this size."""
    with customizing(pipe, photo(), QUICK.__class__(mode=mode, learning_rate=5e-3, pool_size=2)) as run:
        pairs = run.draw_pairs(range(4))
        losses = [run.learn_from(**pairs) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.01
    assert all(later < earlier + 0.01 for earlier, later in itertools.pairwise(losses))


@MODES
def test_a_loss_that_is_not_a_number_names_the_step(pipe, mode):
    before = everything(pipe)
    with pytest.raises(FloatingPointError, match="The loss is (nan|inf) at step 2 of 3, so nothing was made"):
        pipe.customize(photo(), QUICK, mode=mode, learning_rate=1e30)
    assert_same(before, everything(pipe))


@pytest.fixture
def numbered(pipe):
    """A customising whose picture number i is full of i, with latents that have no spread."""
    count = 5
    pool = EncodedPool(
        torch.arange(count).float()[:, None, None, None].expand(count, 4, 8, 8),
        torch.zeros(count, 4, 8, 8),
        torch.arange(count).float()[:, None, None].expand(count, 5, 24),
    )
    with learning_weights(pipe, QUICK) as learning:
        yield Customization(pipe, QUICK, pool, learning, pipe.encode_subject(photo()), "")


def test_reference_and_target_are_drawn_independently(numbered):
    """Every pair of five pictures comes up about as often as any other; chi-square with 24 degrees of freedom."""
    pairs = numbered.draw_pairs(range(2500))
    target, reference = pairs["latents"][:, 0, 0, 0].int(), pairs["reference_latents"][:, 0, 0, 0].int()
    assert torch.equal(pairs["image_states"][:, 0, 0].int(), reference)
    counts = torch.bincount(5 * target + reference, minlength=25).numpy()
    assert ((counts - 100) ** 2 / 100).sum() < 51.2  # exceeded by chance once in a thousand


def test_a_pair_is_what_its_number_says(numbered):
    together, alone = numbered.draw_pairs(range(4)), numbered.draw_pairs([2])
    for name, tensor in together.items():
        assert torch.equal(tensor[2:3], alone[name])


def test_targets_are_samples_of_their_posterior(pipe):
    with customizing(pipe, photo(), QUICK) as run:
        one = run.pool._replace(std=torch.ones_like(run.pool.std))
        run.pool = one
        pairs = run.draw_pairs(range(300))
        residual = pairs["latents"] - pairs["latents"].mean()
    assert residual.std().item() > 0.9
    assert {tuple(r.flatten().tolist()) for r in pairs["reference_latents"]} == {
        tuple(m.flatten().tolist()) for m in one.mean
    }


@MODES
@pytest.mark.parametrize("dtype, precision", [(torch.bfloat16, None), (torch.float32, "bf16"), (torch.float32, "fp16")])
def test_half_precision_gives_nearly_the_same_losses(mode, dtype, precision):
    def losses(pipe, **settings) -> list[float]:
        with customizing(pipe, photo(), QUICK.__class__(**vars(QUICK) | settings)) as run:
            return [record.loss for record in run.learn()]

    settings = dict(mode=mode, learning_rate=1e-4)
    reference = losses(tiny_pipeline(), **settings)
    half = tiny_pipeline().to(dtype)
    rtol = rounding(torch.float16 if precision == "fp16" else torch.bfloat16)
    np.testing.assert_allclose(losses(half, mixed_precision=precision, **settings), reference, rtol=rtol)
    assert half.unet.dtype == dtype
