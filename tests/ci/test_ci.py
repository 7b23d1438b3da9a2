"""The scripts of .ci, and what the workflow on GitHub calls."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_package_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(README, encoding="utf-8")
    words = [ROOT / ".ci" / "absolute_links.py", page, "https://github.com/me/it", "abc"]
    subprocess.run([sys.executable, *words], check=True)
    text = page.read_text(encoding="utf-8")
    assert "](https://github.com/me/it/raw/abc/docs/images/demo_grid.png)" in text
    assert "](https://github.com/me/it/blob/abc/LICENSE)" in text
    assert not re.findall(r"\]\((?!https?://|#)", text)
    assert len(re.findall(r"\]\(", text)) == len(re.findall(r"\]\(", README))


def test_the_oldest_versions():
    found = script("oldest").oldest((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert {"torch==2.6", "diffusers==0.38", "transformers==4.57"} <= set(found)
    assert len(found) == 7


def test_the_workflow_calls_what_is_there():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    for path in re.findall(r"(?:\.ci|tests)/\w[\w./]*", workflow):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (\w+)", workflow)) <= set(targets)


def test_supported_versions_agree():
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    named = re.findall(r"Python :: (3\.\d+)", config)
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1]) == named
    assert f"python_requires = >= {named[0]}\n" in config


def test_the_changelog_begins_with_this_version():
    import profusion_pipeline

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] == profusion_pipeline.__version__
