import pytest
import torch

from calls import PROMPT, latents_of, picture
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")]


def test_another_placeholder(components):
    pipe = ProFusionPipeline(**components, placeholder="holder")
    ours = latents_of(pipe, "a photo of holder on the beach", image=picture())
    assert torch.equal(ours, latents_of(ProFusionPipeline(**components), image=picture()))


def test_models_that_every_step_needs_are_not_shuffled(pipe):
    assert not {"promptnet", "text_encoder"} & set(pipe.model_cpu_offload_seq.split("->"))


def test_a_required_safety_checker_is_missed_aloud(components, caplog):
    ProFusionPipeline(**components)
    assert "safety_checker" not in caplog.text
    ProFusionPipeline(**components, requires_safety_checker=True)
    assert "`safety_checker` is None, but this pipeline is published with one" in caplog.text


def test_not_finite_pictures(pipe):
    torch.nn.init.constant_(pipe.vae.decoder.conv_out.bias, float("nan"))
    with pytest.raises(RuntimeError, match="the decoded pictures are finite numbers in torch.float32"):
        pipe(PROMPT, image=picture(), num_inference_steps=1)
