import pytest
import torch

from tiny import make_components


@pytest.fixture
def components() -> dict:
    """Fresh tiny components; a test may change them."""
    return make_components()


@pytest.fixture
def pipe(components):
    """A tiny pipeline without progress bar."""
    from profusion_pipeline.pipeline_profusion import ProFusionPipeline

    pipe = ProFusionPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same state of torch's global generator."""
    torch.manual_seed(0)
