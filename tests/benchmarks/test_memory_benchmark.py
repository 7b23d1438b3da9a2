"""The memory benchmark runs its modes at tiny size on a CPU, and says what it found where it says so."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

pytest.importorskip("accelerate")

import measuring  # noqa: E402
import memory  # noqa: E402
import random_models  # noqa: E402
import xl_size  # noqa: E402

pytestmark = pytest.mark.skipif(not measuring.Path("/proc/self/clear_refs").exists(), reason="reads Linux' /proc")


@pytest.mark.parametrize(
    "name",
    [
        "float32",
        "bfloat16, UNet and PromptNet stored in float8",
        "float32, fused QKV",
        "float32, 4 pictures, VAE slicing",
        "float32, group off-load to disk",
    ],
)
def test_modes_run(name):
    figures = memory.measure(name, size="tiny", device="cpu", steps=1)
    assert 0 < figures["gib_before"] <= figures["gib_peak"]


def test_the_peak_begins_anew():
    """What was used and given back before a call is no part of its peak."""
    large = torch.zeros(2**27)  # half a GiB
    before = memory.resident("VmHWM")
    del large
    assert memory.measure("float32", size="tiny", device="cpu", steps=1)["gib_peak"] < before - 0.3


def test_figures_and_table(tmp_path):
    report = tmp_path / "memory.md"
    report.write_text("<!-- memory, tiny, cpu -->\nnot measured\n<!-- /memory, tiny, cpu -->\n")
    results = memory.main(size="tiny", device="cpu", steps=1, modes=["float32"], folder=tmp_path, report=report)
    assert measuring.load_results("memory_tiny_cpu", tmp_path) == results
    peak = results["modes"]["float32"]["gib_peak"]
    assert f"| float32 | {results['modes']['float32']['gib_before']:.3f} | {peak:.3f} |" in report.read_text()


def test_a_mode_that_failed_is_in_the_table():
    results = {"device": "a CPU", "size": "tiny", "on": "cpu", "modes": {"float16": {"failed": "no such kernel"}}}
    assert "| float16 | failed: no such kernel |  |" in memory.make_table(results)


UNETS = {
    "Stable Diffusion 1.5": dict(sample_size=64, cross_attention_dim=768),  # else diffusers' defaults
    "Stable Diffusion 2": random_models.SIZES["sd2"]["unet"] | dict(use_linear_projection=True),
    "Stable Diffusion XL": xl_size.SIZES["xl"]["unet"]
    | dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
    ),
}


@pytest.mark.parametrize("name", UNETS)
def test_the_docs_say_what_a_second_unet_takes(name):
    """Of a learnt subject: bytes of the weights, which are all that it adds while no call runs."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    assert not list(unet.buffers())
    count = unet.num_parameters()
    row = f"| {name} | {count:,} | {2 * count / 2**30:.2f} | {4 * count / 2**30:.2f} |"
    assert row in Path(__file__).parents[2].joinpath("docs", "memory.md").read_text("utf-8")
