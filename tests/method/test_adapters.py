from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from concepts import learn
from profusion_pipeline.method.adapters import (
    RowAdapters,
    base_hash,
    base_weights,
    computed_by,
    follow_rows,
    keep_active,
    with_changes,
)
from tiny import make_components

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def learnt() -> dict:
    """Concepts made for the tiny pipeline of seed 0."""
    return learn()


def hash_of(pipe) -> str:
    return base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet)


# --- The hash of the base -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_of_one_base_in_another_precision_have_its_hash(pipe, dtype):
    before = hash_of(pipe)
    assert hash_of(pipe.to(dtype)) == before


@pytest.mark.parametrize("component", ["unet", "text_encoder", "promptnet"])
def test_another_base_has_another_hash(pipe, component):
    other = make_components(seed=1)[component]
    before = hash_of(pipe)
    setattr(pipe, component, other)
    assert hash_of(pipe) != before


def test_a_light_fine_tune_of_one_layer_is_another_base(pipe):
    before = hash_of(pipe)
    layer = pipe.unet.down_blocks[0].resnets[0].conv1
    with torch.no_grad():
        layer.weight += 0.02 * layer.weight.std() * torch.randn_like(layer.weight)
    assert hash_of(pipe) != before


def test_new_words_of_textual_inversion_leave_the_hash(pipe):
    before = hash_of(pipe)
    pipe.text_encoder.resize_token_embeddings(pipe.text_encoder.config.vocab_size + 2, mean_resizing=False)
    assert hash_of(pipe) == before


def test_adapters_leave_the_hash(pipe, learnt):
    before = hash_of(pipe)
    pipe.load_concept(learnt["ada"])
    assert hash_of(pipe) == before


def test_large_weights_are_sampled_over_their_whole_length():
    layer, rest = nn.Linear(1000, 300, bias=False), (nn.Linear(1, 1), nn.Linear(1, 1))
    before = base_hash(layer, *rest)
    with torch.no_grad():
        layer.weight[-10:] *= -1
    assert base_hash(layer, *rest) != before


def test_weights_that_are_not_there_can_not_be_hashed(pipe):
    pipe.unet.to("meta")
    with pytest.raises(ValueError, match="UNet2DConditionModel are not in memory: .* before `enable_sequential_cpu"):
        hash_of(pipe)


# --- Weights --------------------------------------------------------------------------------------------------------


def test_base_weights_are_named_as_without_adapters(pipe, learnt):
    before = {name: weight.clone() for name, weight in pipe.unet.named_parameters()}
    pipe.load_concept(learnt["ada"])
    after = base_weights(pipe.unet)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_base_weights_are_named_as_without_compiling():
    layer = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(layer)
    assert "_orig_mod.0.weight" in dict(compiled.named_parameters())
    assert base_weights(compiled).keys() == base_weights(layer).keys()


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
