import pytest

from profusion_pipeline.common.picture_walk import (
    HEIC,
    HIDDEN,
    LINK,
    NO_PICTURE,
    find_pictures,
    is_hidden,
    say_left_out,
)

JUNK = (".ipynb_checkpoints", ".Trash-1000/files", ".thumbnails/large", "__MACOSX", "@eaDir", "lost+found", "a/.git")


@pytest.fixture
def folder(tmp_path):
    for place in ("", "a", *JUNK):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "1.png").touch()
    for name in (
        "._1.png",
        "Thumbs.db",
        "Desktop.ini",
        ".DS_Store",
        "a/2.JFIF",
        "b.gif",
        "c.heic",
        "notes.txt",
        "README",
    ):
        (tmp_path / name).touch()
    return tmp_path


def test_pictures_that_are_meant_to_be_seen(folder):
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "linked").symlink_to(folder / "a")
    (folder / "d.png").mkdir()
    pictures, left_out = find_pictures(folder)
    heic = [] if HEIC in left_out else ["c.heic"]  # where it is installed
    assert [path.relative_to(folder).as_posix() for path in pictures] == [
        "1.png",
        "a/1.png",
        "a/2.JFIF",
        "b.gif",
        *heic,
    ]
    assert len(left_out[HIDDEN]) == len(JUNK) + 4
    assert left_out[NO_PICTURE] == [".txt", "README"]
    assert left_out[LINK] == ["gone.png", "linked"]


def test_one_folder_alone(folder):
    pictures, left_out = find_pictures(folder, deep=False)
    assert [path.name for path in pictures if path.suffix != ".heic"] == ["1.png", "b.gif"]
    assert len(left_out[HIDDEN]) == 4 and LINK not in left_out


def test_a_hidden_folder_may_be_the_data_itself(folder):
    pictures, left_out = find_pictures(folder / ".thumbnails")
    assert len(pictures) == 1 and not left_out


def test_a_folder_that_can_not_be_read(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        find_pictures(tmp_path / "nowhere")


def test_the_sentence():
    left_out = {LINK: ["a"], NO_PICTURE: [*".txt .txt .csv .json .log .md".split()]}
    assert say_left_out(left_out, "x") == (
        "Left out of 'x': 6 as no picture (.csv, .json, .log, .md, ...), 1 as a link to a folder or to nothing (a)."
    )
    assert say_left_out({}, "x") == ""
    assert is_hidden("THUMBS.DB") and not is_hidden("portraits")
