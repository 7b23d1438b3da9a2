"""The app as a Space: a folder of three files, or with the weights beside them, that Hugging Face runs as it is."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from ..common.files import check_folder, whole_folder, write_or_keep
from ..common.open_pipeline import DEMO, load_pipeline, pipeline_source
from ..method import card
from ..method.whole_files import shown_path
from .export import card_of

MODEL_FOLDER = "model"  # beside app.py, if the weights are not on the Hub
APP = '''"""The app of profusion_pipeline around {name}; `python app.py` starts it on any machine."""

from pathlib import Path

import torch

from profusion_pipeline.app.page import build_page
from profusion_pipeline.app.serve import launch_settings
from profusion_pipeline.app.studio import Studio
from profusion_pipeline.common.open_pipeline import load_pipeline

try:
    from spaces import GPU  # on a Space with ZeroGPU: a GPU for the length of a call
except ImportError:
    settings, has_gpu = {{}}, torch.cuda.is_available()
else:
    settings, has_gpu = {{"on_gpu": GPU(duration=120)}}, True

MODEL = {model}
place = {{"device": "cuda", "dtype": torch.float16}} if has_gpu else {{"device": "cpu", "dtype": torch.float32}}
studio = Studio(load_pipeline(MODEL, **place), model=MODEL)
page = build_page(studio, **settings)

if __name__ == "__main__":
    page.launch(**launch_settings(studio.limits))
'''
README = """---
title: {title}
emoji: 🎭
sdk: gradio
{facts}app_file: app.py
pinned: false
---

# {heading}

One portrait and a prompt in, pictures of that person out: ProFusion
([Zhou et al. 2023](https://arxiv.org/abs/2305.13579)) around {what}.

Ask people before you make pictures of them.
"""


def write_space(model: str | Path, folder: str | Path, *, license: str | None = None, force: bool = False) -> Path:
    """Write a Space: `app.py`, `requirements.txt` and a README with the header that the Hub reads.

    Args:
        model: Hub id of a ProFusion pipeline, or "demo"; of a folder the weights are written into the Space, too.
        folder: The folder to write; it appears whole or not at all.
        license: The Hub's word for a licence; that of the model's card, if it lies on this machine, if None.
        force: Whether to replace a folder that exists.

    Returns:
        The folder.

    Raises:
        FileExistsError: `folder` exists and `force` is not set.
        ValueError: `license` is not one word.
        OSError: There is no pipeline, or `folder` can't be written, tried beforehand; if it fails after the work, the
            sentence says where the Space is kept.

    Example:
        >>> sorted(file.name for file in write_space("demo", "my-space").iterdir())
        ['README.md', 'app.py', 'requirements.txt']
    """
    card.check_facts(license=license)
    folder = Path(folder)
    if os.path.exists(folder) and not force:
        raise FileExistsError(f"`space` must not exist yet, {shown_path(folder)} does: `force` replaces it.")
    check_folder(folder, "`space`")
    is_here = os.path.isdir(model)
    name = Path(model).resolve().name if is_here else str(model)
    license = license or _license_of(pipeline_source(model))
    source = f"str(Path(__file__).parent / {json.dumps(MODEL_FOLDER)})" if is_here else json.dumps(str(model))
    on_hub = None if is_here or str(model) == DEMO else str(model)
    files = {
        "app.py": APP.format(name=json.dumps(name)[1:-1], model=source),
        "requirements.txt": f"profusion-pipeline[app,train]=={version('profusion-pipeline')}\n",
        "README.md": _readme(name, on_hub, license),
    }

    if is_here:
        pipe = load_pipeline(model, dtype=torch.float32, device="cpu")
        facts = dict(license=license, readme=card_of(model, MODEL_FOLDER, license=license))

    def write(place: Path) -> None:
        with whole_folder(place / folder.name, replace=force) as new:
            if is_here:
                pipe.save_pretrained(new / MODEL_FOLDER, **facts)
            for file, text in files.items():
                (new / file).write_text(text, encoding="utf-8")

    write_or_keep(write, folder.parent)
    return folder


def _license_of(source: str) -> str | None:
    file = Path(source, "README.md")
    return ModelCard.load(file, ignore_metadata_errors=True).data.license if file.is_file() else None


def _readme(name: str, on_hub: str | None, license: str | None) -> str:
    facts = {"license": license, "sdk_version": _gradio_version()}
    lines = [f"{key}: {fact}\n" for key, fact in facts.items() if fact]
    if on_hub:
        lines.append(f"models:\n- {on_hub}\n")
    title = f"ProFusion: {name.split('/')[-1]}"
    what = f"`{on_hub}`" if on_hub else f"the model {card.plain(name)}"
    return README.format(title=json.dumps(title), heading=card.plain(title), facts="".join(lines), what=what)


def _gradio_version() -> str | None:
    """What the app was last started with here; else the Space takes the newest."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        return None
