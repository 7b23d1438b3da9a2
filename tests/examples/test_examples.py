"""The examples run, at small size, and show what they say they show."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline import Concept

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fusion_2d(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.syspath_prepend(EXAMPLES)
    import fusion_sampling_in_2d

    yield fusion_sampling_in_2d
    del sys.modules["fusion_sampling_in_2d"]


@pytest.mark.parametrize("alpha_bar", [0.02, 0.5, 0.99])
def test_noise_in_2d_is_the_gradient_of_the_density(fusion_2d, alpha_bar):
    """ε = -sqrt(1-ᾱ) ∇ log p_t, with log p_t written down by torch's own mixture and differentiated by torch."""
    variance = alpha_bar * fusion_2d.SPREAD**2 + 1 - alpha_bar
    parts = torch.distributions.Independent(
        torch.distributions.Normal(alpha_bar**0.5 * fusion_2d.CENTERS.double(), variance**0.5), 1
    )
    weights = torch.distributions.Categorical(logits=fusion_2d.SUBJECT.double())
    density = torch.distributions.MixtureSameFamily(weights, parts)
    points = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(density.log_prob(points).sum(), points)
    noise = fusion_2d.exact_noise(points.detach().view(20, 2, 1, 1).float(), alpha_bar, fusion_2d.SUBJECT)
    torch.testing.assert_close(noise.flatten(1).double(), -((1 - alpha_bar) ** 0.5) * gradient, atol=1e-3, rtol=1e-3)


def test_fusion_in_2d_comes_closer_to_the_truth(fusion_2d, tmp_path):
    results = fusion_2d.main(count=100, rows=100, file=str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").stat().st_size > 0
    alone, mixed, one, two, deaf = results.values()
    assert min(one[0], two[0]) > mixed[0] > alone[0]  # more of the points where the truth is
    assert max(one[1], two[1]) < mixed[1] < alone[1]  # and spread as the truth is
    assert deaf[1] > one[1]  # but not where the fusion stage does not hear the text


needs_demo_model = pytest.mark.skipif(
    not (EXAMPLES.parent / "src/profusion_pipeline/demo/model/model_index.json").is_file(),
    reason="the demo model is not there: `make train-demo` trains it",
)


@needs_demo_model
def test_customize(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import customize

    prompts = ["a portrait of S*", "a neon picture of S*"]
    places = dict(concept_folder=str(tmp_path / "concept"), out=str(tmp_path / "grid.png"))
    losses = customize.main(prompts=prompts, steps=2, num_inference_steps=2, **places)
    assert len(losses) == 2 and Concept.from_pretrained(tmp_path / "concept").steps == 2
    assert (tmp_path / "concept" / "concept.safetensors").stat().st_size < 1e6
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 192, 2 * 192)
        before, after = np.asarray(grid.crop((192, 0, 576, 192))), np.asarray(grid.crop((192, 192, 576, 384)))
    assert (before != after).any()


# Each notebook, with fewer steps than it has: what is written there, and what is run here.
NOTEBOOKS = {
    "quickstart": ("STEPS = 10", "STEPS = 1"),
    "sweeps": ("STEPS = 10", "STEPS = 1"),
    "customize": ("= 100, 10", "= 2, 2"),
    "any_concept": ("= 10, 80", "= 1, 1"),
    "train_your_own": ("= 40, 10", "= 2, 2"),
}


def code_cells(name: str) -> list[dict]:
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_notebook(name: str, monkeypatch, folder: Path) -> dict:
    """Its cells one after another; what it has defined."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(folder)
    display = ModuleType("IPython.display")  # which a notebook has
    display.display = lambda *shown, **options: SimpleNamespace(update=lambda picture: None)
    ipython = ModuleType("IPython")
    ipython.get_ipython, ipython.version_info = lambda: None, (9, 0)  # asked by matplotlib
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names, (long, short) = {}, NOTEBOOKS[name]
    assert any(long in "".join(cell["source"]) for cell in code_cells(name))
    for cell in code_cells(name):
        exec(compile("".join(cell["source"]).replace(long, short), cell["id"], "exec"), names)
    return names


@needs_demo_model
def test_the_customize_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    names = run_notebook("customize", monkeypatch, tmp_path)
    assert len(names["losses"]) == 2 and len(names["images"]) == 2
    assert names["before"].size == (4 * 192, 192)
    assert list(names["pipe"].concepts) == ["ada", "bob"]


@needs_demo_model
@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != "customize"])
def test_the_other_notebooks_run_from_top_to_bottom(name, tmp_path, monkeypatch):
    assert run_notebook(name, monkeypatch, tmp_path)["pipe"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_with_what_they_show(name):
    cells = code_cells(name)
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size <= 1_500_000
    assert 'run_line_magic("pip", ' in "".join(cells[0]["source"])  # how a fresh machine gets what it needs
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


def test_every_notebook_is_among_them():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == NOTEBOOKS.keys()
