import pytest

from profusion_pipeline.common.files import whole_files, write_whole


def test_text_and_bytes(tmp_path):
    for content in ("ᾱ\n", "ᾱ\r\n".encode()):
        write_whole(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_several_files_appear_together(tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    with whole_files(paths) as new:
        for path in new:
            path.write_text("whole")
            assert not any(path.exists() for path in paths)
    assert sorted(tmp_path.iterdir()) == paths


def test_an_error_leaves_all_old_files(tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    paths[0].write_text("old")
    with pytest.raises(OSError, match="disk full"), whole_files(paths) as new:
        new[0].write_text("new")
        raise OSError("disk full")
    assert sorted(tmp_path.iterdir()) == paths[:1]
    assert paths[0].read_text() == "old"
