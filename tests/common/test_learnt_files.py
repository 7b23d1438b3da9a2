import pytest
import torch
from safetensors.torch import save_file

from calls import build
from loras import make_xl_lora, write_lora
from profusion_pipeline.common import learnt_files
from profusion_pipeline.common.learnt_files import load_learnt
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from tiny import TEXT_WIDTH
from tiny_xl import SECOND_WIDTH, make_xl_components


def test_words_of_a_textual_inversion_stand_for_themselves(tmp_path):
    save_file({"<toy>": torch.ones(2, TEXT_WIDTH)}, tmp_path / "toy.safetensors")
    pipe = build(promptnet=None)
    learnt = load_learnt(pipe, words=None, class_noun="hat", textual_inversions=[str(tmp_path / "toy.safetensors")])
    assert (learnt.subject.words, learnt.subject.adapters) == ("<toy>", ())
    ((_, vectors),) = learnt.textual_inversions
    assert list(vectors) == ["<toy>", "<toy>_1"] and torch.equal(vectors["<toy>_1"], torch.ones(TEXT_WIDTH))


def test_several_loras_with_their_scales(tmp_path):
    pytest.importorskip("peft")
    files = [str(write_lora(tmp_path / name, seed, parts=("unet",))) for seed, name in enumerate("ab")]
    pipe = build(promptnet=None)
    learnt = load_learnt(pipe, words="sks hat", class_noun="hat", loras=files, scales=[1.0, 0.5])
    assert learnt.subject.adapters == (("lora-1", 1.0), ("lora-2", 0.5))
    assert [place for place, _ in learnt.loras] == files
    assert all("lora-1" in name for name in learnt.loras[0][1]) and len(learnt.loras[0][1]) == len(learnt.loras[1][1])
    with pytest.raises(ValueError, match="`scale` of a LearntSubject must have an entry for each of 2 adapters, got 1"):
        load_learnt(build(promptnet=None), words="sks hat", class_noun="hat", loras=files, scales=[1.0])


def test_both_text_encoders_of_stable_diffusion_xl(tmp_path):
    pytest.importorskip("peft")
    vectors = {"clip_l": torch.ones(1, TEXT_WIDTH), "clip_g": torch.full((1, SECOND_WIDTH), 2.0)}
    save_file(vectors, tmp_path / "toy.safetensors")
    save_file(make_xl_lora(), tmp_path / "dog.safetensors")
    pipe = ProFusionXLPipeline(**make_xl_components(with_promptnet=False))
    files = dict(loras=[str(tmp_path / "dog.safetensors")], textual_inversions=[str(tmp_path / "toy.safetensors")])
    learnt = load_learnt(pipe, words=None, class_noun="hat", **files)
    assert learnt.subject.words == "<toy>"
    ((_, words),), ((_, tensors),) = learnt.textual_inversions, learnt.loras
    assert {name: vector.unique().tolist() for name, vector in words.items()} == {
        "<toy>": [1.0],
        "text_encoder_2.<toy>": [2.0],
    }
    assert {name.split(".")[0] for name in tensors} == {"unet", "text_encoder", "text_encoder_2"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("me/dog", ("me/dog", None)),
        ("me/loras/dog.safetensors", ("me/loras", "dog.safetensors")),
        ("me/loras/dogs/one.safetensors", ("me/loras", "dogs/one.safetensors")),
        ("dog.safetensors", ("dog.safetensors", None)),
    ],
)
def test_a_file_of_a_hub_repository(source, expected):
    assert learnt_files._repository_and_file(source) == expected
