import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

import schedulers
from profusion_pipeline.method.fusion_sampling import fusion_step, noise_share, predict_noise, renew_noise
from profusion_pipeline.method.noise_levels import follow_fusion, fusion_levels

# diffusers' schedulers hand tensors to numpy, which torch with numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (1, 4, 48, 48)
TABLE = DDPMScheduler(**schedulers.NOISE_SCHEDULE).alphas_cumprod.double().numpy()
LOG_SIGMAS = np.log((1 - TABLE) / TABLE) / 2


def table_alpha_bar(t) -> float:
    """ᾱ at a timestep, fractional ones too, from the training schedule alone."""
    return 1 / (1 + np.exp(2 * np.interp(float(t), np.arange(1000), LOG_SIGMAS)))


def step_settings(scheduler, generator):
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generator} if takes_generator else {}


class PointMass:
    """All data is one picture: the exact score is known, and so is the noise in every state."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.picture = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
        self.powers = []  # of the noise in the states that were given, which should be 1
        self.states = []

    def __call__(self, state, t):
        x, a = self.scheduler.scale_model_input(state, t), table_alpha_bar(t)
        noise = (x - a**0.5 * self.picture) / (1 - a) ** 0.5
        self.powers.append(noise.std().item())
        self.states.append(state)
        return {
            "epsilon": noise,
            "v_prediction": a**0.5 * noise - (1 - a) ** 0.5 * self.picture,
            "sample": self.picture,
        }[self.scheduler.config.prediction_type]


def sample(scheduler, *, num_steps, eta=1.0, fuse_at=None, m=1, begin=0):
    """A loop as the pipeline's, with the exact model of one picture. Returns the model and the end state."""
    scheduler.set_timesteps(num_steps)
    model, generator = PointMass(scheduler), torch.Generator().manual_seed(0)
    state = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    if begin:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        noise = torch.randn(SHAPE, generator=generator)
        state = scheduler.add_noise(model.picture, noise, scheduler.timesteps[begin : begin + 1])
    settings = step_settings(scheduler, generator)
    for i, (t, level) in enumerate(zip(scheduler.timesteps[begin:], fusion_levels(scheduler, begin), strict=True)):
        noises = torch.randn(m, *SHAPE, generator=torch.Generator().manual_seed(100 + i))
        for noise in noises if level and fuse_at in (None, i) else []:
            x = state / level.state_scale
            predicted = predict_noise(model(state, t), x, level.alpha_bar, scheduler.config.prediction_type)
            share = noise_share(level.alpha_bar, level.next_alpha_bar, eta)
            renewed = renew_noise(predicted, noise, share)
            follow_fusion(scheduler, renewed - predicted)
            state = fusion_step(x, predicted, renewed, level.alpha_bar) * level.state_scale
        state = scheduler.step(model(state, t), t, state, **settings).prev_sample
    return model, state


@pytest.mark.parametrize("variant", schedulers.VARIANTS)
def test_levels_are_those_of_the_training_schedule(variant):
    scheduler = schedulers.make(variant)
    scheduler.set_timesteps(6)
    levels = fusion_levels(scheduler)
    starts = [(t, level) for t, level in zip(scheduler.timesteps, levels, strict=True) if level]
    assert len(starts) >= 3 and levels[0] is not None
    for t, level in starts:
        # Karras timesteps are rounded to whole numbers by some schedulers, levels aren't.
        expected = table_alpha_bar(t)
        assert level.alpha_bar == pytest.approx(expected, rel=0.02, abs=2e-4)
        assert level.state_scale == pytest.approx(1 if scheduler.init_noise_sigma == 1 else expected**-0.5, rel=0.01)
    for (_, level), (_, following) in zip(starts[:-1], starts[1:], strict=True):
        assert level.next_alpha_bar == following.alpha_bar > level.alpha_bar
    assert starts[-1][1].next_alpha_bar >= starts[-1][1].alpha_bar


@pytest.mark.parametrize(
    ("variant", "prediction_type"),
    [(variant, "epsilon") for variant in schedulers.VARIANTS]
    + [
        (variant, prediction_type)
        for variant in schedulers.VARIANTS
        for prediction_type in ("v_prediction", "sample")
        if not variant.endswith("karras")  # which concerns levels only
    ],
)
def test_noise_stays_at_its_level(variant, prediction_type):
    """Fusion and the steps after it keep unit noise in the state, and end in the picture as without fusion."""
    if prediction_type == "sample" and variant.startswith(schedulers.NO_SAMPLE_PREDICTION):
        pytest.skip(f"diffusers' {schedulers.VARIANTS[variant][0]} takes no sample prediction")
    num_steps = 10 if prediction_type == "epsilon" else 20
    plain, plain_end = sample(schedulers.make(variant, prediction_type=prediction_type), num_steps=num_steps, m=0)
    fused, end = sample(schedulers.make(variant, prediction_type=prediction_type), num_steps=num_steps)
    own_error = max(abs(power - 1) for power in plain.powers)  # rounded timesteps, multistep solvers on v
    assert max(abs(power - 1) for power in fused.powers) < 0.03 + 2 * own_error
    plain_error, error = ((state - fused.picture).std() for state in (plain_end, end))
    assert error < 0.01 + 1.5 * plain_error


