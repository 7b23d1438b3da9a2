import pytest
import torch
from safetensors.torch import save_file

from calls import build
from loras import write_lora
from profusion_pipeline.common import learnt_files
from profusion_pipeline.common.learnt_files import load_learnt
from tiny import TEXT_WIDTH


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


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("me/dog", ("me/dog", None)),
        ("me/loras/dog.safetensors", ("me/loras", "dog.safetensors")),
        ("me/loras/dogs/one.safetensors", ("me/loras", "dogs/one.safetensors")),
        ("dog.safetensors", ("dog.safetensors", None)),
    ],
)
def test_a_file_of_a_hub_repository(source, place):
    assert learnt_files._place_and_file(source) == place
