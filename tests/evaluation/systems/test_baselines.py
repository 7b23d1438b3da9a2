"""Each system learns and draws, leaves the pipeline as it was, and is what it is called, checked by other means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.nn import functional as F

from concepts import assert_same, everything, photo
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.customization.learning import Learning
from profusion_pipeline.customization.subject_pool import EncodedPool
from profusion_pipeline.evaluation.systems.baselines import DEMO_SYSTEMS, SYSTEMS, _PriorLearning, get_system
from profusion_pipeline.evaluation.systems.rival_parts import noun_vector
from profusion_pipeline.evaluation.systems.system import Sampling
from rivals import PROMPTS, QUICK, SHORT, listening_pipeline, pictures, write_rivals

LEARNING = [name for name, system in SYSTEMS.items() if system.learns]
SAMPLINGS = [
    Sampling(num_inference_steps=3),
    Sampling(num_inference_steps=4, scheduler="DPM++ 2M", num_fusion_steps=2, fusion_end=0.5),
    Sampling(num_inference_steps=4, scheduler="UniPC", num_fusion_steps=0, guidance=0.1),
    Sampling(num_inference_steps=2, fusion_guidance_scale=1.0, fusion_subject_scale=0.5, fusion_eta=0.5),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_rivals(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="module")
def shared():
    """One pipeline for all systems, as in a study: each test finds what the one before left."""
    return listening_pipeline()


@pytest.fixture(scope="module")
def learnt(shared, weights):
    """name -> (system, config, what was learnt), each learnt once."""
    known = {}

    def learn(name: str, **settings):
        key = name, *settings.items()
        if key not in known:
            system = get_system(name, weights=weights)
            if name.startswith("DreamBooth"):
                system = replace(system, num_class_pictures=3)
            config = system.config(**QUICK | settings)
            known[key] = system, config, system.learn(shared, photo(), config)
        return known[key]

    return learn


@pytest.mark.parametrize("name", SYSTEMS)
def test_learns_and_draws_and_leaves_no_trace(name, shared, learnt):
    before = everything(shared)
    system, config, tensors = learnt(name)
    assert_same(before, everything(shared))
    assert bool(tensors) == system.learns == (name in LEARNING)
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in tensors.values())
    with system.drawing(shared, photo(), tensors, config) as draw:
        first, again = (draw(PROMPTS, [torch.Generator().manual_seed(i) for i in (0, 1)], SHORT) for _ in range(2))
    assert [image.size for image in first] == [(16, 16)] * 2
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert_same(before, everything(shared))


@pytest.mark.parametrize("name", LEARNING)
def test_rivals_learn_with_the_caption_too(name, shared, learnt):
    plain, told = learnt(name)[2], learnt(name, caption="in a hat")[2]
    assert any(not torch.equal(weight, told[key]) for key, weight in plain.items())


@pytest.mark.parametrize("name", LEARNING)
def test_what_was_learnt_is_seen_in_the_pictures(name, shared, learnt):
    system, config, tensors = learnt(name)
    nothing = {key: torch.zeros_like(t) if "lora_B" in key or "unet" in key else t for key, t in tensors.items()}
    if name == "Textual Inversion":
        nothing["word"] = noun_vector(shared, "a man")
    with_it, without = (pictures(system, shared, some, config) for some in (tensors, nothing))
    assert (with_it != without).mean() > 0.2
    if name in ("Textual Inversion", "DreamBooth", "DreamBooth LoRA"):
        base, noun = SYSTEMS["Stable Diffusion"], {"Textual Inversion": "a man"}.get(name, "a sks man")
        assert np.array_equal(without, pictures(base, shared, {}, replace(config, class_noun=noun)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_rows_of_the_unet(name, sampling, shared, learnt):
    system, config, tensors = learnt(name)
    rows = []
    hook = shared.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    pictures(system, shared, tensors, config, sampling)
    hook.remove()
    assert sum(rows) == system.unet_rows(sampling) * len(PROMPTS)


def test_textual_inversion_is_that_of_diffusers(shared, learnt):
    system, config, tensors = learnt("Textual Inversion")
    fresh = listening_pipeline()
    parts = {name: fresh.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    no_checker = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    theirs = StableDiffusionPipeline(**parts, **no_checker)
    theirs.load_textual_inversion({"<man>": tensors["word"][None]}, token="<man>")
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        [prompt.replace("S*", "a <man>") for prompt in PROMPTS],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
    ).images
    found = pictures(system, shared, tensors, config)
    assert np.abs(found.astype(int) - np.stack([np.asarray(image) for image in expected])).max() <= 1


def test_the_prior_is_a_loss_on_pictures_of_the_class(shared):
    """Against diffusers' own noising; the class pictures get draws of their own."""
    config = CustomizeConfig(**QUICK)
    generator = torch.Generator().manual_seed(0)
    pool, class_pool = (
        EncodedPool(torch.randn(2, 4, 8, 8, generator=generator), torch.zeros(2, 4, 8, 8), torch.zeros(2, 5, 24))
        for _ in range(2)
    )
    states = torch.randn(2, 77, 32, generator=generator)
    run = _PriorLearning(
        shared, config, pool, [torch.nn.Parameter()], class_pool=class_pool, states=states, prior_weight=0.7
    )

    def loss(latents, noise, timesteps, text):
        noisy = shared.scheduler.add_noise(latents, noise, timesteps)
        return F.mse_loss(shared.unet(noisy, timesteps, text.expand(2, -1, -1)).sample, noise)

    samples = run.draw_pairs([0, 1])
    of_subject, of_class = ({name: part[half] for name, part in samples.items()} for half in (slice(2), slice(2, 4)))
    assert not (of_subject["noise"] == of_class["noise"]).any()
    for half, one in ((of_subject, pool), (of_class, class_pool)):
        assert all(any(torch.equal(latents, mean) for mean in one.mean) for latents in half["latents"])
    with torch.no_grad():
        expected = loss(**of_subject, text=states[:1]) + 0.7 * loss(**of_class, text=states[1:])
        assert torch.allclose(run.objective(**samples), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LEARNING if "ProFusion" not in name])