# LCM draws all noise anew at every step: only a change of the predicted picture lasts, and this model has one picture.
@pytest.mark.parametrize("variant", [variant for variant in schedulers.VARIANTS if variant != "lcm"])
def test_fusion_changes_the_result_wherever_it_may_stand(variant):
    """Not a stage is lost: each one alone changes the noise in the states after it."""
    plain, _ = sample(schedulers.make(variant), num_steps=4, m=0)
    scheduler = schedulers.make(variant)
    scheduler.set_timesteps(4)
    for index, level in enumerate(fusion_levels(scheduler)[:-1]):
        if level is not None:
            fused, _ = sample(schedulers.make(variant), num_steps=4, fuse_at=index)
            later, plain_later = fused.states[index + 2], plain.states[index + 1]  # one more call: fusion's own
            noise_left = (1 - table_alpha_bar(scheduler.timesteps[index + 1])) ** 0.5
            assert (
                later - plain_later
            ).std() / plain_later.std() > 0.02 * noise_left  # a lost stage changes nothing, 1e-7


@pytest.mark.parametrize("variant", schedulers.VARIANTS)
def test_eta_zero_is_the_identity(variant):
    _, plain = sample(schedulers.make(variant), num_steps=6, m=0)
    _, fused = sample(schedulers.make(variant), num_steps=6, eta=0.0, m=2)
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", [v for v in schedulers.VARIANTS if not v.startswith(("pndm", "lms"))])
def test_a_loop_that_begins_in_the_middle(variant):
    scheduler = schedulers.make(variant)
    model, end = sample(scheduler, num_steps=10, begin=4 * scheduler.order)
    assert max(abs(power - 1) for power in model.powers) < 0.15  # Karras timesteps rounded near 0
    assert (end - model.picture).std() < 0.05


def test_where_a_step_starts():
    def stands(variant, begin=0, num_steps=5):
        scheduler = schedulers.make(variant)
        scheduler.set_timesteps(num_steps)
        return "".join("x" if level else "." for level in fusion_levels(scheduler, begin))

    assert stands("ddim") == "xxxxx"
    assert stands("pndm") == "x.xxxx"
    assert stands("pndm-prk") == "x...x...x...xx"
    assert stands("heun") == stands("kdpm2") == "x.x.x.x.x"
    assert stands("dpm++-single") == "x.x.x"
    assert stands("dpm++-single-3", num_steps=7) == "x..x..x"
    assert stands("dpm++-single-3", begin=1, num_steps=7) == "x.x..x"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler can't .* no `alphas_cumprod`"),
        ("EDMEulerScheduler", {}, "EDMEulerScheduler can't .* no `alphas_cumprod`"),
        ("IPNDMScheduler", {}, "IPNDMScheduler can't carry the fusion stage"),
        ("RePaintScheduler", {}, "RePaintScheduler .* `prediction_type` is None"),
        ("DDIMInverseScheduler", {}, "DDIMInverseScheduler .* from less noise to more"),
        (
            "UniPCMultistepScheduler",
            dict(use_flow_sigmas=True, prediction_type="flow_prediction"),
            "UniPCMultistepScheduler .* `use_flow_sigmas`",
        ),
        (
            "DPMSolverMultistepScheduler",
            dict(prediction_type="flow_prediction"),
            "`prediction_type` is 'flow_prediction', not epsilon",
        ),
    ],
)
def test_refuses_schedulers_that_are_not_fit(name, settings, message):
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=message):
        fusion_levels(scheduler)


@pytest.mark.parametrize(("variant", "name"), [("pndm", "PNDMScheduler"), ("lms", "LMSDiscreteScheduler")])
def test_refuses_solvers_that_cannot_begin_in_the_middle(variant, name):
    scheduler = schedulers.make(variant)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=f"{name} .* `strength` < 1"):
        fusion_levels(scheduler, begin=2)


def test_why_lms_cannot_begin_in_the_middle():
    """Without any fusion diffusers' own steps lose the noise level there."""
    scheduler = schedulers.make("lms")
    scheduler.set_timesteps(10)
    model = PointMass(scheduler)
    scheduler.set_begin_index(4)
    state = scheduler.add_noise(model.picture, torch.randn(SHAPE), scheduler.timesteps[4:5])
    for t in scheduler.timesteps[4:]:
        state = scheduler.step(model(state, t), t, state).prev_sample
    assert model.powers[0] == pytest.approx(1, abs=0.02) and max(model.powers) > 1.5
