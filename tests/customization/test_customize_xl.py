"""Concepts of Stable Diffusion XL: made, saved, loaded into a fresh pipeline, drawn."""

import pytest
import torch

from calls import seeded
from concepts import QUICK, assert_same, everything, photo, sample
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.customization.customize import customize, customizing
from profusion_pipeline.method.base_hash import pipeline_hash
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from tiny_xl import make_xl_components

pytestmark = pytest.mark.numeric
pytest.importorskip("peft")


def build(**overrides) -> ProFusionXLPipeline:
    pipe = ProFusionXLPipeline(**make_xl_components(**overrides))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["lora", "full"])
def concept(request):
    """And that the pipeline is left as it was."""
    pipe = build()
    before = everything(pipe)
    concept = customize(pipe, photo(), QUICK, mode=request.param)
    assert_same(before, everything(pipe))
    return concept


def test_saved_loaded_into_a_fresh_pipeline_drawn_scaled_and_gone(concept, tmp_path):
    concept.save_pretrained(tmp_path)
    pipe = build()
    drawn = lambda **how: sample(pipe, "a photo of S*", generator=seeded(), **how)  # noqa: E731
    plain = drawn(subject=concept, class_noun=concept.class_noun)
    pipe.load_concept(str(tmp_path), name="ada")
    with_it = drawn()
    assert torch.isfinite(with_it).all() and not torch.equal(with_it, plain)
    pipe.set_concept_scale(0.0)
    assert torch.equal(drawn(), plain)
    pipe.set_concept_scale(1.0)
    assert torch.equal(drawn(), with_it)
    pipe.unload_concept("ada")
    assert torch.equal(drawn(subject=concept, class_noun=concept.class_noun), plain)


def test_a_clone_of_the_pipeline_takes_it_too(concept):
    pipe = build()
    clone = ProFusionXLPipeline.from_pipe(pipe)
    clone.load_concept(concept)
    assert not pipe.concepts
    sample(clone, "a photo of S*")


def test_the_loss_falls_on_one_picture():
    with customizing(build(), photo(), CustomizeConfig(steps=15, pool_size=1, batch_size=4, learning_rate=0.03)) as run:
        pairs = run.draw_pairs(range(8))
        first = run.objective(**pairs).item()
        list(run.learn())
        assert run.objective(**pairs).item() < 0.95 * first


def test_another_second_text_encoder_is_another_base():
    pipe = build()
    concept = customize(pipe, photo(), QUICK, steps=1)
    other = build(text_encoder_2=make_xl_components(seed=1)["text_encoder_2"])
    assert pipeline_hash(other) != pipeline_hash(pipe)
    with pytest.raises(ValueError, match="it fits its own base only"):
        other.load_concept(concept)


def test_what_does_not_fit_is_told():
    pipe = build(with_promptnet=False)
    with pytest.raises(ValueError, match="needs a pipeline with `promptnet`, this ProFusionXLPipeline has none"):
        customize(pipe, photo(), QUICK)
