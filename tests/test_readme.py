"""The README is true: its code runs, its commands exist, its files are there."""

import re
import shlex
from pathlib import Path

import pytest

from profusion_pipeline import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = ROOT / "src" / "profusion_pipeline" / "demo" / "model" / "model_index.json"


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


@pytest.mark.skipif(not MODEL.is_file(), reason="the demo model is not there: `make train-demo` trains it")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command):
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[0] in targets
    else:
        if program == "torchrun":  # starts several processes of what follows its own flags
            program, *words = words[words.index("profusion") :]
        assert program == "profusion"
        try:
            cli.build_parser().parse_args(words)
        except SystemExit as stop:  # --help ends with 0, unknown words with 2
            assert stop.code == 0


def tree() -> list[str]:
    """The paths of the file tree, relative to the project's root."""
    (block,) = blocks("")
    paths, folder = [], ""
    for line in block.splitlines():
        entry = line.split()[0]
        if line.startswith(" "):
            paths.append(folder + entry)
        else:
            folder = entry
            paths.append(entry)
    return paths


@pytest.mark.parametrize("path", tree())
def test_the_tree_is_there(path):
    assert (ROOT / path).exists()


def test_the_tree_is_whole():
    package = ROOT / "src" / "profusion_pipeline"
    rooms = {path.relative_to(ROOT).as_posix() for path in package.glob("*.py")}
    assert rooms - {"src/profusion_pipeline/__init__.py"} <= set(tree())


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", README))))
def test_the_tests_that_it_names_exist(name):
    files = (ROOT / "tests").glob("test_*.py")
    assert any(f"def {name}(" in file.read_text(encoding="utf-8") for file in files)
