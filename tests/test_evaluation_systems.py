import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from concepts import QUICK, photo, sample
from profusion_pipeline import customize
from profusion_pipeline.evaluation.systems import ProFusion, Sampling, StableDiffusion, find_weights
from rivals import PROMPTS, SHORT, listening_pipeline, pictures


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


@pytest.mark.parametrize(("start", "end", "count"), [(0, 1, 10), (0, 0.5, 5), (0.3, 1, 7), (0.25, 0.55, 2)])
def test_steps_with_a_fusion_stage(start, end, count):
    assert Sampling(num_inference_steps=10, fusion_start=start, fusion_end=end).num_fused == count


def test_profusion_is_the_call_of_the_pipeline():
    """To the bit, with every setting of the sampling, before and after customising."""
    pipe = listening_pipeline()
    call = dict(guidance_scale=3.0, class_guidance_scale=2.0, fusion_guidance_scale=4.0, fusion_subject_scale=0.7)
    sampling = Sampling(num_inference_steps=3, num_fusion_steps=2, guidance=0.5, fusion_eta=0.8, fusion_start=0.3)
    expected = call | dict(num_inference_steps=3, num_fusion_steps=2, fusion_eta=0.8, fusion_start=0.3)
    expected |= dict(guidance_scale=1.5, fusion_guidance_scale=2.0)
    for customised in (False, True):
        learning = vars(QUICK) if customised else {}
        system = ProFusion(name="ProFusion", call=call, learning=learning)
        config = system.config(class_noun="man")
        found = pictures(system, pipe, system.learn(pipe, photo(), config), config, sampling)
        if customised:
            pipe.load_concept(customize.customize(pipe, photo(), config))
        else:
            expected |= dict(subject=pipe.encode_subject(photo()), class_noun="man")
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        images = sample(pipe, PROMPTS, **expected, generator=generators, output_type="np")
        assert (found == (images * 255).round().astype("uint8")).all()
        for name in ("subject", "class_noun"):
            expected.pop(name, None)
    pipe.unload_concept()


def test_explicit_fusion_settings_go_before_the_system_s_own():
    pipe, system = listening_pipeline(), ProFusion(name="PromptNet", call={"fusion_subject_scale": 0.2})
    own, same, other = (
        pictures(system, pipe, {}, system.config(), Sampling(num_inference_steps=2, fusion_subject_scale=scale))
        for scale in (None, 0.2, 0.9)
    )
    assert (own == same).all() and (own != other).any()


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
