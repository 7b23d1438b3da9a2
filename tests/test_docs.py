"""The README and the pages of docs/ are true: code runs, commands exist, files and tests that they name are there."""

import re
import shlex
from pathlib import Path

import pytest

from profusion_pipeline import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "profusion_pipeline"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
MODEL = PACKAGE / "demo" / "model" / "model_index.json"


def blocks(language: str) -> dict[str, str]:
    """Fenced code of one language, by page and number."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return {f"{page}-{i}": code for page, text in TEXTS.items() for i, code in enumerate(fence.findall(text), 1)}


def found(pattern: str) -> list[tuple[str, str]]:
    return sorted({(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text)})


@pytest.mark.skipif(not MODEL.is_file(), reason="the demo model is not there: `make train-demo` trains it")
@pytest.mark.parametrize("name", blocks("python"))
def test_python_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[name], name, "exec"), {})
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("command", [line for code in blocks("bash").values() for line in code.splitlines() if line])
def test_commands_exist(command):
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[0] in targets
    elif program == "python":
        assert words[0] == "-m" or (ROOT / words[0]).is_file()
    else:
        if program == "torchrun":  # starts several processes of what follows its own flags
            program, *words = words[words.index("profusion") :]
        assert program == "profusion"
        try:
            cli.build_parser().parse_args(words)
        except SystemExit as stop:  # --help ends with 0, unknown words with 2
            assert stop.code == 0


@pytest.mark.skipif(not MODEL.is_file(), reason="the demo model is not there: `make train-demo` trains it")
def test_lines_of_the_demo_model_run_as_they_stand(tmp_path, monkeypatch):
    """Those that draw and that need nothing of the reader's, in their order, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    lines = [line for name, code in blocks("bash").items() if "README" in name for line in code.splitlines()]
    lines = [line for line in lines if re.match("profusion generate (--model demo|--from) ", line)]
    for line in lines:
        assert cli.main([*shlex.split(line, comments=True)[1:], "--num-inference-steps", "2"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == len(lines) == 2


@pytest.mark.parametrize(("page", "target"), found(r"\]\((?!http|#)([^)#]+)"))
def test_links_lead_somewhere(page, target):
    assert ((ROOT / page).parent / target).exists()


@pytest.mark.parametrize(("page", "name"), found(r"`(test_\w+)`"))
def test_the_tests_that_it_names_exist(page, name):
    foreign = page == "CONTRIBUTING.md" and "diffusers' own tests" in TEXTS[page]  # whose tests it names, too
    ours = any(f"def {name}(" in file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert ours or foreign


def test_the_front_page_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_contributing_names_every_file():
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    named = set(re.findall(r"^\| `([\w/]+\.py)`", TEXTS["CONTRIBUTING.md"], re.MULTILINE))
    assert named == files
