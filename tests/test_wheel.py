"""Wheel and sdist hold what they should and nothing else, and the wheel works where nothing of this folder is seen."""

import configparser
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import profusion_pipeline

ROOT = Path(__file__).parent.parent
DRAW = "generate --model demo --image demo --num-inference-steps 2 --out me.png --prompt".split()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The sdist, and the wheel that is made of it: what a package index hands out."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return {path.suffix: path for path in folder.iterdir()}


def run(command: list, folder: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tracked(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.removeprefix("src/") for line in listed.stdout.splitlines()}


def test_what_is_in_the_wheel(built):
    with zipfile.ZipFile(built[".whl"]) as archive:
        names = set(archive.namelist())
    facts = f"profusion_pipeline-{profusion_pipeline.__version__}.dist-info"
    assert {name for name in names if not name.startswith(f"{facts}/")} == tracked("src/profusion_pipeline")
    assert {f"{facts}/METADATA", f"{facts}/entry_points.txt", f"{facts}/licenses/LICENSE"} <= names
    assert built[".whl"].stat().st_size < 60e6


def test_what_is_in_the_sdist(built):
    with tarfile.open(built[".gz"]) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    own = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "setup.cfg", "MANIFEST.in"}
    own |= {"setup.py", ".ci/addresses.py"}
    made = {"PKG-INFO", *(name for name in names if ".egg-info/" in name)}
    assert names - made == own | {f"src/{name}" for name in tracked("src/profusion_pipeline")}


def test_it_works_where_nothing_else_of_ours_is(built, tmp_path):
    """Its dependencies are those of this environment, the package is the wheel's: commands, pictures, types."""
    run([sys.executable, "-m", "venv", tmp_path / "env"], tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", built[".whl"]], tmp_path)
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    # A line that is a folder, not an import: files that end in .pth there, ours of an editable install, aren't read.
    (site / "pinned.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    where = "import profusion_pipeline as p; print(p.__file__, p.__version__)"
    version = profusion_pipeline.__version__
    assert run([python, "-c", where], tmp_path).split() == [str(site / "profusion_pipeline" / "__init__.py"), version]
    program = python.with_name("profusion")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "profusion = profusion_pipeline.cli:main" in config["options.entry_points"]["console_scripts"]
    assert "generate" in run([program, "--help"], tmp_path)
    assert run([program, *DRAW, "a pencil sketch of S*"], tmp_path) == "me.png\n"
    assert (tmp_path / "me.png").read_bytes().startswith(b"\x89PNG") and (site / "profusion_pipeline/py.typed").exists()


def test_it_draws_with_everything_installed_anew(built, tmp_path):
    """What `make test-wheel` leaves out: the dependencies are fetched, which takes minutes."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, "torch"], check=True)  # first and alone, as the Makefile does
    subprocess.run([*install, built[".whl"]], check=True)
    assert run([python.with_name("profusion"), *DRAW, "a pencil sketch of S*"], tmp_path) == "me.png\n"
