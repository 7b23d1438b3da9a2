import pytest
from PIL import Image

from profusion_pipeline.evaluation.subjects import Subject, check_captions, read_prompts, read_subjects


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("bob", "blue"), ("ada", "red")):
        (tmp_path / name).mkdir()
        for number in (2, 1):
            Image.new("RGB", (16 + number, 16), colour).save(tmp_path / name / f"{number}.png")
        (tmp_path / name / "notes.txt").write_text("not a picture")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_subject_for_each_folder_in_the_order_of_names(folder):
    ada, bob = read_subjects(folder, ["S* at sea"])
    assert (ada.name, bob.name, ada.prompts) == ("ada", "bob", ("S* at sea",))
    assert [photo.width for photo in ada.photos] == [17, 18]
    assert ada.photos[0].getpixel((0, 0)) == (255, 0, 0)


def test_what_systems_put_beside_pictures_is_left_out(folder, caplog):
    for place in ("__MACOSX", "@eaDir"):
        (folder / place).mkdir()
    (folder / "ada" / "._1.png").write_bytes(b"AppleDouble")
    Image.new("RGB", (19, 16)).save(folder / "ada" / "3.jfif", "jpeg")
    ada, bob = read_subjects(folder, ["S* at sea"])
    assert [photo.width for photo in ada.photos] == [17, 18, 19]
    assert caplog.messages == [
        f"Left out of {str(folder)!r}: 1 as hidden or a system's (._1.png), 2 as no picture (.txt)."
    ]


def test_a_caption_lies_beside_the_pictures(folder, caplog):
    (folder / "ada" / "caption.txt").write_text("\n  wearing a green hoodie \n")
    (folder / "ada" / "notes.txt").unlink()
    (folder / "bob" / "notes.txt").unlink()
    ada, bob = read_subjects(folder, ["S* at sea"])
    assert (ada.caption, bob.caption) == ("wearing a green hoodie", "")
    assert not caplog.messages  # it is no picture, and nothing that was left out
    check_captions([ada])
    with pytest.raises(ValueError, match="`captions` each subject must have a caption.txt .* 1 of 2 have none, 'bob'"):
        check_captions([ada, bob])
    (folder / "bob" / "caption.txt").write_text("smiling\nat sea")
    with pytest.raises(ValueError, match="must be one line, '.*caption.txt' has 2"):
        read_subjects(folder, ["S* at sea"])


def test_a_digest_is_of_all_that_counts():
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    subjects = [
        Subject("ada", (red,), ("S*",)),
        Subject("ada", (blue,), ("S*",)),
        Subject("bob", (red,), ("S*",)),
        Subject("ada", (red, red), ("S*",)),
        Subject("ada", (red,), ("S* at sea",)),
        Subject("ada", (red.resize((8, 32)),), ("S*",)),
        Subject("ada", (red,), ("S*",), "at sea"),
    ]
    assert len({subject.digest() for subject in subjects}) == len(subjects)
    assert Subject("ada", (red.copy(),), ("S*",)).digest() == subjects[0].digest()


def test_a_subject_with_nothing_in_it(folder):
    (folder / "cleo").mkdir()
    (folder / "cleo" / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="The subject 'cleo' has no picture: '.*cleo' must hold at least one"):
        read_subjects(folder, ["S*"])


def test_a_picture_that_is_none(folder):
    (folder / "ada" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="`ada/3.png` must be an image file"):
        read_subjects(folder, ["S*"])


def test_no_folder_and_no_subjects(tmp_path):
    with pytest.raises(ValueError, match="'.*nowhere' is no folder"):
        read_subjects(tmp_path / "nowhere", ["S*"])
    with pytest.raises(ValueError, match="must hold a sub-folder for each subject, '.*' has none"):
        read_subjects(tmp_path, ["S*"])


def test_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    with pytest.raises(ValueError, match="The file of prompts must exist, '.*prompts.txt' does not"):
        read_prompts(file)
    file.write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="must hold at least one, '.*prompts.txt' has none"):
        read_prompts(file)
    file.write_text("S* at sea\n  S* on the moon  \n\n# what else\n")
    assert read_prompts(file) == ["S* at sea", "S* on the moon"]
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("# comment\r\nS* at\u2028sea\r\n".encode(encoding))
        assert read_prompts(file) == ["S* at\u2028sea"]
    file.write_bytes(b"S* at sea\rS* on the moon\r")
    with pytest.raises(ValueError, match=r"must end its lines in .n or .r.n, '.*prompts.txt' does in .r alone"):
        read_prompts(file)
    file.write_text("S* at sea\nS* at sea\n")
    with pytest.raises(ValueError, match="must hold each once, '.*prompts.txt' has several of 'S\\* at sea'"):
        read_prompts(file)


@pytest.mark.parametrize("name", ["ada\r", "ada\nbob", "a\x00b", "a\x1bb", "a\x85b", "a\u2028b", "a\udcffb"])
def test_names_and_prompts_are_one_line(name):
    with pytest.raises(ValueError, match="The name of a subject must be one line of plain text, got 'a"):
        Subject(name, (), ("S*",))
    with pytest.raises(ValueError, match="The prompt of a subject must be one line of plain text, got 'S"):
        Subject("ada", (), ("S*", f"S* {name}"))


def test_names_in_any_script():
    for name in ("zoë", "山田\u3000太郎", "a\u00a0b", "👩🏽\u200d🚀", "a\tb", 'a, "b"; c'):
        assert Subject(name, (), ("S*",)).digest()
