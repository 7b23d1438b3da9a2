import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from profusion_pipeline.method import picture_file
from profusion_pipeline.training.data import CHOICE, batch_numbers
from profusion_pipeline.training.stream import PictureStream, open_encoded_picture, open_picture_stream
from training import write_shards

SHARDS, PICTURES = 3, 4  # of each


@pytest.fixture
def shards(tmp_path) -> Path:
    return write_shards(tmp_path / "shards", shards=SHARDS, pictures=PICTURES)


@pytest.fixture
def parquet(tmp_path) -> Path:
    for i in range(2):
        write_parquet(tmp_path / "parquet" / f"{i}.parquet", columns=("photo",), sides=range(8 + 6 * i, 14 + 6 * i))
    return tmp_path / "parquet"


def write_parquet(path: Path, *, columns, sides, texts=None) -> None:
    """Pictures of these sides in each column, and their names, texts beside them; two in each row group."""
    from datasets import Features, Value
    from datasets import Image as ImageFeature

    schema = Features(
        dict.fromkeys(columns, ImageFeature())
        | {"name": Value("string")}
        | ({"text": Value("string")} if texts else {})
    ).arrow_schema
    pictures = [{"bytes": encoded(side), "path": f"{side}.png"} for side in sides]
    rows = [dict.fromkeys(columns, picture) | {"name": picture["path"]} for picture in pictures]
    if texts:
        rows = [row | {"text": text} for row, text in zip(rows, texts, strict=True)]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)


