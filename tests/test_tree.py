"""What must not stand in the tree: paths of one person's machine, and where that machine gets its packages."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Written in parts, so that this file is not found by its own search.
MACHINE_PATH = re.compile(rf"(?<![\w.~])/(?:{'|'.join(['tmp', 'work', 'root', 'home', 'Users', 'opt', 'farm'])})/")
PACKAGE_INDEX = re.compile("|".join(["index" + "-url", "find" + "-links", "trusted" + "-host", "whl" + "/cpu"]))


def tracked_text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:1024]]


@pytest.mark.parametrize("pattern", [MACHINE_PATH, PACKAGE_INDEX], ids=["machine path", "package index"])
def test_the_tree_is_free_of(pattern):
    files = tracked_text_files()
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


@pytest.mark.parametrize("text", ["see /" + "tmp/x", 'open("/' + 'home/me/x")', "-f /" + "opt/wheels"])
def test_the_search_finds_a_machine_path(text):
    assert MACHINE_PATH.search(text)


def test_the_search_leaves_addresses_alone():
    assert not MACHINE_PATH.search("https://example.org/" + "home/" + "page, examples/" + "work/")
