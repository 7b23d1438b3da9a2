import os
import signal
import subprocess
import sys

import pytest

from profusion_pipeline.training.checkpoints import (
    checkpoint_path,
    delete_all_but_newest,
    list_checkpoints,
    part_of,
    replaced_folder,
)


def write(path, text):
    with replaced_folder(path) as folder:
        (folder / "weights").write_text(text)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "runs" / "promptnet"
    write(path, "first")
    (path / "stray").touch()
    write(path, "second")
    assert [file.name for file in path.iterdir()] == ["weights"]
    assert (path / "weights").read_text() == "second"
    assert [folder.name for folder in path.parent.iterdir()] == ["promptnet"]


def test_an_error_leaves_the_old_folder(tmp_path):
    path = tmp_path / "promptnet"
    write(path, "old")
    sentence = "promptnet' could not be written, what was there before is whole: disk full"
    with pytest.raises(OSError, match=sentence), replaced_folder(path) as folder:
        (folder / "weights").write_text("half")
        raise OSError("disk full")
    assert (path / "weights").read_text() == "old"
    assert [folder.name for folder in tmp_path.iterdir()] == ["promptnet"]  # the disk is as full as before


def test_a_kill_leaves_the_old_folder(tmp_path):
    path = tmp_path / "promptnet"
    write(path, "old")
    code = (
        "import os, signal, sys, pathlib; from profusion_pipeline.training.checkpoints import replaced_folder\n"
        "with replaced_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, os.fspath(path)])
    assert ended.returncode == -signal.SIGKILL
    assert (path / "weights").read_text() == "old"
    write(path, "new")  # what was left over is no obstacle
    assert [folder.name for folder in tmp_path.iterdir()] == ["promptnet"]


def test_a_folder_taken_away_by_a_killed_process_is_put_back(tmp_path):
    path = tmp_path / "promptnet"
    write(path, "old")
    path.rename(tmp_path / ".promptnet.old")  # as between the two renames
    part_of(path).mkdir()
    with pytest.raises(OSError, match="disk full"), replaced_folder(path):
        assert (path / "weights").read_text() == "old"
        raise OSError("disk full")
    assert (path / "weights").read_text() == "old"
    assert [folder.name for folder in tmp_path.iterdir()] == ["promptnet"]


def test_the_newest_checkpoints_stay(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []
    for step in (5, 100_000_000, 20, 100):
        write(checkpoint_path(tmp_path, step), str(step))
    part_of(checkpoint_path(tmp_path, 200)).mkdir()  # never finished
    (tmp_path / ".step-00000003.old").mkdir()  # never quite deleted
    assert [int((path / "weights").read_text()) for path in list_checkpoints(tmp_path)] == [5, 20, 100, 100_000_000]
    delete_all_but_newest(tmp_path, keep=2)
    assert [int((path / "weights").read_text()) for path in list_checkpoints(tmp_path)] == [100, 100_000_000]
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000100", "step-100000000"}
