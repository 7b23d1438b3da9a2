"""The wheel holds what it should, and works in an environment that holds nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "src" / "profusion_pipeline"
    code = {path.relative_to(ROOT / "src").as_posix() for path in package.rglob("*.py")}
    tracked = subprocess.run(
        ["git", "ls-files", package / "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    data = {line.removeprefix("src/") for line in tracked.stdout.splitlines()}
    assert code | data | {"profusion_pipeline/py.typed"} <= names
    others = {name for name in names if not name.startswith(("profusion_pipeline/", "profusion_pipeline-"))}
    assert not others and wheel.stat().st_size < 60e6


@pytest.mark.slow
def test_it_draws_in_an_empty_environment(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, "torch"], check=True)  # first and alone, as the Makefile does
    subprocess.run([*install, wheel], check=True)
    words = "generate --model demo --image demo --num-inference-steps 2 --out me.png --prompt".split()
    command = [python.with_name("profusion"), *words, "a pencil sketch of S*"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "me.png\n"), done.stderr
