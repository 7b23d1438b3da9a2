"""Every way of loading and publishing, in fresh processes, from folders and over HTTP from a Hub.

The ordinary suite runs all checks of a kind in one process; the slow one runs each check in a process of its own.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import hub_checks
from hub_server import Hub, Repository, serve
from profusion_pipeline import ProFusionPipeline, ProFusionXLPipeline
from test_architecture import SHIPPED
from tiny import make_components
from tiny_xl import make_xl_components

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src" / "profusion_pipeline" / "method"
OLD = TESTS / "repositories" / "2026_11"  # saved when all code lay at the top, with what was drawn beside it
# In a second version every kind of file is another one: a sibling, PromptNet, and the pipeline's own functions.
CHANGES = {
    "fusion_sampling.py": ("renewed_noise - predicted_noise", "predicted_noise - renewed_noise"),
    "modeling_promptnet.py": ("PromptNetOutput(prompt_embeds=prompt_embeds)", "PromptNetOutput(2 * prompt_embeds)"),
    "noisy_latents.py": ("if not torch.isfinite(tensor).all():", "if not tensor.add_(1).isfinite().all():"),
}


def package_of(folder: Path, name: str):
    """The method's files in `folder` as a package, without diffusers' loader."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.pipeline_profusion"), importlib.import_module(f"{name}.modeling_promptnet")


def write_second_version(folder: Path) -> None:
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name in SHIPPED:
        shutil.copy(SOURCE / f"{name}.py", folder)
    for name, (old, new) in CHANGES.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, name
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")


def publish(hub: Hub, folder: Path) -> None:
    """Put a folder on the test Hub, past the client."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories.setdefault(f"me/{folder.name}", Repository()).commit(files)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Folders and a Hub with repositories, and what each must give."""
    work = tmp_path_factory.mktemp("hub")
    names = ("first", "second", "old", "stable_diffusion", "moved", "trapped", "trapped_more", "trapped_unet")
    names += ("xl", "stable_diffusion_xl")
    folders = {name: work / "repositories" / name for name in names}
    marker = work / "the_trap_was_sprung"

    pipe = ProFusionPipeline(**make_components())
    expected = {"first": hub_checks.latents(pipe)}
    pipe = ProFusionPipeline(**make_components())  # a tokenizer that was used remembers the length
    pipe.save_pretrained(folders["first"])
    ProFusionPipeline(**make_components()).to(torch.float16).save_pretrained(folders["first"], variant="fp16")
    parts = {name: part for name, part in pipe.components.items() if name not in ("promptnet", "controlnet")}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folders["stable_diffusion"])

    write_second_version(work / "second_version")
    module, promptnet_module = package_of(work / "second_version", "profusion_second_version")
    components = make_components()
    promptnet = promptnet_module.PromptNet.from_config(components["promptnet"].config)
    promptnet.load_state_dict(components["promptnet"].state_dict())
    second = module.ProFusionPipeline(**components | {"promptnet": promptnet.eval()})
    second.save_pretrained(folders["second"])
    expected["second"] = hub_checks.latents(second)
    assert not torch.allclose(expected["first"], expected["second"])

    expected["xl"] = hub_checks.xl_latents(ProFusionXLPipeline(**make_xl_components()))
    xl = ProFusionXLPipeline(**make_xl_components())
    xl.save_pretrained(folders["xl"])
    base = {name: part for name, part in xl.components.items() if name not in ("promptnet", "controlnet")}
    StableDiffusionXLPipeline(**base | dict(image_encoder=None, feature_extractor=None)).save_pretrained(
        folders["stable_diffusion_xl"]
    )

    shutil.copytree(OLD, folders["old"])
    ProFusionPipeline(**make_components(), placeholder="moved").save_pretrained(folders["moved"])
    for name in ("trapped", "trapped_more", "trapped_unet"):
        shutil.copytree(folders["first"], folders[name])
        for path in folders[name].rglob("*.py"):
            path.write_text(f"open({str(marker)!r}, 'w')\n")
    for path in ("None.py", "promptnet/profusion_pipeline.method.modeling_promptnet.py"):
        (folders["trapped_more"] / path).write_text(f"open({str(marker)!r}, 'w')\n")
    index = folders["trapped_unet"] / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["my_unet", "UNet2DConditionModel"]}))
    (folders["trapped_unet"] / "unet" / "my_unet.py").write_text(f"open({str(marker)!r}, 'w')\n")

    with serve() as hub:
        for folder in folders.values():
            publish(hub, folder)
        hub.repositories["me/first-2.1"] = hub.repositories["me/first"]
        moved = hub.repositories["me/moved"]
        last = moved.refs["main"]
        publish(hub, folders["first"])
        moved.refs["v1"] = moved.commit(hub.repositories["me/first"].commits[hub.repositories["me/first"].refs["main"]])
        moved.refs["main"] = last
        answer = dict(hub=hub.url, work=str(work / "work"), marker=str(marker), latents={})
        answer["old_latents"] = str(OLD.with_suffix(".safetensors"))
        for name, tensor in expected.items():
            answer["latents"][name] = str(work / f"{name}.pt")
            torch.save(tensor, answer["latents"][name])
        yield answer | {name: str(folder) for name, folder in folders.items()}


def run_fresh(settings: dict, names: list[str], folder: Path) -> dict[str, str | None]:
    """The outcome of checks of one kind in a process of its own, with the caches in `folder`."""
    (folder / "work").mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    file.write_text(json.dumps(settings | {"work": str(folder / "work")}))
    bare = all(name.startswith("bare_") for name in names)
    # -I and -S leave out everything but what is named here, an editable installation of this project included.
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")] if bare else []
    script = str(TESTS / "hub_checks.py")
    code = (
        f"import runpy, sys; sys.path += {[*paths, str(TESTS)]!r}; sys.argv = {[script, str(file), *names]!r}; "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {
        "HF_ENDPOINT": settings["hub"],
        "HF_TOKEN": "any",
        "HF_HOME": str(folder / "hub_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": str(int("_offline_" in names[0])),
    }
    done = subprocess.run(
        [sys.executable, *(["-I", "-S"] if bare else []), "-c", code],
        env=environment, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BARE = [name for name in hub_checks.CHECKS if name.startswith("bare_")]
OURS = [name for name in hub_checks.CHECKS if name.startswith("ours_")]


def run_kind(settings: dict, names: list[str], folder: Path) -> dict[str, str | None]:
    """One process with a connection, and one without; the second finds what the first left in the cache."""
    offline = [name for name in names if "_offline_" in name]
    online = [name for name in names if name not in offline]
    return run_fresh(settings, online, folder) | run_fresh(settings, offline, folder)


@pytest.fixture(scope="module")
def outcomes_bare(settings, tmp_path_factory):
    return run_kind(settings, BARE, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def outcomes_ours(settings, tmp_path_factory):
    return run_kind(settings, OURS, tmp_path_factory.mktemp("ours"))


@pytest.mark.parametrize("name", BARE)
def test_where_nothing_of_ours_is_installed(outcomes_bare, name):
    assert outcomes_bare[name] is None, outcomes_bare[name]


@pytest.mark.parametrize("name", OURS)
def test_where_the_package_is_installed(outcomes_ours, name):
    assert outcomes_ours[name] is None, outcomes_ours[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", hub_checks.CHECKS)
def test_in_a_fresh_process_of_its_own(settings, name, tmp_path):
    if "_offline_" in name:
        run_fresh(settings, [f"{name[:4]}_local_files_only"], tmp_path)  # fills the cache
    outcome = run_fresh(settings, [name], tmp_path)[name]
    assert outcome is None, outcome
