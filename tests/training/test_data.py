import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from profusion_pipeline.training.data import (
    PictureFolder,
    batch_numbers,
    choose_sample,
    draw_noise,
    load_batches,
    read_picture_folder,
)

SHAPE = (4, 8, 8)


@pytest.fixture
def folder(tmp_path):
    """Four names that look like pictures (none is opened here), and some that don't."""
    (tmp_path / "b").mkdir()
    for name in ("c.PNG", "a.jpg", "b/2.webp", "b/10.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def write_metadata(folder: Path, *rows) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def names(pictures: PictureFolder, folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in pictures.files]


def test_without_metadata_all_pictures_are_learnt_in_the_order_of_their_paths(folder):
    pictures = read_picture_folder(folder)
    assert names(pictures, folder) == ["a.jpg", "b/10.png", "b/2.webp", "c.PNG"]
    assert pictures.targets == (0, 1, 2, 3)
    assert pictures.references == ((0,), (1,), (2,), (3,))


def test_metadata_lists_targets_and_references(folder):
    write_metadata(
        folder,
        {"file_name": "c.PNG", "ref_img": "a.jpg", "text": "\ufeff S*, smiling\n", "caption": "ignored"},
        "",
        {"file_name": "b/2.webp", "ref_img": ["c.PNG", "b/10.png"]},
    )
    pictures = read_picture_folder(folder, reference="other")
    assert names(pictures, folder) == ["c.PNG", "b/2.webp", "a.jpg", "b/10.png"]
    assert pictures.targets == (0, 1)
    assert pictures.references == ((2,), (0, 3))
    same = read_picture_folder(folder, reference="same")
    assert names(same, folder) == ["c.PNG", "b/2.webp"]
    assert same.references == ((0,), (1,))
    assert same.captions == pictures.captions == ()
    assert read_picture_folder(folder, placeholder="S*").captions == ("S*, smiling", "")


def test_metadata_agrees_with_hugging_faces_imagefolder(folder):
    from datasets import load_dataset
    from PIL import Image

    for name in ("a.jpg", "b/10.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    rows = [{"file_name": name, "ref_img": [other]} for name, other in (("b/10.png", "a.jpg"), ("a.jpg", "b/10.png"))]
    write_metadata(folder, *rows)
    theirs = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder / "cache"))
    ours = read_picture_folder(folder, reference="other")
    assert sorted(refs for row in theirs["ref_img"] for refs in row) == sorted(
        ours.files[i].relative_to(folder).as_posix() for refs in ours.references for i in refs
    )
    assert len(theirs) == len(ours.targets)


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (["{"], r"metadata.jsonl', line 1, must be one JSON object, got '\{'"),
        (["[1]"], r"line 1, must be an object with a text `file_name`, got '\[1\]'"),
        ([{"file_name": "a.jpg"}, {"name": "b"}], "line 2, must be an object with a text `file_name`"),
        (
            [{"file_name": "a.jpg", "ref_img": 3}],
            "line 1, must have as `ref_img` one file name or a list of them, got 3",
        ),
        ([{"file_name": "a.jpg", "ref_img": [3]}], r"as `ref_img` one file name or a list of them, got \[3\]"),
        ([{"file_name": "a.jpg"}] * 2, "line 2, must name each file once, 'a.jpg' was there before"),
        ([{"file_name": "gone.png"}], "must name files of its folder, 'gone.png' is not there"),
        ([""], "`data` must hold at least one picture"),
    ],
)
def test_broken_metadata_is_refused(folder, rows, sentence):
    write_metadata(folder, *rows)
    with pytest.raises(ValueError, match=sentence):
        read_picture_folder(folder)


@pytest.mark.parametrize("text", ["a man", "S* and S*", 3, "a man, " * 100, "S* \ud800"])
def test_a_caption_without_its_person_is_refused(folder, text):
    write_metadata(folder, {"file_name": "c.PNG", "text": "S*"}, {"file_name": "a.jpg", "text": text})
    sentence = r"The caption of '.*a.jpg' must be a text that holds 'S\*' exactly once, .*captions=False.*, got "
    with pytest.raises(ValueError, match=sentence) as told:
        read_picture_folder(folder, placeholder="S*")
    assert repr(text)[:90] in str(told.value) and len(str(told.value).split(", got ")[1]) <= 102
    assert read_picture_folder(folder).captions == ()


def test_a_sample_has_the_caption_of_its_target():
    pictures = PictureFolder(tuple(map(Path, "abc")), (0, 1, 2), ((1, 2), (0,), (2, 1)), ("S* a", "", "S* c"))
    for number in range(20):
        choice = choose_sample(number, pictures, seed=0)
        assert choice.caption == ("S* a", "", "S* c")[choice.target]


def test_references_must_be_there_when_they_are_asked_for(folder):
    with pytest.raises(ValueError, match="`reference` is 'other', so '.*metadata.jsonl' must exist"):
        read_picture_folder(folder, reference="other")
    write_metadata(folder, {"file_name": "a.jpg", "ref_img": "gone.png"})
    with pytest.raises(ValueError, match="must name files of its folder, 'gone.png' is not there"):
        read_picture_folder(folder, reference="other")
    write_metadata(folder, {"file_name": "a.jpg", "ref_img": []})
    with pytest.raises(ValueError, match="`reference` is 'other', so 'a.jpg' must have a ref_img"):
        read_picture_folder(folder, reference="other")


def test_what_is_left_out_is_said_once(folder, caplog):
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a-checkpoint.jpg").touch()
    for name in ("d.jfif", "e.AVIF", "f.gif"):
        (folder / name).touch()
    assert names(read_picture_folder(folder), folder) == [
        *("a.jpg", "b/10.png", "b/2.webp", "c.PNG"),
        "d.jfif",
        "e.AVIF",
        "f.gif",
    ]
    assert caplog.messages == [
        f"Left out of {str(folder)!r}: 2 as hidden or a system's (.hidden.png, .ipynb_checkpoints), "
        "1 as no picture (.txt)."
    ]


