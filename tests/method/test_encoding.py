"""`encode_prompt` is in `test_compose.py`, with what else a caller may bring."""

import pytest
import torch

from calls import PROMPT, count_work, latents_of, picture, relative, seeded
from profusion_pipeline.method.subject_embedding import SubjectEmbedding


def test_an_embedding_is_as_good_as_the_picture(pipe, tmp_path):
    images = [picture(1), picture(2)]
    expected = latents_of(pipe, image=images, image_weights=[0.7, 0.3])
    pipe.encode_subject(images, weights=[0.7, 0.3]).save(tmp_path / "ada.safetensors")
    pipe.image_encoder = pipe.feature_extractor = None
    subject = SubjectEmbedding.load(tmp_path / "ada.safetensors")
    assert torch.equal(latents_of(pipe, subject=subject), expected)
    both = latents_of(pipe, [PROMPT] * 2, subject=[subject] * 2, generator=[seeded(), seeded()])
    assert relative(both[1:], expected) < 2e-5


def test_shared_texts_and_pictures_are_encoded_once(pipe):
    counts, encoded, image = count_work(pipe), [], picture()
    pipe.image_encoder.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    latents_of(pipe, ["S*", "a photo of S*"], image=[image] * 2, num_inference_steps=1, num_fusion_steps=0)
    assert counts["text_sequences"] == 1 + 2 + 2 and encoded == [1]


def test_pictures_need_an_image_encoder(pipe):
    pipe.image_encoder = None
    with pytest.raises(ValueError, match="has no `image_encoder`: give `subject`"):
        latents_of(pipe, image=picture())
