"""What was tried: each trial changes what it says, as long as it is said; then all is the library's own way again."""

import numpy as np
import pytest
import torch
import trials
from frontier import main
from frontier_tables import Variant

from profusion_pipeline import demo_portraits, load_demo_pipeline
from profusion_pipeline.demo import DEMO_CUSTOMIZE
from profusion_pipeline.method import fusion_sampling, prediction

CALL = dict(num_inference_steps=4, num_fusion_steps=0, output_type="pt", guidance_scale=2.0, class_guidance_scale=3.0)


@pytest.fixture(scope="module")
def pipe():
    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe, trial: str = "", **call) -> torch.Tensor:
    if "image" not in call and not pipe.concepts:
        call["image"] = demo_portraits()[0]
    with trials.drawing(pipe, trial) as more:
        return pipe("a portrait of S*", generator=torch.Generator().manual_seed(0), **CALL | call | more).images[0]


def test_the_ellipse_leaves_out_the_corners():
    mask = trials.ellipse(8, 8)
    assert mask.shape == (8, 8) and mask[4, 4] == 1 and mask[0, 0] == 0
    assert mask.mean() == pytest.approx(np.pi / 4 * trials.FACE[0] * trials.FACE[1], abs=0.02)


def test_growing_guidance_is_the_step_of_cfg_plus_plus():
    alphas, steps, scale = torch.linspace(0.999, 0.01, 1000), [900, 500, 100], 0.6
    factors, grown = trials.LikeCFGPP.factors(alphas, steps), []
    assert factors.mean() == pytest.approx(1)
    for t, s in ((900, 500), (500, 100)):
        signal, sigma = alphas[[t, s]].sqrt(), (1 - alphas[[t, s]]).sqrt()
        x, null, text = torch.randn(3, 1, 4, 2, 2)

        def step(noise, renewed, x=x, signal=signal, sigma=sigma):
            return signal[1] * (x - sigma[0] * noise) / signal[0] + sigma[1] * renewed

        r = signal[1] / signal[0] * sigma[0]
        grown.append(scale * r / (r - sigma[1]))
        guided = null + grown[-1] * (text - null)
        assert torch.allclose(step(null + scale * (text - null), null), step(guided, guided), atol=1e-4)
    assert factors[1] / factors[0] == pytest.approx(float(grown[1] / grown[0]), rel=1e-4)


def test_while_drawing_guidance_is_another_and_then_the_same(pipe):
    plain, guide, predict = picture(pipe), fusion_sampling.guide, prediction.predict
    late, early, gate = (picture(pipe, trial) for trial in ("S* late", "S* early", "gate"))
    assert all((one - plain).abs().max() > 0.01 for one in (late, early, gate))
    assert (late - early).abs().max() > 0.01
    assert (fusion_sampling.guide, prediction.predict) == (guide, predict)
    assert torch.equal(picture(pipe), plain)


def test_a_gate_lets_pass_what_agrees():
    null, text = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    subject = torch.tensor([[[[3.0, -3.0]], [[3.0, -3.0]]]])  # agrees at the first place only
    weights, owner = torch.tensor([1.0, 1.0]), torch.tensor([0, 0])
    gate = trials.Gate(None)
    assert gate(null, torch.cat([text, subject]), weights, owner)[0, :, 0].tolist() == [[4.0, 1.0], [4.0, 1.0]]
    late = trials.SubjectLate(None)
    late.t = 900.0
    assert late(null, torch.cat([text, subject]), weights, owner).unique().tolist() == [2.0]


def test_an_adapter_of_full_strength_is_itself_and_of_none_is_the_base(pipe):
    concept = pipe.customize(demo_portraits()[0], **DEMO_CUSTOMIZE | {"steps": 2, "learning_rate": 0.01})
    pipe.load_concept(concept)
    try:
        plain = picture(pipe)
        with trials.adapter_strength(pipe.unet, torch.ones_like):
            assert torch.equal(picture(pipe), plain)
        with trials.adapter_strength(pipe.unet, torch.zeros_like):
            none = picture(pipe)
        assert (none - plain).abs().max() > 1e-4
        assert (picture(pipe, "concept late") - plain).abs().max() > 1e-4
        assert torch.equal(picture(pipe), plain)
    finally:
        pipe.unload_concept()


@pytest.mark.parametrize("trial", trials.CUSTOMISING)
def test_customising_differs_and_leaves_no_trace(trial, pipe):
    settings = DEMO_CUSTOMIZE | {"steps": 2}
    usual, other, again = (trials.customize(pipe, name, [demo_portraits()[0]], **settings) for name in ("", trial, ""))
    assert usual.changes.keys() == other.changes.keys()
    assert any(not torch.equal(usual.changes[name], other.changes[name]) for name in usual.changes)
    assert all(torch.equal(usual.changes[name], again.changes[name]) for name in usual.changes)


def test_an_unknown_trial_is_refused():
    with pytest.raises(ValueError, match="`trial` must be one of"):
        Variant(trial="magic")


@pytest.mark.slow
@pytest.mark.parametrize("trial", trials.TRIALS)
def test_each_draws_a_person(trial, tmp_path):
    variants = {"tried": Variant(trial=trial, caption="right", learning={"steps": 1})}
    rows = main(variants, work=tmp_path, grid=((2.5, 5.0),), people=1, test_people=0, num_inference_steps=2)
    assert len(rows.known) == 1