def encoded(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (side, 0, 0)).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, **files: bytes) -> None:
    """A shard of one file each sample, `a__png` for `a.png`."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def stream(data, **settings) -> PictureStream:
    return PictureStream(open_picture_stream(str(data)), **dict(seed=0, shuffle_buffer=5) | settings)


def names(samples) -> list[str]:
    return [sample.target.keywords["name"] for sample in samples]


def taken(stream: PictureStream, *sizes: int, first: int = 0) -> list[str]:
    """Names of the samples of batches of these sizes, the first of which begins at a sample number."""
    ends = first + np.cumsum(sizes)
    batches = stream.samples([range(end - size, end) for end, size in zip(ends, sizes, strict=True)])
    return [name for batch in batches for name in names(batch)]


@pytest.mark.parametrize("data, count", [("shards", SHARDS * PICTURES), ("parquet", 12)])
def test_every_epoch_shows_every_picture_once_in_a_new_order(data, count, request):
    data = request.getfixturevalue(data)
    seen = taken(stream(data), *[count] * 4)
    epochs = [tuple(seen[i : i + count]) for i in range(0, 4 * count, count)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    assert all(len(set(epoch)) == count for epoch in epochs)
    assert len(set(epochs)) == 4
    assert taken(stream(data), *[1] * 20) == seen[:20]
    assert taken(stream(data, seed=1), count) != list(epochs[0])


def test_the_order_of_shards_changes_and_the_buffer_mixes_them(shards):
    ordered = taken(stream(shards, shuffle_buffer=1), *[PICTURES] * SHARDS * 4)
    visits = [name.split("of ")[1] for name in ordered]
    epochs = [tuple(visits[i : i + SHARDS * PICTURES : PICTURES]) for i in range(0, len(visits), SHARDS * PICTURES)]
    assert all(len(set(epoch)) == SHARDS for epoch in epochs)  # shard after shard
    assert len(set(epochs)) > 1
    mixed = [name.split("of ")[1] for name in taken(stream(shards, shuffle_buffer=100), SHARDS * PICTURES)]
    assert mixed[:PICTURES] != [mixed[0]] * PICTURES


@pytest.mark.parametrize("data, shuffle_buffer", [("shards", 1), ("shards", 5), ("shards", 100), ("parquet", 5)])
def test_a_stream_goes_on_from_every_place(data, shuffle_buffer, request):
    dataset = open_picture_stream(str(request.getfixturevalue(data)))
    running = PictureStream(dataset, seed=0, shuffle_buffer=shuffle_buffer)
    samples = running.samples([n] for n in range(42))
    places, whole = [running.bookmark(0)], []
    for number in range(1, 43):
        whole += names(next(samples))
        places.append(running.bookmark(number))
    for number, place in enumerate(places[:30]):
        for begin in (number, number + 6):  # resumed once, and once more
            resumed = PictureStream(dataset, seed=0, shuffle_buffer=shuffle_buffer)
            resumed.go_to(json.loads(json.dumps(place)))
            assert taken(resumed, 6, first=begin) == whole[begin : begin + 6]
            place = resumed.bookmark(begin + 6)


def test_what_was_read_ahead_does_not_move_the_place(shards):
    ahead = stream(shards)
    whole = taken(ahead, 30)  # as workers do
    resumed = stream(shards)
    resumed.go_to(ahead.bookmark(7))
    assert taken(resumed, 20, first=7) == whole[7:27]
    resumed.go_to(resumed.bookmark(13))  # resumed twice
    assert taken(resumed, 10, first=13) == whole[13:23]


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_every_batch_that_one_would_read(shards, num_processes):
    """From the beginning, and from a place that the first process tells of, which has read less than the others."""
    width = 2 * num_processes
    whole, place = taken(stream(shards, shuffle_buffer=2), 8 * width), None
    for step, later in ((0, 3), (3, 5), (5, 8)):
        shares = [stream(shards, shuffle_buffer=2) for _ in range(num_processes)]
        together = []
        for process, share in enumerate(shares):
            if place:
                share.go_to(place)
            numbers = batch_numbers(step, batch_size=2, process=process, num_processes=num_processes)
            together.append([names(batch) for batch in share.samples(itertools.islice(numbers, 3))])
        batches = zip(*together, strict=True)
        assert [n for batch in batches for share in batch for n in share] == whole[step * width : (step + 3) * width]
        place = shares[0].bookmark(later * width)


def test_pictures_are_those_of_the_shards(shards):
    (samples,) = stream(shards).samples([range(SHARDS * PICTURES)])
    for sample in samples:
        key, url = sample.target.keywords["name"].removeprefix("sample ").split(" of ")
        with tarfile.open(shards / Path(url.strip("'")).name) as tar:
            with Image.open(tar.extractfile(f"{key[1:-1]}.png")) as picture:
                assert np.array_equal(sample.target(), picture)
        assert sample.reference is None and not sample.flip and sample.caption == ""


def test_captions_are_those_of_the_shards(shards, tmp_path):
    (samples,) = stream(shards, placeholder="S*").samples([range(SHARDS * PICTURES)])
    for sample in samples:
        key, url = sample.target.keywords["name"].removeprefix("sample ").split(" of ")
        with tarfile.open(shards / Path(url.strip("'")).name) as tar:
            assert sample.caption == tar.extractfile(f"{key[1:-1]}.txt").read().decode()
    write_tar(
        tmp_path / "json" / "0.tar",
        **{
            "a__png": encoded(8),
            "a__json": b'{"text": "S*, sad", "n": 1}',
            "b__png": encoded(8),
            "b__json": b'{"n": 2}',
        },
    )
    (samples,) = stream(tmp_path / "json", placeholder="S*").samples([range(2)])
    assert sorted(sample.caption for sample in samples) == ["", "S*, sad"]
    write_parquet(tmp_path / "told" / "0.parquet", columns=("image",), sides=[8, 9], texts=["S* in a hat", None])
    (samples,) = stream(tmp_path / "told", placeholder="S*").samples([range(2)])
    assert {sample.target().size[0]: sample.caption for sample in samples} == {8: "S* in a hat", 9: ""}


def test_a_caption_without_its_person_is_named_with_its_shard(tmp_path):
    write_tar(tmp_path / "shards" / "7.tar", a__png=encoded(8), a__txt=b"a man in a hat")
    sentence = r"The caption of \"sample 'a' of '.*7.tar'\" must .*, got 'a man in a hat'"
    with pytest.raises(ValueError, match=sentence):
        list(stream(tmp_path / "shards", placeholder="S*").samples([range(1)]))
    (samples,) = stream(tmp_path / "shards").samples([range(1)])
    assert samples[0].caption == ""
    assert open_picture_stream(str(tmp_path / "shards"), captions=False).features.keys() == {
        "png",
        "__key__",
        "__url__",
    }


def test_flips_belong_to_sample_numbers(shards):
    (samples,) = stream(shards, horizontal_flip=True).samples([range(100, 140)])
    assert [sample.flip for sample in samples] == [
        bool(np.random.default_rng((0, CHOICE, number)).integers(2)) for number in range(100, 140)
    ]


def test_plain_pictures_can_be_streamed_too(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (samples,) = stream(tmp_path).samples([range(3)])
    assert sorted(sample.target().getpixel((0, 0))[0] for sample in samples) == [0, 1, 2]
    assert all(name.startswith("picture '") and name.endswith(".png'") for name in names(samples))


@pytest.mark.parametrize(
    "files, sentence",
    [
        ({}, "`data` must be a data set that the datasets library can stream, can't open '.*shards': .*any data"),
        ({"0.tar": b"x" * 2000}, "can't open '.*shards': invalid header"),
        ({"0.parquet": b"PAR"}, "can't open '.*shards': Parquet file size is 3 bytes"),
    ],
)
def test_what_is_no_stream_of_pictures_is_refused(tmp_path, files, sentence):
    (tmp_path / "shards").mkdir()
    for name, content in files.items():
        (tmp_path / "shards" / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        open_picture_stream(str(tmp_path / "shards"))


def test_one_column_of_pictures_is_needed_or_one_called_image(tmp_path):
    write_tar(tmp_path / "none" / "0.tar", a__txt=b"a")
    with pytest.raises(ValueError, match=r"must have one column of pictures, .*none' has \[\] among \[.*'txt'\]"):
        open_picture_stream(str(tmp_path / "none"))
    write_tar(tmp_path / "two" / "0.tar", a__png=encoded(8), a__jpg=encoded(8))
    with pytest.raises(ValueError, match=r"two' has \['png', 'jpg'\] among"):
        open_picture_stream(str(tmp_path / "two"))
    write_parquet(tmp_path / "called" / "0.parquet", columns=("mask", "image"), sides=[8])
    assert list(open_picture_stream(str(tmp_path / "called")).features) == ["image"]


def test_a_picture_that_cannot_be_read_is_named_with_its_shard(tmp_path):
    write_tar(tmp_path / "shards" / "7.tar", good__png=encoded(8), torn__png=encoded(64)[:60], text__png=b"no picture")
    (samples,) = stream(tmp_path / "shards").samples([range(3)])
    readable = {name: sample.target for name, sample in zip(names(samples), samples, strict=True)}
    assert len(readable) == 3
    for name, target in readable.items():
        if "'good'" in name:
            assert target().size == (8, 8)
        else:
            key = "torn" if "torn" in name else "text"
            with pytest.raises(
                ValueError, match=f"`data` must hold whole pictures, sample '{key}' of '.*7.tar' is not"
            ):
                target()


def test_a_sample_without_picture_is_named(tmp_path):
    write_tar(tmp_path / "shards" / "0.tar", a__png=encoded(8))
    write_tar(tmp_path / "shards" / "1.tar", b__txt=b"b")
    (samples,) = stream(tmp_path / "shards").samples([range(2)])
    (broken,) = (sample for sample in samples if "'b'" in sample.target.keywords["name"])
    with pytest.raises(ValueError, match="must have a picture in every sample, sample 'b' of '.*1.tar' has none"):
        broken.target()


def test_a_picture_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(picture_file, "MAX_PIXELS", 50)
    with pytest.raises(ValueError, match="must hold whole pictures, sample 'a' is not one: .* must have at most"):
        open_encoded_picture({"bytes": encoded(8), "path": None}, name="sample 'a'")


def test_a_picture_outside_of_the_data_is_refused(tmp_path):
    """A table of a stranger's can name any file of this machine in place of the picture's bytes."""
    (tmp_path / "private.png").write_bytes(encoded(8))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.png").write_bytes(encoded(8))
    inside, outside = ({"bytes": None, "path": str(tmp_path / name)} for name in ("shards/a.png", "private.png"))
    sentence = "`data` must hold its pictures itself, picture 'p' lies outside of '.*shards': allow_outside_files=True"
    for folder in (tmp_path / "shards", "somebody/portraits"):
        with pytest.raises(ValueError, match=sentence.replace(".*shards", f".*{Path(folder).name}")):
            open_encoded_picture(outside, name="picture 'p'", folder=folder)
    assert open_encoded_picture(inside, name="picture 'p'", folder=tmp_path / "shards").size == (8, 8)
    private = tmp_path / "private.png"
    for path in (f"file://{private}", f"FILE:{private}", f"local://{private}", f"zip://a.png::{private}"):
        with pytest.raises(ValueError, match=sentence):
            open_encoded_picture({"bytes": None, "path": path}, name="picture 'p'", folder=tmp_path / "shards")
    assert open_encoded_picture(outside, name="picture 'p'").size == (8, 8)


def test_a_home_is_not_looked_into(tmp_path, monkeypatch):
    """Whose `~` a stranger's table names."""
    (tmp_path / "private.png").write_bytes(encoded(8))
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "data")
    for path in ("~/private.png", f"file:{tmp_path}/private.png"):
        with pytest.raises(ValueError, match="`data` must hold"):
            open_encoded_picture({"bytes": None, "path": path}, name="picture 'p'", folder=".")


def test_a_shard_that_breaks_off_is_told_by_the_sample_before(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    write_tar(tmp_path / "shards" / "0.tar", a__png=encoded(8), b__png=file.getvalue(), c__png=encoded(8))
    dataset = open_picture_stream(str(tmp_path / "shards"))
    path = tmp_path / "shards" / "0.tar"
    path.write_bytes(path.read_bytes()[:10_000])  # in the midst of the second picture
    with pytest.raises(ValueError, match="can't read on after sample 'a' of '.*0.tar': unexpected end of data"):
        taken(PictureStream(dataset, seed=0, shuffle_buffer=5), 3)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="`data` must be readable to its end, can't read on after its beginning: "):
        taken(PictureStream(dataset, seed=0, shuffle_buffer=5), 3)


def test_an_empty_stream_is_refused(tmp_path):
    write_tar(tmp_path / "shards" / "0.tar", a__png=encoded(8))
    emptied = stream(tmp_path / "shards")
    write_tar(tmp_path / "shards" / "0.tar")
    with pytest.raises(ValueError, match="`data` must hold at least one picture, the stream is empty"):
        taken(emptied, 1)
