"""Training on Stable Diffusion XL. The loop is that of `test_trainer.py`; here is what XL's step reads of its own."""

import pytest
import torch
from diffusers import DDPMScheduler

from calls import picture, seeded
from profusion_pipeline.method.modeling_promptnet import PromptNet
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from profusion_pipeline.method.text_encoders import encode_ids, tokenize_prompts
from profusion_pipeline.method.xl_conditions import whole_picture
from profusion_pipeline.training.losses import promptnet_loss
from profusion_pipeline.training.trainer import train_promptnet, train_steps
from tiny import make_scheduler
from tiny_xl import make_xl_components
from training import log_of, short_run, start, write_base, write_portraits

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("fresh_accelerate")]


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "portraits").mkdir()
    base = write_base(tmp_path / "base", make_xl_components(with_promptnet=False))
    return dict(model=base, data=write_portraits(tmp_path / "portraits"), output=tmp_path / "run")


def test_the_loss_reads_both_text_encoders_the_pooled_text_and_the_sizes():
    parts, draw = make_xl_components(), seeded()
    readers = [parts["text_encoder"], parts["text_encoder_2"]]
    ids, positions = tokenize_prompts(
        [parts["tokenizer"], parts["tokenizer_2"]], ["a photo of S*"], placeholder="S*", num_subject_tokens=1
    )
    latents, reference, noise = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(3))
    timesteps, states = torch.tensor([100, 700]), torch.randn(2, 5, 24, generator=draw)
    result = promptnet_loss(
        parts["unet"],
        readers,
        parts["promptnet"],
        latents=latents,
        reference_latents=reference,
        image_states=states,
        noise=noise,
        timesteps=timesteps,
        alphas_cumprod=DDPMScheduler.from_config(make_scheduler().config).alphas_cumprod,
        input_ids=ids,
        positions=positions,
        prediction_type="epsilon",
        sizes=whole_picture(16, 16),
    )
    text = encode_ids(
        readers, ids.expand(2, -1, -1), positions=positions.expand(2), subject_embeds=result.subject_embeds
    )
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    told = dict(text_embeds=text.pooled, time_ids=sizes)
    expected = parts["unet"](result.noisy_latents, timesteps, text.states, added_cond_kwargs=told).sample
    assert torch.equal(result.prediction, expected)
    torch.testing.assert_close(result.loss, (expected - noise).square().mean(), rtol=1e-5, atol=0)
    result.loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in parts["promptnet"].parameters())


def test_the_loss_falls_on_one_picture(folders):
    for file in sorted(folders["data"].iterdir())[1:]:
        file.unlink()
    run = start(short_run(**folders, max_steps=12, learning_rate=3e-4, batch_size=4))
    first, *_ = (record.loss.item() for record in train_steps(run))
    run.step = 0
    assert next(train_steps(run)).loss < 0.9 * first  # of the same noise and timesteps


def test_trained_saved_loaded_drawn(folders, tmp_path):
    settings = dict(validation_images=(str(folders["data"] / "anna-0.png"),), validation_every=3, max_steps=3)
    settings |= dict(validation_prompts=("a photo of S*",))
    folder = train_promptnet(short_run(**folders, **settings, validation_inference_steps=2))
    assert [line["step"] for line in log_of(folders["output"])][-1] == 3
    assert (folders["output"] / "validation" / "step-00000003.png").is_file()
    parts = make_xl_components(promptnet=PromptNet.from_pretrained(folder))
    pipe = ProFusionXLPipeline(**parts)
    assert pipe.promptnet.config.text_embed_dim == 48
    pipe("S* on the beach", image=picture(), class_noun="man", num_inference_steps=2)
    pipe.save_pretrained(tmp_path / "whole")
    again = ProFusionXLPipeline.from_pretrained(tmp_path / "whole")
    drawn = [
        one("S* on the beach", image=picture(), class_noun="man", num_inference_steps=2, generator=seeded(),
            output_type="latent").images for one in (pipe, again)
    ]  # fmt: skip
    assert torch.equal(*drawn)
