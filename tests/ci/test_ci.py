"""The scripts of .ci, and what the workflow on GitHub calls."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path) -> Path:
    """setup.cfg with a made-up address, and the README."""
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    config = config.replace("[metadata]\n", "[metadata]\nurl = https://github.com/me/it\n")
    (tmp_path / "setup.cfg").write_text(config, encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    return tmp_path


def test_links_of_the_package_page(tree):
    addresses = script("addresses")
    assert addresses.repository(tree) == "https://github.com/me/it"
    text = addresses.package_page(tree)
    assert "](https://github.com/me/it/raw/HEAD/docs/images/demo_grid.png)" in text
    assert "](https://github.com/me/it/blob/HEAD/LICENSE)" in text
    assert not re.findall(r"\]\((?!https?://|#)", text)
    assert len(re.findall(r"\]\(", text)) == len(re.findall(r"\]\(", README))
    assert addresses.absolute_links(README, None) == README


def notebooks() -> dict[str, dict]:
    paths = sorted((ROOT / "examples").glob("*.ipynb"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_badges_come_and_go_with_the_address():
    """Of a notebook with a badge, and of one without, the same is made; all else stays."""
    addresses = script("addresses")
    for name, notebook in notebooks().items():
        plain = addresses.with_address(notebook, name, None)
        dressed = addresses.with_address(plain, name, "https://github.com/me/it")
        first, code = ("".join(cell["source"]) for cell in dressed["cells"][:2])
        opened = f"](https://colab.research.google.com/github/me/it/blob/main/examples/{name}.ipynb)"
        title, _, badge = first.splitlines()[:3]
        assert title.startswith("# ") and badge == f"[![Open in Colab]({addresses.BADGE}){opened}"
        assert '"profusion-pipeline[train,eval] @ git+https://github.com/me/it"' in code
        assert addresses.with_address(dressed, name, "https://github.com/me/it") == dressed
        assert addresses.with_address(dressed, name, None) == plain
        assert dressed["cells"][2:] == plain["cells"][2:] == notebook["cells"][2:]


def test_notebooks_have_the_address_that_setup_cfg_names():
    """Else `python .ci/addresses.py` is to be run."""
    addresses = script("addresses")
    for name, notebook in notebooks().items():
        assert addresses.with_address(notebook, name, addresses.repository()) == notebook


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
