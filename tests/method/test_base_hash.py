import pytest
import torch
from torch import nn

from concepts import learn
from profusion_pipeline.method.base_hash import base_hash, base_weights
from tiny import make_components

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def learnt() -> dict:
    """Concepts made for the tiny pipeline of seed 0."""
    return learn()


def hash_of(pipe) -> str:
    return base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet)


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
