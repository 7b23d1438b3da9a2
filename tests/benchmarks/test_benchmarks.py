"""The benchmarks run at tiny size on a CPU, all their modes, and count and compare what they say they do."""

import json
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from golden_set import open_golden_set
from profusion_pipeline import ProFusionPipeline

pytest.importorskip("accelerate")

import convert_full_size  # noqa: E402
import full_size  # noqa: E402
import measuring  # noqa: E402
import random_models  # noqa: E402
import step_costs  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = dict(size="tiny", device="cpu", dtype="float32", steps=3, runs=1, warm_up_steps=0, backend="eager")


def with_compiling_slow(modes) -> list:
    """Half a minute each, most of it torch reading the models."""
    return [pytest.param(mode, marks=[pytest.mark.slow] * ("compiled" in mode)) for mode in modes]


@pytest.fixture(scope="module")
def customize():
    """By its path: an example has the same name."""
    spec = spec_from_file_location("benchmarks_customize", BENCHMARKS / "customize.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------- the models


def test_the_size_of_stable_diffusion_2():
    """Parameters in millions, of SD2-base and OpenCLIP ViT-H as published."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    with init_empty_weights():
        models = {
            865.9: UNet2DConditionModel(**random_models.unet_config("sd2")),
            83.7: AutoencoderKL(**random_models.vae_config("sd2")),
            340.4: CLIPTextModel(CLIPTextConfig(**random_models.text_config("sd2"))),
            630.8: CLIPVisionModel(CLIPVisionConfig(**random_models.vision_config("sd2"))),
        }
    for millions, model in models.items():
        assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_random_weights():
    pipe = random_models.build_pipeline("tiny", dtype=torch.bfloat16, device="cpu")
    weight = pipe.unet.mid_block.resnets[0].conv1.weight
    assert weight.dtype == torch.bfloat16
    assert float(weight.detach().float().std()) == pytest.approx(weight[0].numel() ** -0.5, rel=0.1)
    norm = pipe.text_encoder.get_submodule(
        "final_layer_norm" if hasattr(pipe.text_encoder, "final_layer_norm") else "text_model.final_layer_norm"
    )
    assert norm.weight.unique().tolist() == [1] and norm.bias.unique().tolist() == [0]
    assert all(not tensor.is_meta for model in (pipe.unet, pipe.text_encoder) for tensor in model.buffers())


# ------------------------------------------------------------------------------------------------- full_size.py


# Without a GPU there is no xFormers, and diffusers' sequential off-loading insists on one too.
@pytest.mark.parametrize(
    "mode", with_compiling_slow(name for name in full_size.MODES if "xFormers" not in name and "sequential" not in name)
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_every_mode_of_full_size(mode):
    torch.compiler.reset()
    figures = full_size.measure(mode, **TINY)
    assert 0 < figures["seconds_per_step"] < figures["seconds_per_picture"]
    assert figures["gib_resident"] > 0.1
    assert figures["gib_on_device"] is None
    assert "seconds_of_first_call" not in figures


@pytest.mark.slow
def test_full_size_alone_and_in_the_table(tmp_path, capsys):
    """Two modes in processes of their own; the second needs xFormers or a GPU, and the table says so."""
    modes = ["m = 0", "m = 1, xFormers"]
    results = full_size.main(**TINY | {"warm_up_steps": 1}, modes=modes, folder=tmp_path)
    assert json.loads((tmp_path / "full_size_tiny_cpu.json").read_text()) == results
    assert results["device"] and results["torch"] == torch.__version__
    table = measuring.mode_table(full_size.COLUMNS, list(full_size.MODES), results)
    drawn, failed, missing = (
        next(row for row in table.splitlines() if row.startswith(f"| {name} |")) for name in (*modes, "m = 1, compiled")
    )
    assert f"| {results['modes']['m = 0']['seconds_per_picture']:.2f} |" in drawn
    assert "failed: full_size.py ended with 1" in failed and "xformers" in failed.lower()
    assert missing.count("not measured") == 6


# ------------------------------------------------------------------------------------------------- step_costs.py


def test_step_costs_counts_what_the_method_says(tmp_path, capsys):
    """Rows, calls, PromptNet, texts of a step: 3 / 1 / 1 / 1 mixed, two rows and a call more with each fusion step."""
    results = step_costs.main(size="tiny", device="cpu", dtype="float32", steps=1, rounds=2, folder=tmp_path)
    counts = {name: [figures[key] for key in step_costs.COUNTED] for name, figures in results["variants"].items()}
    assert counts == {
        "guidance on S* alone": [2, 1, 1, 1],
        "Mixed (m = 0)": [3, 1, 1, 1],
        "Fusion Sampling, m = 1": [5, 2, 2, 2],
        "Fusion Sampling, m = 2": [7, 3, 3, 3],
        "the authors' rows, m = 1": [6, 2, 2, 6],
    }
    assert "| Fusion Sampling, m = 1 | 5 | 2 | 2 | 2 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "step_costs_tiny_cpu.json").read_text()) == results


# ------------------------------------------------------------------------------------------------- convert_full_size.py


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layout") / "source"
    convert_full_size.make_layout(folder, size="tiny", dtype=torch.float16)
    return folder


@pytest.mark.parametrize("part", ["unet", "vae", "promptnet"])
def test_the_made_layout_has_the_authors_names(layout, part, tmp_path):
    """The tiny models have as many blocks as the recorded ones."""
    recorded = open_golden_set("compact", tmp_path).layout
    ours, theirs = (
        torch.load(folder / part / convert_full_size.DIFFUSERS_WEIGHTS, weights_only=True)
        for folder in (layout, recorded)
    )
    assert ours.keys() == theirs.keys()
    assert {name: tensor.dim() for name, tensor in ours.items()} == {name: t.dim() for name, t in theirs.items()}
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16}


def test_converting_and_loading(layout, tmp_path):
    target = tmp_path / "target"
    assert convert_full_size.convert(layout, target)["seconds"] > 0
    figures = convert_full_size.load(layout, target)
    pipe = ProFusionPipeline.from_pretrained(target)
    assert figures["equal_weights"] == len(pipe.unet.state_dict()) + len(pipe.promptnet.state_dict())
    file = layout / "unet" / convert_full_size.DIFFUSERS_WEIGHTS
    weights = torch.load(file, weights_only=True)
    torch.save(weights | {"conv_in.bias": weights["conv_in.bias"] + 1}, file)
    with pytest.raises(AssertionError, match="unet has other weights than its source: .*conv_in.bias"):
        convert_full_size.load(layout, target)


def test_convert_table():
    phases = {"convert": {"seconds": 1.0, "gib_resident": 2.0}, "load": {"seconds": 3.0, "gib_resident": 4.0}}
    results = {
        "device": "a machine",
        "conversions": {"float16": {**phases, "gib_of_source": 5.0, "gib_of_target": 6.0}},
    }
    assert convert_full_size.make_table(results).endswith("| float16 | 5.0 | 6.0 | 1.0 | 2.0 | 3.0 | 4.0 |")


# ------------------------------------------------------------------------------------------------- customize.py


@pytest.mark.parametrize(
    "mode",
    with_compiling_slow(["lora", "lora, float16", "lora, gradient checkpointing", "lora, blocks compiled", "full"]),
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch",
    "ignore::FutureWarning:torch",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # dynamo looks at it while it traces
)
def test_modes_of_customize(customize, mode):
    torch.compiler.reset()
    figures = customize.measure(mode, size="tiny", device="cpu", dtype="float32", steps=2, backend="eager")
    assert 0 < figures["seconds_per_step"] < figures["seconds"] and 0 < figures["seconds_before"] < figures["seconds"]
    assert figures["megabytes"] > 0.001


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is here, so nothing is missing")
def test_customize_in_the_table(customize, tmp_path, capsys):
    """8 bits need bitsandbytes: the table says what is missing."""
    results = customize.main(
        size="tiny", device="cpu", dtype="float32", steps=2, modes=["lora, 8-bit AdamW"], folder=tmp_path
    )
    assert json.loads((tmp_path / "customize_tiny_cpu.json").read_text()) == results
    assert "| lora, 8-bit AdamW | failed: customize.py ended with 1" in measuring.mode_table(
        customize.COLUMNS, list(customize.MODES), results
    )


# ------------------------------------------------------------------------------------------------- measuring.py


def test_peak_resident_grows_and_stays():
    """In a process of its own: in this one, an earlier test's peak may be higher than what this one takes."""
    code = """
import measuring
before = measuring.peak_resident()
block = b"1" * 2**29
grown = measuring.peak_resident()
del block
print(grown - before, measuring.peak_resident() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=measuring.FOLDER, capture_output=True, text=True, check=True)
    grown, stayed = map(float, run.stdout.split())
    assert 0.45 < grown < 0.7  # the kernel counts pages in batches
    assert 0.45 < stayed < 0.7


def test_scripts_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "FOLDER", tmp_path)
    (tmp_path / "good.py").write_text("import sys\nprint('words')\nprint('[\"' + sys.argv[1] + '\"]')")
    (tmp_path / "bad.py").write_text("raise SystemExit('first\\nno memory left')")
    assert measuring.run_alone("good.py", 7) == ["7"]
    with pytest.raises(RuntimeError, match="bad.py ended with 1 and said: no memory left"):
        measuring.run_alone("bad.py")


def test_tables_are_put_between_their_marks(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    for _ in range(2):
        measuring.write_table("one", measuring.table(["a", "b"], [[1, None]]), file)
    assert file.read_text() == (
        "before\n<!-- one -->\n| a | b |\n| --- | --- |\n| 1 | not measured |\n<!-- /one -->\nafter\n"
    )


def test_every_table_has_its_marks():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    marks = ("full size, cuda", "full size, cpu", "step costs", "step costs, cuda", "convert", "customize, cuda")
    for mark in (*marks, "customize, cpu", "against", "against, cuda"):
        assert text.index(f"<!-- {mark} -->\n") < text.index(f"<!-- /{mark} -->\n")
