"""The page, served: to this machine or to others too, with what visitors upload in a folder that is gone afterwards."""

import os
import tempfile
from importlib.util import find_spec
from typing import Any

import torch

from ..common.open_pipeline import DEMO, load_pipeline
from .page import build_page, gradio
from .studio import Studio
from .uploads import Limits


def open_app(
    model: str = DEMO,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    share: bool = False,
    port: int | None = None,
    allow_remote: bool = False,
) -> None:
    """Serve the page until Ctrl-C; uploads lie in a folder of their own, which is gone afterwards.

    Args:
        model: Folder or Hub id of a ProFusion pipeline, or "demo".
        dtype: Of its weights.
        device: Where it computes.
        share: Whether Gradio makes a public address for it.
        port: Where it listens; the first free one from 7860 if None.
        allow_remote: Whether other machines may open the page.

    Raises:
        ImportError: Gradio isn't installed.
        OSError: There is no pipeline, or the port is taken.

    Example:
        >>> open_app("demo", port=7860)  # doctest: +SKIP
    """
    gradio()
    with tempfile.TemporaryDirectory(prefix="profusion-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        studio = Studio(load_pipeline(model, dtype=dtype, device=device), model=model)
        page = build_page(studio)
        page.launch(
            **launch_settings(studio.limits),
            share=share,
            server_port=port,
            server_name="0.0.0.0" if allow_remote else "127.0.0.1",
        )


def launch_settings(limits: Limits) -> dict[str, Any]:
    """What every server of the page is started with: no errors but ours, no larger uploads, fonts of the visitor.

    Args:
        limits: That hold.

    Returns:
        Arguments of Gradio's `launch`.

    Example:
        >>> launch_settings(Limits())["max_file_size"]
        20971520
    """
    fonts = ["system-ui", "sans-serif"]
    settings = {"show_error": False, "max_file_size": limits.upload_bytes, "state_session_capacity": 200}
    if find_spec("gradio") is not None:
        settings["theme"] = gradio().themes.Default(font=fonts, font_mono=["monospace"])
    return settings
