from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from concepts import learn
from profusion_pipeline.method.adapters import RowAdapters, computed_by, follow_rows, keep_active, with_changes

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def learnt() -> dict:
    """Concepts made for the tiny pipeline of seed 0."""
    return learn()


# --- Weights --------------------------------------------------------------------------------------------------------


def test_a_changed_model_stands_beside_the_one_that_it_is_made_of(pipe):
    """Only what is changed is another tensor; what both give is what their weights say."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    change = torch.ones_like(pipe.unet.get_parameter(name))
    before = {name: weight.clone() for name, weight in pipe.unet.named_parameters()}
    changed = with_changes(pipe.unet, {name: change}, 0.5)
    assert type(changed) is type(pipe.unet) and changed.config == pipe.unet.config
    for (one, weight), (_, other) in zip(pipe.unet.named_parameters(), changed.named_parameters(), strict=True):
        assert (weight is other) == (one != name) and torch.equal(weight, before[one])
    torch.testing.assert_close(changed.get_parameter(name), before[name] + 0.5)


# --- Rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_told_apart_and_forgotten_after_an_error(pipe):
    """Each row is the layer's output with its adapter alone; without names the active adapters compute all."""
    peft = pytest.importorskip("peft")
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    for name in ("one", "two"):
        config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
        with keep_active(pipe.unet):
            pipe.unet.add_adapter(config, name)
    follow_rows(pipe.unet)
    follow_rows(pipe.unet)  # once is enough
    assert len(layer.to_q._forward_pre_hooks) == len(layer.to_q._forward_hooks) == 1
    batch = torch.randn(3, layer.to_q.in_features)
    alone = {"__base__": layer.to_q.base_layer(batch)}
    for name in ("one", "two"):
        change = layer.to_q.lora_B[name](layer.to_q.lora_A[name](batch)) * layer.to_q.scaling[name]
        alone[name] = alone["__base__"] + change
    rows = RowAdapters.of([[("two", 1.0)], [], [("one", 1.0)]])
    with pytest.raises(KeyError), computed_by(rows):
        for i, name in enumerate(("two", "__base__", "one")):
            torch.testing.assert_close(layer.to_q(batch)[i], alone[name][i])
        with ThreadPoolExecutor(1) as another:  # knows nothing of these rows
            assert torch.equal(another.submit(layer.to_q, batch).result(), alone["__base__"])
        with pytest.raises(ValueError, match=r"Adapters compute some of 3 rows, got a batch of 2\."):
            layer.to_q(batch[:2])
        raise KeyError
    assert torch.equal(layer.to_q(batch), alone["__base__"])
