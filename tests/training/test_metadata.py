import json
from pathlib import Path

import pytest

from profusion_pipeline.training.metadata import MetadataRow, is_outside, read_metadata


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "metadata.jsonl").write_bytes(text.encode(encoding))
    return folder / "metadata.jsonl"


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_json_lines_file_is_read(tmp_path, sign, end, encoding):
    rows = [{"file_name": f"{i}.png", "text": f"one{sign if ord(sign) > 31 else ' '}two"} for i in range(3)]
    path = written(tmp_path, end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end, encoding)
    assert read_metadata(path) == {row["file_name"]: MetadataRow((), row["text"]) for row in rows}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"file_name": ' + "1" * 5000 + "}", '{"file_name": "a"} {}'])
def test_lines_that_json_gives_up_on_are_not_repeated(tmp_path, text):
    with pytest.raises(ValueError, match="line 1, must be one JSON object, got ") as error:
        read_metadata(written(tmp_path, text))
    assert len(str(error.value)) < 500 + len(str(tmp_path))


OUTSIDE = {
    "parent": "../private.png",
    "deep": "a/../../private.png",
    "absolute": "{folder}/../private.png",
    "link": "link.png",
    "linked folder": "linked/private.png",
}


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("key", ["file_name", "ref_img"])
def test_files_outside_are_refused_by_line_and_name(tmp_path, name, key):
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "private.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    (folder / "linked").symlink_to(tmp_path)
    row = {"file_name": "a.png"} | {key: name.format(folder=folder)}
    path = written(folder, json.dumps({"file_name": "fine.png"}) + "\n" + json.dumps(row))
    sentence = r"metadata.jsonl', line 2, must name files of its folder, '.*' lies outside: allow_outside_files=True"
    with pytest.raises(ValueError, match=sentence):
        read_metadata(path)
    assert len(read_metadata(path, allow_outside_files=True)) == 2


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a/../b.png", "./a.png", "..a.png", "zero\0", "half\ud800", ""])
def test_files_inside(tmp_path, name):
    assert not is_outside(tmp_path, name)


def test_a_data_set_behind_a_link_is_inside(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "real")
    assert not is_outside(tmp_path / "data", "a.png")
