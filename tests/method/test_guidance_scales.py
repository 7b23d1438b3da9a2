"""What a call costs is known beforehand, from its scales."""

import numpy as np
import pytest

from calls import count_work, latents_of, picture
from profusion_pipeline.method.guidance_scales import Guidance
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (dict(), 8 * 5),
        (dict(num_fusion_steps=0), 8 * 3),
        (dict(num_fusion_steps=2, fusion_end=0.5), 8 * 3 + 4 * 4),
        (dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0), 8),
        (dict(fusion_guidance_scale=0.0), 8 * 4),
        (dict(fusion_start=0.25, fusion_end=0.3), 8 * 3),
        (dict(num_fusion_steps=0, guidance_end=0.5), 4 * 3 + 4),
        (dict(guidance_start=0.25, guidance_end=0.75, fusion_end=0.25), 4 * 3 + 4 + 2 * 2),
        (dict(num_fusion_steps=0, guidance_scale=0.0, guidance_end=0.5), 4 * 2 + 4),
        (dict(num_fusion_steps=0, guidance_scale=0.0, class_guidance_scale=0.0, guidance_start=0.5), 8),
        (dict(guidance_rescale=0.5, subject_every=4), 8 * 5),
    ],
)
def test_rows_of_a_call_are_counted_beforehand(pipe, settings, rows):
    """The number is what the UNet is given; steps between two shares count where they lie whole between them."""
    guidance = Guidance.from_call(ProFusionPipeline.__call__, **settings)
    assert guidance.unet_rows(8) == rows
    counts = count_work(pipe)
    latents_of(pipe, image=picture(), num_inference_steps=8, **settings)
    assert counts["unet_rows"] == rows


def test_fields_are_plain_numbers():
    guidance = Guidance.from_call(
        ProFusionPipeline.__call__, guidance_scale=np.float32(3), num_fusion_steps=np.int64(2)
    )
    assert type(guidance.guidance_scale) is float and type(guidance.num_fusion_steps) is int


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        (dict(), 16),
        (dict(num_fusion_steps=3, fusion_end=0.5), 4 * 3 + 8),
        (dict(subject_every=1), 8),
        (dict(subject_every=4, num_fusion_steps=2), 2),
        (dict(subject_every=3, guidance_end=0.5), 3),
        (dict(subject_every=8), 1),
        (dict(subject_every=2, guidance_scale=0.0, fusion_start=0.25, fusion_end=0.75), 2),
        (dict(subject_every=4, guidance_scale=0.0, fusion_start=0.25, fusion_end=0.75), 2),
        (dict(subject_every=2, guidance_scale=0.0, fusion_guidance_scale=0.0), 0),
        (dict(guidance_scale=0.0, class_guidance_scale=0.0), 8),
        (dict(fusion_text="mixed", class_guidance_scale=0.0, subject_every=1), 8),
    ],
)
@pytest.mark.parametrize("references", [1, 2])
def test_calls_of_promptnet_are_counted_beforehand(pipe, settings, calls, references):
    """And the texts of the text encoder: ∅ and C once, those with S* as often as it is made."""
    guidance = Guidance.from_call(ProFusionPipeline.__call__, **settings)
    counts = count_work(pipe)
    images = [picture(number) for number in range(references)]
    latents_of(pipe, image=images, num_inference_steps=8, **settings)
    assert guidance.promptnet_calls(8) == counts["promptnet_calls"] == calls
    assert guidance.text_sequences(8) + (references - 1) * calls == counts["text_sequences"]
