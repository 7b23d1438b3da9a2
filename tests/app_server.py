"""The app on a tiny pipeline, served on this machine for as long as a block lasts."""

import gc
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from profusion_pipeline.app.inputs import PORTRAIT
from profusion_pipeline.app.page import build_page
from profusion_pipeline.app.serve import launch_settings
from profusion_pipeline.app.studio import Studio

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio isn't installed: the extra `app`")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="there is no Chromium, or no playwright to drive it"
)
CLOSED = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CLOSED += ["--disable-component-update", "--disable-sync"]  # it asks nobody but our server


@contextmanager
def serving(studio: Studio, uploads: Path) -> Iterator[str]:
    """The address of a page around `studio`."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    page = build_page(studio)
    _, address, _ = page.launch(
        **launch_settings(studio.limits), server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    try:
        yield address
    finally:
        page.close()
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
        gc.collect()  # Gradio leaves event loops open: Python says so now, and not in the middle of another test


def values(**changed) -> list:
    """What the widgets of the left column say, in their order."""
    given = dict(source=PORTRAIT, portrait="1", photos=None, webcam=None, crop_face=False)
    given |= dict(noun="man", prompts="S*", position=0.5)
    given |= dict(by_hand=False, guidance_scale=2.5, class_guidance_scale=5.0, m=0, fusion_scale=2.5, gamma=0.8)
    given |= dict(steps=2, seed=7, side=None)
    assert changed.keys() <= given.keys()
    return list((given | changed).values())


def pictures_of(html: str) -> list[bytes]:
    """The pixels of the PNG files in a page's HTML."""
    import base64
    import io

    from PIL import Image

    found = re.findall(r"data:image/png;base64,([\w+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB").tobytes() for one in found]
