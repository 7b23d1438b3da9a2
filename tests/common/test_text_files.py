import pytest

from profusion_pipeline.common.text_files import read_lines


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_are_the_same_however_a_file_is_written(tmp_path, encoding, end, last):
    lines = ["S* at sea", "", "naïve\u2028 S*\u2029 \x85 \x0b \x0c", " S* "]
    (tmp_path / "a.txt").write_bytes((end.join(lines) + end * last).encode(encoding))
    assert read_lines(tmp_path / "a.txt") == lines


@pytest.mark.parametrize("end", ["le", "be"])
@pytest.mark.parametrize("bits", [16, 32])
def test_either_order_of_bytes(tmp_path, bits, end):
    (tmp_path / "a.txt").write_bytes("\ufeffS* at sea\n".encode(f"utf-{bits}-{end}"))
    assert read_lines(tmp_path / "a.txt") == ["S* at sea"]


def test_marks_of_files_that_were_put_together(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n".encode("utf-8-sig") + "two\n".encode("utf-8-sig"))
    assert read_lines(tmp_path / "a.txt") == ["one", "two"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "a.txt").touch()
    assert read_lines(tmp_path / "a.txt") == []


def test_another_encoding_is_said_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\nzwölf\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"a.txt' must be text in UTF-8, got the byte 0xf6 in line 2: save it in UTF-8"
    ):
        read_lines(tmp_path / "a.txt")