def test_the_loss_falls(name, shared, weights, monkeypatch):
    system, losses, learn = get_system(name, weights=weights), [], Learning.learn

    def watched(run):
        for record in learn(run):
            losses.append(record.loss)
            yield record

    monkeypatch.setattr(Learning, "learn", watched)
    system = replace(system, num_class_pictures=2) if name.startswith("DreamBooth") else system
    rate = 0.002 if name == "DreamBooth" else 0.02
    system.learn(shared, photo(), system.config(**QUICK | dict(steps=24, batch_size=4, learning_rate=rate)))
    assert len(losses) == 24 and np.mean(losses[-8:]) < np.mean(losses[:8])


@pytest.mark.parametrize("name", [name for name in LEARNING if "," not in name])
def test_a_pipeline_in_half_precision(name, weights):
    pipe = listening_pipeline().to(torch.bfloat16)
    before, system = everything(pipe), get_system(name, weights=weights)
    system = replace(system, num_class_pictures=2) if name.startswith("DreamBooth") else system
    config = system.config(**QUICK)
    assert pictures(system, pipe, system.learn(pipe, photo(), config), config).std() > 0
    assert_same(before, everything(pipe))


def test_full_dreambooth_changes_all_of_the_unet(shared, learnt):
    _, _, tensors = learnt("DreamBooth")
    names = {name.removeprefix("unet.") for name in tensors if name.startswith("unet.")}
    assert names == dict(shared.unet.named_parameters()).keys()


def test_an_error_in_the_block_leaves_no_trace(shared, learnt):
    before = everything(shared)
    for name in LEARNING:
        system, config, tensors = learnt(name)
        with pytest.raises(KeyboardInterrupt):
            with system.drawing(shared, photo(), tensors, config):
                raise KeyboardInterrupt
        assert_same(before, everything(shared))


def test_what_was_learnt_fits_its_own_base_only(shared, learnt):
    system, config, tensors = learnt("Textual Inversion")
    with pytest.raises(ValueError, match="`learnt` of Textual Inversion must be of this pipeline's weights, got"):
        pictures(system, listening_pipeline_of_another_seed(), tensors, config)
    with pytest.raises(ValueError, match="`learnt` of Textual Inversion must be what `learn` returned, got 0 tensors"):
        pictures(system, shared, {}, config)
    with pytest.raises(ValueError, match="`learnt` of Stable Diffusion must be empty, because it learns nothing"):
        pictures(SYSTEMS["Stable Diffusion"], shared, tensors, config)


def listening_pipeline_of_another_seed():
    pipe = listening_pipeline()
    with torch.no_grad():
        pipe.unet.conv_in.weight.neg_()
    return pipe


def test_unknown_systems_and_missing_weights_are_named(shared, tmp_path):
    with pytest.raises(ValueError, match="`name` of a system must be one of 'Stable Diffusion', .*, got 'GAN'"):
        get_system("GAN")
    for name, part in (("E4T", "e4t"), ("PromptNet, L2", "l2"), ("ProFusion, plain", "plain")):
        for weights in (None, tmp_path):
            system = get_system(name, weights=weights)
            with pytest.raises(FileNotFoundError, match=f"{name} is pre-trained, but .* --which {part}` trains"):
                with system.drawing(shared, photo(), system.learn(shared, photo(), system.config()), system.config()):
                    pass


def test_the_demo_has_settings_of_its_own_for_the_same_systems():
    assert DEMO_SYSTEMS.keys() == SYSTEMS.keys()
    for name, system in SYSTEMS.items():
        assert (DEMO_SYSTEMS[name].name, type(DEMO_SYSTEMS[name])) == (name, type(system))
        assert DEMO_SYSTEMS[name].learns == system.learns
    assert get_system("DreamBooth", demo=True).rare_word == "z"
