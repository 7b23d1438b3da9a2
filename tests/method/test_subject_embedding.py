import pytest
import torch
from safetensors.torch import save_file

from profusion_pipeline.method.subject_embedding import SubjectEmbedding


def subject(**overrides):
    parts = dict(
        latents=torch.randn(2, 4, 8, 8), image_states=torch.randn(2, 5, 24), weights=torch.tensor([0.25, 0.75])
    )
    return SubjectEmbedding(**parts | overrides)


def test_survives_a_file_to_the_bit(tmp_path):
    path = tmp_path / "ada.safetensors"
    path.write_text("something older")
    one = subject(latents=torch.randn(2, 8, 8, 4).permute(0, 3, 1, 2))  # not contiguous
    one.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["ada.safetensors"]
    for name, tensor in vars(SubjectEmbedding.load(path)).items():
        assert torch.equal(tensor, getattr(one, name)), name


def test_nothing_is_left_of_a_save_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "ada.safetensors"
    subject().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        subject().save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["ada.safetensors"]


def test_to_leaves_the_weights():
    moved = subject().to("cpu", torch.bfloat16)
    assert (moved.latents.dtype, moved.image_states.dtype) == (torch.bfloat16, torch.bfloat16)
    assert moved.weights.dtype == torch.float32


@pytest.mark.parametrize(
    "overrides",
    [
        dict(latents=torch.zeros(4, 8, 8)),
        dict(latents=torch.zeros(2, 4, 8, 0)),
        dict(image_states=torch.zeros(2, 24)),
        dict(image_states=torch.zeros(2, 0, 24)),
        dict(weights=torch.zeros(2, 1)),
        dict(weights=torch.ones(3)),
    ],
)
def test_shapes_agree(overrides):
    (name,) = overrides
    with pytest.raises(
        ValueError, match=rf"`{name}` must have the shape \[R|must be of the same R references, got 2, 2"
    ):
        subject(**overrides)


@pytest.mark.parametrize("name", ["latents", "image_states", "weights"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_they_are_floats(name, dtype):
    with pytest.raises(TypeError, match=f"`{name}` must be a tensor of floats, got {dtype}"):
        subject(**{name: getattr(subject(), name).to(dtype)})


@pytest.mark.parametrize("name", ["latents", "image_states", "weights"])
def test_they_are_finite(name):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"`{name}` must hold finite numbers, got"):
            subject(**{name: torch.full_like(getattr(subject(), name), value)})


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0]])
def test_weights_count(weights):
    with pytest.raises(ValueError, match="`weights` must be 0 or more, and not all 0"):
        subject(weights=torch.tensor(weights))


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError):
        SubjectEmbedding.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="isn't a whole safetensors file"):
        SubjectEmbedding.load(path)
    save_file({"weights": torch.ones(1)}, path)
    with pytest.raises(
        ValueError, match=r"must hold the \['image_states', 'latents', 'weights'\] .* got \['weights'\]"
    ):
        SubjectEmbedding.load(path)


def test_a_file_of_numbers_that_can_not_be_drawn(tmp_path):
    path = tmp_path / "ada.safetensors"
    save_file(
        {
            "latents": torch.full((1, 4, 8, 8), float("nan")),
            "image_states": torch.ones(1, 5, 24),
            "weights": torch.ones(1),
        },
        path,
    )
    with pytest.raises(ValueError, match="holds no subject that can be drawn: `latents` must hold finite numbers"):
        SubjectEmbedding.load(path)


def test_a_notebook_shows_a_line(tmp_path):
    expected = "SubjectEmbedding(latents [2, 4, 8, 8], image_states [2, 5, 24], weights [1.0, 1.0])"
    assert repr(subject(weights=torch.ones(2))) == expected


def subject_of(value: float, references: int = 1, side: int = 8) -> SubjectEmbedding:
    weights = torch.full((references,), 1 / references, dtype=torch.float64)
    return SubjectEmbedding(torch.full((references, 4, side, side), value), torch.ones(references, 5, 24), weights)


def test_a_blend_has_the_references_of_both():
    blend = subject_of(1.0, 2).blend(subject_of(2.0), 0.25)
    assert blend.latents[:, 0, 0, 0].tolist() == [1, 1, 2]
    assert blend.weights.tolist() == [0.375, 0.375, 0.25]


@pytest.mark.parametrize(
    ("other", "share", "error", "match"),
    [
        (None, 0.5, TypeError, "`other` must be a SubjectEmbedding, got None"),
        (subject_of(1.0), 1.5, ValueError, "`share` must be a finite number of 0 to 1, got 1.5"),
        (subject_of(1.0, side=4), 0.5, ValueError, r"`other` must have latents of \[4, 8, 8\] for each reference"),
    ],
)
def test_blends_that_are_refused(other, share, error, match):
    with pytest.raises(error, match=match):
        subject_of(0.0).blend(other, share)


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ("a" * 300, FileNotFoundError, "`path` must be a file that exists, got 'a"),
        ("a\0b", FileNotFoundError, "`path` must be a file that exists, got 'a"),
        (".", FileNotFoundError, "`path` must be a file that exists, got '.'"),
        (None, TypeError, "`path` must be the path of a file, got None"),
    ],
)
def test_paths_that_are_none(path, error, match):
    with pytest.raises(error, match=match) as raised:
        SubjectEmbedding.load(path)
    assert len(str(raised.value)) < 200
