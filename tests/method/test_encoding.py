"""`encode_prompt` is in `test_compose.py`, with what else a caller may bring."""

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from calls import CLOSE, PROMPT, latents_of, picture, relative, seeded
from profusion_pipeline.method.encoding import posterior
from profusion_pipeline.method.subject_embedding import SubjectEmbedding

pytestmark = pytest.mark.numeric


def test_an_embedding_is_as_good_as_the_picture(pipe, tmp_path):
    images = [picture(1), picture(2)]
    expected = latents_of(pipe, image=images, image_weights=[0.7, 0.3])
    pipe.encode_subject(images, weights=[0.7, 0.3]).save(tmp_path / "ada.safetensors")
    pipe.image_encoder = pipe.feature_extractor = None
    subject = SubjectEmbedding.load(tmp_path / "ada.safetensors")
    assert torch.equal(latents_of(pipe, subject=subject), expected)
    both = latents_of(pipe, [PROMPT] * 2, subject=[subject] * 2, generator=[seeded(), seeded()])
    assert relative(both[1:], expected) < CLOSE


def test_a_shared_picture_is_encoded_once(pipe):
    encoded, image = [], picture()
    pipe.image_encoder.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    latents_of(pipe, ["S*", "a photo of S*"], image=[image] * 2, num_inference_steps=1, num_fusion_steps=0)
    assert encoded == [1]


def test_a_reference_is_encoded_the_same_in_any_company(pipe):
    """To the bit on every processor, because each is encoded alone."""
    together = pipe.encode_subject([picture(i) for i in range(5)])
    for i in range(5):
        alone = pipe.encode_subject(picture(i))
        assert torch.equal(together.latents[i : i + 1], alone.latents)
        assert torch.equal(together.image_states[i : i + 1], alone.image_states)


def test_texts_are_encoded_in_the_batches_of_stable_diffusion(pipe):
    """To the bit on every processor: the same texts in the same shapes, one that comes twice encoded twice."""
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    base = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    texts = dict(prompt=["a dog", "a red hat", "a dog"], negative_prompt=["blue"] * 3)
    with torch.no_grad():
        expected = base.encode_prompt(**texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    for ours, theirs in zip(pipe.encode_prompt(**texts), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_the_posterior_is_what_the_vae_samples_from(pipe):
    pixels = torch.rand(2, 3, 16, 16, generator=seeded()) * 2 - 1
    mean, std = posterior(pipe.vae, pixels, "cpu")
    with torch.no_grad():
        sample = pipe.vae.encode(pixels).latent_dist.sample(seeded(1)) * pipe.vae.config.scaling_factor
    noise = torch.randn(mean.shape, generator=seeded(1))
    torch.testing.assert_close(mean + std * noise, sample, rtol=1e-5, atol=1e-6)


def test_an_autoencoder_without_posterior_is_sure_of_its_latents():
    widths = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    vae = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5).eval()
    pixels = torch.rand(1, 3, 16, 16, generator=seeded()) * 2 - 1
    mean, std = posterior(vae, pixels, "cpu")
    with torch.no_grad():
        assert torch.equal(mean, vae.encode(pixels).latents * 0.5)
    assert not std.any()


def test_pictures_need_an_image_encoder(pipe):
    pipe.image_encoder = None
    with pytest.raises(ValueError, match="has no `image_encoder`: give `subject`"):
        latents_of(pipe, image=picture())
