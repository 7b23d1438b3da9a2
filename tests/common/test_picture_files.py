import tempfile

import pytest
from PIL import Image

from profusion_pipeline.common.picture_files import output_paths, write_pictures


def test_one_picture_keeps_the_name(tmp_path):
    assert output_paths(tmp_path / "me.png", 1) == [tmp_path / "me.png"]


def test_several_pictures_are_numbered(tmp_path):
    assert output_paths(tmp_path / "me.jpg", 3) == [tmp_path / f"me-{i}.jpg" for i in (1, 2, 3)]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".tif", ".bmp", ".gif", ".pdf", ".jp2", ".tga"])
def test_formats_that_hold_colour(tmp_path, suffix):
    assert output_paths(tmp_path / f"me{suffix}", 1) == [tmp_path / f"me{suffix}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "suffix",
    [".xbm", ".h5", ".hdf", ".wmf", ".emf", ".msp", ".palm", ".grib", ".bufr", ".blp", ".psd", ".svg", ".ico", ".icns"],
)
def test_formats_that_can_not_be_written_in_colour(tmp_path, suffix):
    with pytest.raises(ValueError, match=rf"picture format that can be written, e.g. .png, got '.*me\{suffix}'.$"):
        output_paths(tmp_path / f"me{suffix}", 1)


def test_the_longest_name(tmp_path):
    longest = tmp_path / f"{'a' * 251}.png"
    write_pictures([Image.new("RGB", (4, 3))], output_paths(longest, 1))
    assert list(tmp_path.iterdir()) == [longest]
    with pytest.raises(OSError, match="--out must be a place that can be written to .File name too long"):
        output_paths(longest, 2)  # the numbers make it longer


def test_a_folder_that_can_not_be_written_to():
    with pytest.raises(OSError, match="--out must be a place that can be written to .*, got '/proc/x.png'"):
        output_paths("/proc/x.png", 1)


def test_a_folder_that_goes_meanwhile(tmp_path, monkeypatch):
    """The pictures are kept where temporary files are."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    paths = output_paths(tmp_path / "mine" / "me.png", 2)
    (tmp_path / "mine").rmdir()
    with pytest.raises(OSError, match="It is kept in '.*/temporary/profusion-.*'."):
        write_pictures([Image.new("RGB", (4, 3), color) for color in ("red", "blue")], paths)
    (kept,) = (tmp_path / "temporary").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["me-1.png", "me-2.png"]


def test_a_picture_that_appears_meanwhile_stays(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    paths = output_paths(tmp_path / "me.png", 1)
    paths[0].write_bytes(b"theirs")
    with pytest.raises(OSError, match="me.png' must not exist, .* It is kept in '.*'."):
        write_pictures([Image.new("RGB", (4, 3))], paths, replace=False)
    assert paths[0].read_bytes() == b"theirs"
    assert len(list((tmp_path / "temporary").glob("*/me.png"))) == 1


@pytest.mark.parametrize("out", ["me", "me.txt", ""])
def test_not_a_picture_format(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=f"in the extension of a picture format that can be written, e.g. .png, got '{out or '.'}'",
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