def test_nothing_left_out_is_not_said(tmp_path, caplog):
    (tmp_path / "a.png").touch()
    read_picture_folder(tmp_path)
    assert not caplog.messages


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    private = tmp_path_factory.mktemp("private") / "p.png"
    private.touch()
    (folder / "innocent.png").symlink_to(private)
    (folder / "inside.png").symlink_to(folder / "a.jpg")
    with pytest.raises(ValueError, match="`data` must hold its pictures itself, 'innocent.png' is a link out of"):
        read_picture_folder(folder)
    assert "innocent.png" in names(read_picture_folder(folder, allow_outside_files=True), folder)
    (folder / "innocent.png").unlink()
    assert "inside.png" in names(read_picture_folder(folder), folder)


def test_a_data_set_in_the_cache_of_the_hub_is_links(tmp_path):
    blobs, snapshot = tmp_path / "datasets--a--b" / "blobs", tmp_path / "datasets--a--b" / "snapshots" / "0af3"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1f").touch()
    (snapshot / "a.png").symlink_to("../../blobs/1f")
    assert names(read_picture_folder(snapshot), snapshot) == ["a.png"]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`data` must hold at least one picture \(.png, .*found none in '.*'\.$"):
        read_picture_folder(tmp_path)
    (tmp_path / ".hidden.png").touch()
    with pytest.raises(ValueError, match=r"found none in '.*'\. Left out of '.*': 1 as hidden"):
        read_picture_folder(tmp_path)
    with pytest.raises(ValueError, match="`data` must be a folder of pictures that exists, got '.*nowhere'"):
        read_picture_folder(tmp_path / "nowhere")


def table(num_targets: int, num_references: int = 1) -> PictureFolder:
    files = tuple(Path(f"{i}.png") for i in range(num_targets))
    references = tuple(tuple((i + k) % num_targets for k in range(num_references)) for i in range(num_targets))
    return PictureFolder(files, tuple(range(num_targets)), references)


def test_every_epoch_shows_every_picture_once_in_a_new_order():
    pictures = table(50)
    epochs = [[choose_sample(50 * e + i, pictures, seed=3).target for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != [choose_sample(i, pictures, seed=4).target for i in range(50)]


def test_references_and_flips_are_drawn_evenly():
    pictures = table(10, num_references=3)
    choices = [choose_sample(n, pictures, seed=0, horizontal_flip=True) for n in range(3000)]
    offsets = Counter((choice.reference - choice.target) % 10 for choice in choices)
    assert set(offsets) == {0, 1, 2}
    assert all(abs(count - 1000) < 130 for count in offsets.values())  # five standard deviations
    assert abs(sum(choice.flip for choice in choices) - 1500) < 140
    assert not any(choose_sample(n, pictures, seed=0).flip for n in range(100))


def test_what_a_sample_is_does_not_depend_on_its_batch():
    together = draw_noise(range(5, 9), seed=1, num_timesteps=1000, latent_shape=SHAPE)
    alone = [draw_noise([n], seed=1, num_timesteps=1000, latent_shape=SHAPE) for n in range(5, 9)]
    for i, field in enumerate(together):
        assert torch.equal(field, torch.cat([draws[i] for draws in alone]))
    other = draw_noise(range(5, 9), seed=2, num_timesteps=1000, latent_shape=SHAPE)
    assert not torch.equal(together.noise, other.noise)


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_made_in_order_and_no_further_ahead_than_needed(ahead):
    """Of an endless row of numbers."""
    draw = partial(draw_noise, seed=1, num_timesteps=1000, latent_shape=SHAPE)
    numbers, seen = batch_numbers(0, batch_size=2), []
    batches = load_batches(draw, (seen.append(batch) or batch for batch in numbers), ahead=ahead)
    for first in (0, 2, 4):
        for ours, theirs in zip(next(batches), draw(range(first, first + 2)), strict=True):
            assert torch.equal(ours, theirs)
    assert len(seen) == (5 if ahead else 3)


def test_noise_is_standard_normal_and_independent_and_timesteps_uniform():
    draws = draw_noise(range(2000), seed=0, num_timesteps=1000, latent_shape=SHAPE)
    assert draws.timesteps.dtype == torch.int64
    assert (draws.timesteps.min() >= 0) and (draws.timesteps.max() <= 999)
    assert kstest(draws.timesteps.double() / 1000, "uniform").pvalue > 1e-4
    noise, posterior_noise = draws.noise.flatten(1).double(), draws.posterior_noise.flatten(1).double()
    assert kstest(noise[:, 0], "norm").pvalue > 1e-4
    assert kstest(posterior_noise[0], "norm").pvalue > 1e-4
    samples = noise.numel()
    for other in (posterior_noise, noise.roll(1, 0), noise.roll(1, 1)):  # the other kind, the neighbour, the next cell
        assert abs((noise * other).mean()) < 5 / np.sqrt(samples)


@pytest.mark.parametrize("process", [0, 1])
def test_processes_and_accumulation_share_the_samples_of_a_step(process):
    numbers = batch_numbers(0, batch_size=2, accumulation=3, process=process, num_processes=2)
    mine = [list(next(numbers)) for _ in range(6)]
    assert mine == [[4 * i + 2 * process, 4 * i + 2 * process + 1] for i in range(6)]
    later = batch_numbers(1, batch_size=2, accumulation=3, process=process, num_processes=2)
    assert [list(next(later)) for _ in range(3)] == mine[3:]  # the second step
