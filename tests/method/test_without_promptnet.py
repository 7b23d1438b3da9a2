"""A pipeline of Stable Diffusion's own parts: it is the base model, and says what it lacks."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from calls import PROMPT, build, latents_of, picture, seeded
from concepts import photo
from profusion_pipeline.customization.customize import ProFusionPipeline
from profusion_pipeline.method.subject_embedding import SubjectEmbedding
from tiny import make_components

pytestmark = pytest.mark.numeric
BASE = dict(guidance_scale=0, num_fusion_steps=0, class_guidance_scale=5.0)


def stable_diffusion() -> StableDiffusionPipeline:
    components = make_components()
    parts = {name: components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def base_pictures(pipe) -> np.ndarray:
    return pipe("a person", guidance_scale=5.0, num_inference_steps=2, generator=seeded(), output_type="np").images


def pictures(pipe) -> np.ndarray:
    return pipe("a S*", **BASE, num_inference_steps=2, generator=seeded(), output_type="np").images


def test_made_from_a_stable_diffusion_pipeline():
    base = stable_diffusion()
    pipe = ProFusionPipeline.from_pipe(base)
    assert pipe.promptnet is None and pipe.unet is base.unet
    assert np.array_equal(pictures(pipe), base_pictures(base))
    assert type(StableDiffusionPipeline.from_pipe(pipe)) is StableDiffusionPipeline
    assert np.array_equal(pictures(pipe.clone()), base_pictures(base))


def test_loaded_from_a_stable_diffusion_repository(tmp_path):
    base = stable_diffusion()
    base.save_pretrained(tmp_path)
    assert np.array_equal(pictures(ProFusionPipeline.from_pretrained(tmp_path)), base_pictures(base))


def test_saved_and_loaded_with_this_code_and_as_remote_code(tmp_path):
    base = stable_diffusion()
    ProFusionPipeline.from_pipe(base).save_pretrained(tmp_path)
    remote = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote).__name__ == "ProFusionPipeline" and not isinstance(remote, ProFusionPipeline)
    for pipe in (ProFusionPipeline.from_pretrained(tmp_path), remote):
        pipe.set_progress_bar_config(disable=True)
        assert pipe.promptnet is None
        assert np.array_equal(pictures(pipe), base_pictures(base))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "There is no PromptNet in it" in card and "photo.jpg" not in card and "custom_pipeline" not in card
    # A PromptNet comes in, and the folder is completed.
    parts = {name: make_components()[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    ProFusionPipeline.from_pretrained(tmp_path, **parts).save_pretrained(tmp_path)
    whole = ProFusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(latents_of(whole, image=picture()), latents_of(build(), image=picture()))


@pytest.fixture
def bare():
    return build(promptnet=None)


@pytest.mark.parametrize(
    "use",
    [
        lambda pipe: pipe(PROMPT, image=picture()),
        lambda pipe: pipe.encode_subject(picture()),
        lambda pipe: pipe(
            PROMPT, subject=SubjectEmbedding(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 24), torch.ones(1))
        ),
        lambda pipe: pipe.load_concept("ada"),
    ],
)
def test_what_needs_it_says_so(bare, use):
    with pytest.raises(ValueError, match="This pipeline has no `promptnet`, which makes S\\* of a picture"):
        use(bare)


def test_customising_says_so(bare):
    with pytest.raises(ValueError, match="Customising needs a pipeline with `promptnet`, this ProFusionPipeline has"):
        bare.customize(photo())


def test_sizes_are_those_of_the_vae(bare):
    assert latents_of(bare, **BASE, height=18, width=20).shape == (1, 4, 9, 10)
    with pytest.raises(ValueError, match="`height` and `width` must be multiples of 2 and at least 2, got 17 and 16"):
        bare(PROMPT, **BASE, height=17)


def test_nothing_to_unload(bare):
    bare.unload_concept()
    assert torch.equal(latents_of(bare, **BASE), latents_of(build(), **BASE))
