"""The site: its navigation names every page, its reference every public name, and it builds without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import profusion_pipeline

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))


def test_the_navigation_names_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    named = re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(named) == sorted(["index.md", *pages])


def test_the_reference_has_every_public_name():
    entries = re.findall(r"^::: (profusion_pipeline[\w.]*)$", REFERENCE, re.MULTILINE)
    assert {entry.split(".")[-1] for entry in entries} >= set(profusion_pipeline._HOME)
    for entry in entries:
        module, name = entry.rsplit(".", 1)
        there = importlib.util.find_spec(entry) if module.endswith(".method") else None
        assert there or hasattr(importlib.import_module(module), name), entry


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="mkdocs is not installed: `make docs` installs it")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert home.count("<math ") == 2 and "Fusion Sampling" in home and "images/demo_grid.png" in home
    assert "guidance_scale" in (tmp_path / "site" / "reference" / "pipeline.html").read_text(encoding="utf-8")
