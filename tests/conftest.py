import errno
import os
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import make_components

# A processor without AVX-512, played on one with AMX: torch 2.13 asks oneDNN, not its own ATEN_CPU_CAPABILITY, whether
# attention in half precision may pack its matrices for AVX-512, and then fails with "pack_vnni2 is only supported when
# avx512 is supported". oneDNN reads this at its first use.
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.fixture
def components() -> dict:
    """Fresh tiny components; a test may change them."""
    return make_components()


@pytest.fixture
def pipe(components):
    """A tiny pipeline without progress bar."""
    from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline

    pipe = ProFusionPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a saved tiny pipeline; no test changes it."""
    from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline

    folder = tmp_path_factory.mktemp("model")
    ProFusionPipeline(**make_components()).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    """A file with a picture of the tiny models' size."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> dict:
    """What a training reads, folders of a base pipeline and of portraits; no test changes them."""
    from training import write_base, write_portraits

    return dict(
        model=write_base(tmp_path_factory.mktemp("base")), data=write_portraits(tmp_path_factory.mktemp("portraits"))
    )


@pytest.fixture
def folders(inputs, tmp_path) -> dict:
    """The folders of a training: what it reads, and an `output` that isn't there yet."""
    return dict(**inputs, output=tmp_path / "run")


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps its state in class attributes; a training before or after may have another precision."""
    from accelerate.state import AcceleratorState, GradientState

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def no_room_for(monkeypatch):
    """A function: from now on nothing can be moved to a path, as on a disk that is full by then."""

    def fill(path):
        replace = os.replace

        def replace_or_fail(origin, destination):
            if os.path.abspath(destination) == str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(origin, destination)

        monkeypatch.setattr(os, "replace", replace_or_fail)

    return fill


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same state of torch's global generator."""
    torch.manual_seed(0)
