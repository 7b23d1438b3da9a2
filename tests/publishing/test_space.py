import ast
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from app_server import needs_gradio
from concepts import tiny_pipeline
from profusion_pipeline import ProFusionPipeline, __version__
from profusion_pipeline.cli import main
from profusion_pipeline.demo import FOLDER
from profusion_pipeline.publishing.space import write_space

pytestmark = pytest.mark.filterwarnings("default")  # of Gradio, whose loops the app's tests leave behind
SOURCES = Path(__file__).parents[2] / "src"
needs_demo_model = pytest.mark.skipif(
    not (FOLDER / "model" / "model_index.json").is_file(), reason="the demo model is not there: `make train-demo`"
)


def header(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_a_space_for_a_model_on_the_hub(tmp_path):
    space = write_space("me/profusion-sd2", tmp_path / "space", license="openrail++")
    assert sorted(file.name for file in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    facts = header(space)
    assert facts["sdk"] == "gradio" and facts["app_file"] == "app.py" and facts["license"] == "openrail++"
    assert facts["models"] == ["me/profusion-sd2"] and facts["title"] == "ProFusion: profusion-sd2"
    assert (space / "requirements.txt").read_text() == f"profusion-pipeline[app,train]=={__version__}\n"
    code = (space / "app.py").read_text(encoding="utf-8")
    assert 'MODEL = "me/profusion-sd2"' in code
    assert ast.parse(code)


@needs_demo_model
def test_the_demo_brings_its_licence(tmp_path):
    assert header(write_space("demo", tmp_path / "space"))["license"] == "apache-2.0"


def test_a_folder_of_this_machine_goes_with_it(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / 'my "model"')
    space = write_space(tmp_path / 'my "model"', tmp_path / "space")
    assert ProFusionPipeline.from_pretrained(space / "model").config.placeholder == "S*"
    assert ast.parse((space / "app.py").read_text(encoding="utf-8"))
    assert str(tmp_path) not in "".join(file.read_text() for file in space.iterdir() if file.is_file())


def test_what_can_not_be_written_is_kept(tmp_path, temporary, no_room_for):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    no_room_for(tmp_path / "space")
    with pytest.raises(OSError, match="space' could not be written, .* It is kept in '.*'."):
        write_space(tmp_path / "model", tmp_path / "space")
    (kept,) = temporary.iterdir()
    assert ProFusionPipeline.from_pretrained(kept / "space" / "model").config.placeholder == "S*"
    assert (kept / "space" / "app.py").is_file()


def test_what_is_refused(tmp_path, capsys):
    with pytest.raises(FileExistsError, match="`space` must not exist yet"):
        write_space("demo", tmp_path)
    with pytest.raises(ValueError, match="`license` must be the Hub's word"):
        write_space("demo", tmp_path / "space", license="two words")
    with pytest.raises(SystemExit):
        main(["export", "demo", "--space", str(tmp_path / "space"), "--dtype", "float16"])
    assert "--space takes --license and --force only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_line_replaces_one_with_force(tmp_path, capsys):
    for force in ([], ["--force"]):
        words = ["export", "me/mine", "--space", str(tmp_path / "space"), "--license", "mit", *force]
        assert main(words) == 0
    assert main(words[:-1]) == 1
    assert header(tmp_path / "space")["license"] == "mit"


@needs_gradio
def test_it_starts_as_it_is(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    space = write_space(tmp_path / "tiny", tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_TEMP_DIR": str(tmp_path)}
    settings["PYTHONPATH"] = os.pathsep.join([str(SOURCES), *sys.path])
    process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=os.environ | settings)
    try:
        for _ in range(1200):
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5) as answer:
                    assert b"ProFusion" in answer.read()
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("it didn't answer for two minutes")
    finally:
        process.terminate()
        process.wait()
