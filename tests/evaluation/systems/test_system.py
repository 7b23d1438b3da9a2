import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from concepts import QUICK, photo
from profusion_pipeline.evaluation.systems.profusion import ProFusion
from profusion_pipeline.evaluation.systems.system import Sampling, StableDiffusion, find_weights
from rivals import PROMPTS, SHORT, listening_pipeline, pictures

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(scheduler="Euler"), r"`scheduler` must be one of DDIM, DPM\+\+ 2M, UniPC, got 'Euler'"),
        (dict(num_inference_steps=0), "`num_inference_steps` must be at least 1, got 0"),
        (dict(guidance=0.0), "`guidance` must be greater than 0, got 0.0"),
    ],
)
def test_bad_sampling(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**settings)


def test_schedulers_keep_the_noise_schedule(pipe):
    kinds = {"DDIM": DDIMScheduler, "DPM++ 2M": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}
    for name, kind in kinds.items():
        made = Sampling(scheduler=name).make_scheduler(pipe.scheduler)
        assert type(made) is kind and made is not pipe.scheduler
        assert torch.equal(made.alphas_cumprod, pipe.scheduler.alphas_cumprod)


def test_the_base_is_named_by_the_class_noun():
    pipe, system = listening_pipeline(), StableDiffusion(name="base")
    man, woman = (pictures(system, pipe, {}, system.config(class_noun=noun)) for noun in ("man", "woman"))
    assert (man != woman).any()
    named = pictures(system, pipe, {}, system.config(), SHORT, ["a photo of man", "man on the beach"])
    assert (named == man).all()


def test_weights_are_found_by_their_config(tmp_path):
    (tmp_path / "l2").mkdir()
    with pytest.raises(FileNotFoundError, match="X is pre-trained, but its weights 'l2' are not in"):
        find_weights("X", tmp_path, "l2")
    (tmp_path / "l2" / "config.json").write_text("{}")
    assert find_weights("X", tmp_path, "l2") == tmp_path / "l2"


def test_several_subjects_in_one_call_are_each_as_alone():
    pipe = listening_pipeline()
    photos = [photo(), photo().rotate(90).point(lambda value: 255 - value)]
    systems = [
        StableDiffusion(name="Stable Diffusion"),
        ProFusion(name="PromptNet"),
        ProFusion(name="ProFusion", learning=vars(QUICK) | {"steps": 4, "learning_rate": 0.05}),
    ]
    for system in systems:
        assert system.together
        configs = [system.config(class_noun="man", seed=seed) for seed in range(2)]
        learnt = [system.learn(pipe, *each) for each in zip(photos, configs, strict=True)]
        of, prompts = [0, 1, 1], [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
        with system.drawing_together(pipe, photos, learnt, configs) as draw:
            images = draw(prompts, [torch.Generator().manual_seed(i) for i in range(3)], SHORT, of)
        for i, number in enumerate(of):
            with system.drawing(pipe, photos[number], learnt[number], configs[number]) as draw:
                (alone,) = draw([prompts[i]], [torch.Generator().manual_seed(i)], SHORT)
            differences = np.asarray(images[i]).astype(int) - np.asarray(alone)
            assert abs(differences).max() <= 1, system.name


def test_who_can_be_drawn_together_and_who_needs_weights():
    full = ProFusion(name="ProFusion", learning={"mode": "full"})
    regularised = ProFusion(name="PromptNet, L2", promptnet="l2")
    assert not full.together and full.pretrained is None
    assert regularised.together and regularised.pretrained == "l2"
    assert not StableDiffusion(name="learning", learning={"steps": 1}).together
