import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from profusion_pipeline.common.files import (
    check_file,
    check_folder,
    only_process,
    shown_path,
    whole_files,
    write_or_keep,
    write_whole,
)


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


@pytest.mark.parametrize("links", [True, False])
def test_of_several_that_write_to_one_place_exactly_one_wins(tmp_path, monkeypatch, links):
    if not links:  # as on file systems where a file has one name

        def link(source, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    paths, count = [tmp_path / "one", tmp_path / "two"], 8
    all_written, refused = threading.Barrier(count), []

    def write(text):
        try:
            with whole_files(paths, replace=False) as new:
                for path in new:
                    path.write_text(text)
                all_written.wait()
        except FileExistsError as error:
            assert "must not exist, something else has written it meanwhile" in str(error)
            refused.append(text)

    writers = [threading.Thread(target=write, args=[f"writer {i}"]) for i in range(count)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(refused) == count - 1
    assert sorted(tmp_path.iterdir()) == paths
    assert paths[0].read_text() == paths[1].read_text() not in refused


def test_a_place_that_is_taken_is_left_alone_and_so_are_the_others(tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    paths[1].write_text("theirs")
    with pytest.raises(FileExistsError, match="two' must not exist"), whole_files(paths, replace=False) as new:
        for path in new:
            path.write_text("ours")
    assert sorted(tmp_path.iterdir()) == paths[1:]
    assert paths[1].read_text() == "theirs"


def test_names_and_folders_are_tried(tmp_path):
    check_file(tmp_path / ("a" * 255), "--out")
    check_folder(tmp_path / "runs" / ("a" * 255), "--output")
    check_folder(tmp_path, "--output")
    with pytest.raises(OSError, match=r"^--out must be a place that can be written to \(File name too long\), got '/"):
        check_file(tmp_path / ("a" * 256), "--out")
    with pytest.raises(OSError, match=r"^--output must be .* \(File name too long\), got '/"):
        check_folder(tmp_path / "runs" / ("a" * 256), "--output")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check, place", [(check_file, "/proc/x"), (check_folder, "/proc/x"), (check_folder, "/proc")])
def test_a_folder_that_can_not_be_written_to(check, place):
    with pytest.raises(OSError, match=f"^--out must be a place that can be written to .*, got '{place}'.$"):
        check(place, "--out")


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(OSError, match="must be a place that can be written to .Not a directory.*file"):
            check_folder(place, "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_can_not_be_written_is_kept(tmp_path, temporary):
    def write(folder):
        write_whole(folder / "a.txt", "work of hours")

    with pytest.raises(OSError, match="nowhere/a.txt' could not be written, .* It is kept in '(.*)'") as caught:
        write_or_keep(write, tmp_path / "nowhere")
    (kept,) = temporary.iterdir()
    assert f"It is kept in '{kept}'." in str(caught.value)
    assert (kept / "a.txt").read_text() == "work of hours"


def test_what_can_be_kept_nowhere_is_told_as_it_is(tmp_path, temporary, monkeypatch):
    def write(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="^disk full$"):
        write_or_keep(write, tmp_path)
    assert list(temporary.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="^disk full$"):
        write_or_keep(write, tmp_path)


HOLDING = """
import pathlib, sys
from profusion_pipeline.common.files import only_process
with only_process(pathlib.Path(sys.argv[1]), "train", "A run is under way."):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_two_processes_do_not_work_in_one_folder(tmp_path, killed):
    command = [sys.executable, "-c", HOLDING, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="^A run is under way.$"),
            only_process(tmp_path, "train", "A run is under way."),
        ):
            pass
        with only_process(tmp_path, "other", "Another kind of work."):
            pass
        if killed:
            os.kill(other.pid, signal.SIGKILL)
        other.stdin.close()
        other.wait()
    with only_process(tmp_path, "train", "A run is under way."):
        pass


def test_long_paths_are_shown_in_part():
    assert shown_path("a.txt") == "'a.txt'"
    assert len(shown_path("a" * 5000)) <= 200
