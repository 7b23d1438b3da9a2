"""Who may open the page, and what is left of it."""

import gc
import os

import pytest

from app_server import needs_gradio
from concepts import tiny_pipeline
from profusion_pipeline.app import page, serve
from profusion_pipeline.app.uploads import Limits

pytestmark = pytest.mark.filterwarnings("default")  # of Gradio and what it brings


@pytest.fixture(autouse=True)
def nothing_left_open():
    """Gradio leaves event loops open: Python says so now, and not in the middle of another test."""
    yield
    gc.collect()


def test_without_gradio_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="The app needs Gradio"):
        serve.open_app()


@needs_gradio
@pytest.mark.parametrize(("allow_remote", "name"), [(False, "127.0.0.1"), (True, "0.0.0.0")])
def test_other_machines_are_let_in_on_demand_only(monkeypatch, allow_remote, name):
    import gradio

    started = {}

    def launch(self, **settings):
        started.update(settings, folder=os.environ["GRADIO_TEMP_DIR"])
        assert os.path.isdir(started["folder"])

    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(serve, "load_pipeline", lambda *args, **settings: tiny_pipeline())
    serve.open_app("demo", port=7999, allow_remote=allow_remote)
    assert (started["server_name"], started["server_port"], started["share"]) == (name, 7999, False)
    assert started["max_file_size"] == Limits().upload_bytes and not started["show_error"]
    assert not os.path.exists(started["folder"])
