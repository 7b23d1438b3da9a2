import inspect

import pytest
import torch

from concepts import QUICK, photo, sample
from profusion_pipeline.customization import customize
from profusion_pipeline.evaluation.systems.profusion import ProFusion
from profusion_pipeline.evaluation.systems.system import Sampling
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from rivals import PROMPTS, listening_pipeline, pictures

pytestmark = pytest.mark.numeric


def test_profusion_is_the_call_of_the_pipeline():
    """To the bit, with every setting of the sampling, before and after customising."""
    pipe = listening_pipeline()
    call = dict(guidance_scale=3.0, class_guidance_scale=2.0, fusion_guidance_scale=4.0, fusion_subject_scale=0.7)
    course = dict(subject_every=2, guidance_start=0.3, guidance_end=0.9, guidance_rescale=0.4)
    fusion = dict(num_fusion_steps=2, fusion_text="mixed", fusion_eta=0.8, fusion_start=0.3)
    sampling = Sampling(num_inference_steps=3, guidance=0.5, **fusion, **course)
    expected = call | dict(num_inference_steps=3) | fusion | course
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
        images = sample(pipe, PROMPTS, **{"base_guidance": None} | expected, generator=generators, output_type="np")
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


def test_what_is_not_said_is_as_the_pipeline_has_it():
    """The defaults stand in the signature of the call, and nowhere else."""
    defaults = inspect.signature(ProFusionPipeline.__call__).parameters
    guidance = ProFusion(name="PromptNet", call={"fusion_eta": 0.5}).guidance(Sampling())
    assert guidance.fusion_eta == 0.5
    for name in ("guidance_scale", "class_guidance_scale", "fusion_guidance_scale", "fusion_subject_scale"):
        assert getattr(guidance, name) == defaults[name].default
