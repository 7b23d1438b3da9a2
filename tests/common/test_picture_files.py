import pytest
from PIL import Image

from profusion_pipeline.common.picture_files import output_paths, write_pictures


def test_one_picture_keeps_the_name(tmp_path):
    assert output_paths(tmp_path / "me.png", 1) == [tmp_path / "me.png"]


def test_several_pictures_are_numbered(tmp_path):
    assert output_paths(tmp_path / "me.jpg", 3) == [tmp_path / f"me-{i}.jpg" for i in (1, 2, 3)]


@pytest.mark.parametrize("out", ["me", "me.txt", ""])
def test_not_a_picture_format(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=f"must end in the extension of a picture format, e.g. .png, got '{out or '.'}'"
    ):
        output_paths(out, 1)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="must lie in an existing folder, .*nowhere' is not one"):
        output_paths(tmp_path / "nowhere" / "me.png", 1)


def test_folder_of_that_name(tmp_path):
    (tmp_path / "me.png").mkdir()
    with pytest.raises(FileExistsError, match="must name a file, .*me.png' is a folder"):
        output_paths(tmp_path / "me.png", 1, force=True)


def test_existing_file_needs_force(tmp_path):
    (tmp_path / "me-2.png").touch()
    with pytest.raises(FileExistsError, match="me-2.png' exists already; --force replaces it"):
        output_paths(tmp_path / "me.png", 2)
    assert len(output_paths(tmp_path / "me.png", 2, force=True)) == 2


def test_written_in_the_format_of_the_extension(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    write_pictures([Image.new("RGB", (4, 3), color) for color in ("red", "blue")], paths)
    with Image.open(paths[0]) as red, Image.open(paths[1]) as blue:
        assert (red.format, blue.format) == ("PNG", "JPEG")
        assert red.getpixel((3, 2)) == (255, 0, 0)
    assert sorted(tmp_path.iterdir()) == paths


def test_all_or_nothing(tmp_path):
    """The second picture can't be a JPEG: the first must not appear, an old file must stay, nothing may be left."""
    old = tmp_path / "b.jpg"
    old.write_bytes(b"old")
    with pytest.raises(OSError, match="cannot write mode RGBA as JPEG"):
        write_pictures([Image.new("RGB", (4, 3)), Image.new("RGBA", (4, 3))], [tmp_path / "a.jpg", old])
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"old"
