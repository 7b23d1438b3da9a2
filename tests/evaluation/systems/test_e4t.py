import numpy as np
import pytest
import torch
from torch import nn

from concepts import photo
from profusion_pipeline.evaluation.systems.baselines import SYSTEMS
from profusion_pipeline.evaluation.systems.e4t import E4T, OFFSET_SCALE, e4t_loss
from profusion_pipeline.evaluation.systems.rival_parts import denoising_losses, encode_word, noun_vector, word_prompts
from profusion_pipeline.evaluation.systems.system import Sampling
from rivals import QUICK, SHORT, listening_pipeline, pictures, write_rivals

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_rivals(tmp_path_factory.mktemp("rivals"))


def silenced(encoder: nn.Module) -> nn.Module:
    """An encoder that says nothing."""
    nn.init.zeros_(encoder.region_prompt_output.weight)
    nn.init.zeros_(encoder.region_prompt_output.bias)
    return encoder


def test_without_offsets_it_is_the_base_under_the_class_noun(weights, monkeypatch):
    """So the word is put into the right rows, at the right places, at every step."""
    pipe, system = listening_pipeline(), E4T(name="E4T", learning={"steps": 2}, weights=weights)
    config = system.config(**QUICK)
    learnt = system.learn(pipe, photo(), config)
    spoken = pictures(system, pipe, learnt, config)
    pretrained = E4T._pretrained
    monkeypatch.setattr(
        E4T, "_pretrained", lambda self, pipe: (silenced(pretrained(self, pipe)[0]), *pretrained(self, pipe)[1:])
    )
    nothing = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in learnt.items()}
    for sampling in (SHORT, Sampling(num_inference_steps=2, guidance=0.1)):  # the latter without rows of the empty text
        silent = pictures(system, pipe, nothing, config, sampling).astype(int)
        base = pictures(SYSTEMS["Stable Diffusion"], pipe, {}, config, sampling)
        assert np.abs(silent - base).max() <= 1  # of 255: the noun's states are computed in another batch
    assert np.abs(spoken.astype(int) - pictures(SYSTEMS["Stable Diffusion"], pipe, {}, config)).max() > 1


def test_the_loss_is_that_of_the_word_and_the_square_of_its_offset():
    pipe = listening_pipeline()
    prompt, noun = word_prompts(pipe, ["a photo of S*"], "a man"), noun_vector(pipe, "a man")
    latents, noise, reference = torch.randn(3, 2, 4, 8, 8)
    states, timesteps = torch.randn(2, 5, 24), torch.tensor([3, 700])
    sample = dict(latents=latents, noise=noise, timesteps=timesteps)
    schedule = dict(alphas_cumprod=pipe.scheduler.alphas_cumprod, prediction_type="epsilon")
    models = pipe.unet, pipe.text_encoder, pipe.promptnet

    def loss(offset_l2: float) -> torch.Tensor:
        pairs = sample | dict(reference_latents=reference, image_states=states)
        return e4t_loss(*models, noun, prompt, **pairs, **schedule, offset_l2=offset_l2)

    noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
    offset = OFFSET_SCALE * pipe.promptnet(reference, timesteps, states, noisy).prompt_embeds  # [2, 1, D]
    rows = [encode_word(pipe.text_encoder, prompt, (noun + one)[None]) for one in offset]
    expected = denoising_losses(pipe.unet, torch.cat(rows), **sample, **schedule).mean()
    assert torch.allclose(loss(0.0), expected, rtol=1e-4)
    square = sum(number**2 for number in offset.flatten().tolist()) / 2
    assert (loss(3.0) - loss(0.0)).item() == pytest.approx(3 * square, rel=1e-3)
    loss(3.0).backward()
    assert pipe.promptnet.conv_in.weight.grad.any()


def test_the_subject_decides(weights):
    """Two photos, nothing learnt of either: the encoder tells them apart."""
    pipe, system = listening_pipeline(), E4T(name="E4T", learning={"steps": 1}, weights=weights)
    config = system.config(**QUICK)
    learnt = system.learn(pipe, photo(), config)
    with system.drawing(pipe, photo(), learnt, config) as draw:
        ours = draw(["a photo of S*"], [torch.Generator().manual_seed(0)], SHORT)[0]
    with system.drawing(pipe, photo().rotate(180), learnt, config) as draw:
        other = draw(["a photo of S*"], [torch.Generator().manual_seed(0)], SHORT)[0]
    assert not np.array_equal(ours, other)
