"""Files of concepts and subjects, changed at random: they draw, or say what is wrong, and leave nothing behind."""

import dataclasses
import json
import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from calls import latents_of, picture
from concepts import learn, photo, sample, tiny_pipeline
from profusion_pipeline.method.concept_file import FILE, Concept
from profusion_pipeline.method.subject_embedding import SubjectEmbedding

NUMBERS = [float("nan"), float("inf"), 0.0, -1.0, 6e4]
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.complex64]
NAMES = ["unet.x.lora_A.weight", "vae.x", "", "unet.", "subject.latents"]
FACTS = [None, True, -1, 10**400, "", "x" * 10**5, [], {}, {"mode": "dora"}, {"mode": "full"}, {"mode": "lora"}, 0.5]


def changed_tensors(tensors: dict, luck: random.Random) -> dict:
    """One tensor renamed, cut, turned, of another dtype, of other numbers, or left out."""
    name, tensors = luck.choice(sorted(tensors)), dict(tensors)
    tensor = tensors.pop(name)
    match luck.randrange(6):
        case 0:
            tensors[luck.choice(NAMES)] = tensor
        case 1:
            tensors[name] = tensor.flatten()[: luck.randrange(3)].clone()
        case 2:
            tensors[name] = tensor[None] if tensor.ndim < 2 else tensor.transpose(0, 1).clone()
        case 3:
            tensors[name] = tensor.to(luck.choice(DTYPES))
        case 4:
            tensors[name] = torch.full_like(tensor, luck.choice(NUMBERS))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def broken(content: bytes, luck: random.Random) -> bytes:
    """Some bytes of the header, or of the whole file, are others; or the end is missing."""
    header = 8 + struct.unpack("<Q", content[:8])[0]
    reach = luck.choice([8, header, len(content)])
    changed = bytearray(content)
    for _ in range(luck.randrange(4)):
        changed[luck.randrange(reach)] = luck.randrange(256)
    return bytes(changed[: luck.choice([len(content), len(content), len(content) - 1, 4, 0])])


def bounded(test):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    limits = settings(
        max_examples=80, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=checks
    )
    return limits(given(seed=st.integers(0, 2**32))(test))


@pytest.fixture(scope="module")
def learnt() -> dict[str, Concept]:
    return learn()


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.slow
@bounded
def test_a_changed_concept_draws_or_is_refused(pipe, learnt, tmp_path, seed):
    luck = random.Random(seed)
    concept = learnt[luck.choice(["ada", "full"])]
    facts = {field.name: getattr(concept, field.name) for field in dataclasses.fields(concept)[4:]}
    tensors = {name: tensor.contiguous() for name, tensor in concept._tensors().items()}
    if luck.random() < 0.5:
        tensors = changed_tensors(tensors, luck)
    if luck.random() < 0.5:
        facts[luck.choice(sorted(facts))] = luck.choice(FACTS)
    content = save(tensors, metadata={"concept": json.dumps(facts)})
    (tmp_path / FILE).write_bytes(broken(content, luck) if luck.random() < 0.5 else content)
    untouched = sample(pipe, image=photo(), num_inference_steps=1)
    try:
        pipe.load_concept(tmp_path)
    except (ValueError, TypeError, OSError) as error:
        assert str(error) and len(str(error)) < 600
    else:
        try:
            assert torch.isfinite(sample(pipe, num_inference_steps=1)).all()
        except RuntimeError as error:  # finite weights of 60,000 may give something else
            assert "finite numbers" in str(error)
        pipe.unload_concept()
    assert not pipe.concepts and torch.equal(sample(pipe, image=photo(), num_inference_steps=1), untouched)


@bounded
def test_a_changed_subject_draws_or_is_refused(pipe, tmp_path, seed):
    luck = random.Random(seed)
    tensors = {name: tensor.contiguous() for name, tensor in vars(pipe.encode_subject(picture())).items()}
    content = save(changed_tensors(tensors, luck)) if luck.random() < 0.5 else broken(save(tensors), luck)
    path = tmp_path / "ada.safetensors"
    path.write_bytes(content)
    try:
        latents = latents_of(pipe, subject=SubjectEmbedding.load(path), num_inference_steps=1)
    except (ValueError, TypeError, OSError) as error:
        assert str(error) and len(str(error)) < 600
    except RuntimeError as error:
        assert "finite numbers" in str(error)
    else:
        assert torch.isfinite(latents).all()
