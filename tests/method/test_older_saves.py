from pathlib import Path

import pytest

from profusion_pipeline.method import older_saves

SOURCE = Path(older_saves.__file__).parent
OLD = Path(__file__).parent.parent / "repositories" / "2026_11"


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_is_superseded(variant):
    mark = "" if variant is None else f".{variant}"
    goes = [
        f"unet/diffusion_pytorch_model{mark}-00001-of-00002.safetensors",
        f"unet/diffusion_pytorch_model.safetensors.index{mark}.json",
        f"unet/diffusion_pytorch_model{mark}.bin",
        "noise_levels.py",
    ]
    stays = [
        f"unet/diffusion_pytorch_model{mark}.safetensors",
        "unet/diffusion_pytorch_model.ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.ema.json",
        f"vae/diffusion_pytorch_model{mark}.bin",
        "unet/config.json",
        "profusion_mine.py",
        "my_pipeline.py",
        "README.md",
    ]
    assert older_saves.superseded_files([*goes, *stays], stays[:1], variant, old_code=goes[-1:]) == sorted(goes)


FLAT = (
    "fusion_sampling.py, noise_levels.py, modeling_promptnet.py, pipeline_profusion.py, reference_images.py, "
    "subject_embedding.py, subject_prompt.py"
).split(", ")
OWN = ["my_notes.py", "helpers.py", "notes/profusion_mine.py"]


@pytest.mark.parametrize(
    "entry, there, code",
    [
        pytest.param(OLD / "pipeline.py", [*FLAT, "profusion_rows.py"], [*FLAT, "profusion_rows.py"], id="old"),
        pytest.param(OLD / "pipeline.py", ["profusion_of_august.py"], ["profusion_of_august.py"], id="older"),
        pytest.param(SOURCE / "entry.py", ["profusion_mine.py", *FLAT], [], id="new"),
    ],
)
def test_code_of_an_older_save(entry, there, code):
    assert older_saves.code_of_older_save(entry.read_text("utf-8"), there + OWN) == set(code)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "this is not Python",
        "\0",
        "from .helpers import *\nfrom .pipeline_profusion import *",
        '"""My own.\n\n    from .helpers import *\n"""',
        '"""My own.\n\n    from .pipeline_profusion import ProFusionPipeline\n"""',
    ],
)
def test_no_code_is_ours_where_somebody_else_wrote_the_entry(entry):
    there = [*FLAT, *OWN, "profusion_mine.py"]
    assert older_saves.code_of_older_save(entry, there) == set()


def test_what_a_user_added_to_the_entry_stays():
    entry = (OLD / "pipeline.py").read_text("utf-8") + "\nfrom .helpers import *\n"
    assert older_saves.code_of_older_save(entry, ["helpers.py", "noise_levels.py"]) == {"noise_levels.py"}
