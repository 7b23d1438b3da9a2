import os
import re
import signal
import subprocess
import sys
import time

import pytest

from profusion_pipeline.method.whole_files import scratch_folder, whole_file, whole_folder

LONGEST = 255  # bytes of a name, in every common file system


def write(path, text):
    with whole_folder(path) as folder:
        (folder / "weights").write_text(text)


def in_another_process(code: str, *arguments) -> int:
    """How it ended; with -9 by its own hand."""
    head = "import os, pathlib, signal, sys, time\nfrom profusion_pipeline.method.whole_files import *\n"
    return subprocess.run([sys.executable, "-c", head + code, *map(os.fspath, arguments)]).returncode


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with whole_file(path) as new:
            assert new.name == path.name and new.parent.parent == tmp_path
            new.write_text(text)
        assert path.read_text() == text
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="a.txt' could not be written, what was there before is whole: disk full"):
        with whole_file(path) as new:
            new.write_text("half")
            raise error("disk full")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_other_errors_are_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="nothing to do with files"), whole_folder(tmp_path / "a"):
        raise ValueError("nothing to do with files")
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="a.txt' could not be written, .*No such file or directory"):
        with whole_file(tmp_path / "nowhere" / "a.txt"):
            pass


def test_the_longest_names(tmp_path):
    path = tmp_path / ("a" * LONGEST)
    with whole_file(path) as new:
        new.write_text("whole")
    assert path.read_text() == "whole"
    path.unlink()
    for text in ("first", "second"):
        write(path, text)
    assert (path / "weights").read_text() == "second"
    assert names(tmp_path) == [path.name]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "runs" / "promptnet"
    write(path, "first")
    (path / "stray").touch()
    write(path, "second")
    assert names(path) == ["weights"]
    assert (path / "weights").read_text() == "second"
    assert names(path.parent) == ["promptnet"]


def test_an_error_leaves_the_old_folder(tmp_path):
    path = tmp_path / "promptnet"
    write(path, "old")
    sentence = "promptnet' could not be written, what was there before is whole: disk full"
    with pytest.raises(OSError, match=sentence), whole_folder(path) as folder:
        (folder / "weights").write_text("half")
        raise OSError("disk full")
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["promptnet"]  # the disk is as full as before


def test_an_error_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    path, replace = tmp_path / "promptnet", os.replace
    write(path, "old")

    def replace_but_not_the_new(source, target):
        if source.name == "new":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_but_not_the_new)
    with pytest.raises(OSError, match="disk full"):
        write(path, "new")
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["promptnet"]


KILLED_WHILE_WRITING = """
with whole_folder(sys.argv[1]) as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_BETWEEN_THE_RENAMES = """
def die_before_the_new(event, arguments):
    if event == "os.rename" and str(arguments[0]).endswith("/new"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die_before_the_new)
with whole_folder(sys.argv[1]) as folder:
    (folder / "weights").write_text("new")
"""


@pytest.mark.parametrize("code, there", [(KILLED_WHILE_WRITING, True), (KILLED_BETWEEN_THE_RENAMES, False)])
def test_a_kill_leaves_the_old_folder_or_lets_the_next_one_put_it_back(tmp_path, code, there):
    path = tmp_path / "promptnet"
    write(path, "old")
    assert in_another_process(code, path) == -signal.SIGKILL
    assert path.exists() == there
    assert len(names(tmp_path)) == 1 + there  # the scratch folder
    with whole_file(tmp_path / "anything else") as new:
        assert (path / "weights").read_text() == "old"
        new.touch()
    assert names(tmp_path) == ["anything else", "promptnet"]
    write(path, "new")
    assert (path / "weights").read_text() == "new"


def test_what_others_are_writing_stays(tmp_path):
    """Of this process and of another one that runs."""
    code = "with scratch_folder(sys.argv[1]) as scratch: (scratch / 'a').touch(); sys.stdin.read()"
    head = "import sys\nfrom profusion_pipeline.method.whole_files import *\n"
    with subprocess.Popen([sys.executable, "-c", head + code, tmp_path], stdin=subprocess.PIPE) as other:
        while not list(tmp_path.glob("*/a")):
            assert other.poll() is None
            time.sleep(0.01)
        with scratch_folder(tmp_path) as one, scratch_folder(tmp_path) as two:
            assert one.exists() and two.exists()
        assert len(list(tmp_path.glob("*/a"))) == 1
    assert other.returncode == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [".part", ".promptnet.part", ".promptnet.old", ".profusion-mine", ".profusion-1-2-3"])
def test_what_a_user_has_there_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes").write_text("mine")
    write(tmp_path / "promptnet", "new")
    assert (tmp_path / name / "notes").read_text() == "mine"


def test_what_another_machine_has_left_goes_after_a_day(tmp_path):
    with scratch_folder(tmp_path) as scratch:
        name = re.sub("-[0-9a-f]{8}-", "-01234567-", scratch.name)
    left = tmp_path / name
    left.mkdir()
    write(tmp_path / "promptnet", "new")
    assert left.exists()
    os.utime(left, (0, time.time() - 25 * 60 * 60))
    write(tmp_path / "promptnet", "newer")
    assert names(tmp_path) == ["promptnet"]


def test_no_path_has_null_characters():
    for write in (whole_file, whole_folder):
        with pytest.raises(ValueError, match="must be a path without null characters"), write("a\0b"):
            pass
