"""What a saved pipeline's folder holds. How it loads elsewhere is shown in fresh processes by `test_hub_ways.py`."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from transformers import CLIPTokenizer

from profusion_pipeline import ProFusionPipeline
from profusion_pipeline.method import older_saves, repository
from profusion_pipeline.method.entry import take_apart
from test_architecture import CORE, SHIPPED
from tiny import make_components, make_tokenizer

SOURCE = Path(repository.__file__).parent
OLD = Path(__file__).parents[1] / "repositories" / "2026_11"
MODELS = ("unet", "vae", "text_encoder", "image_encoder", "promptnet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved pipeline; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    ProFusionPipeline(**make_components()).save_pretrained(folder)
    return folder


def read_index(folder: Path) -> dict:
    return json.loads((folder / "model_index.json").read_text("utf-8"))


def assert_same_weights(pipe, other) -> None:
    for name in MODELS:
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(getattr(other, name).state_dict()[key], value), (name, key)


# ------------------------------------------------------------------------------------------------ the code


def test_every_file_of_the_method_is_there_once_byte_for_byte(saved):
    code = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*.py")}
    files = {"entry.py": code.pop("pipeline.py"), "modeling_promptnet.py": code.pop("promptnet/modeling_promptnet.py")}
    files |= take_apart(code.pop("profusion_method.py"))
    assert not code
    assert files == {f"{name}.py": (SOURCE / f"{name}.py").read_bytes() for name in SHIPPED}


def test_diffusers_finds_all_files_from_the_entry(saved):
    """From a folder it copies what the entry names and nothing deeper."""
    names = get_relative_imports(saved / "pipeline.py")
    named = {saved / f"{name.replace('.', '/')}.py" for name in names}
    assert named == set(saved.rglob("*.py")) - {saved / "pipeline.py"}
    assert get_relative_imports(saved / "profusion_method.py") == []


def test_diffusers_looks_for_no_package_that_is_not_needed(saved):
    """It reads imports by regular expression, also in docstrings, and tries them."""
    for path in saved.rglob("*.py"):
        text = path.read_text("utf-8")
        found = re.findall(r"^\s*import\s+(\S+)\s*$", text, re.MULTILINE)
        found += re.findall(r"^\s*from\s+(\S+)\s+import", text, re.MULTILINE)
        packages = {name.split(".")[0] for name in found if not name.startswith(".")}
        assert packages <= CORE | sys.stdlib_module_names, path.name


def test_code_that_came_from_a_repository_gives_the_same_files(tmp_path):
    """That lies in a package of its own, where the entry has the name that it has here."""
    for name in SHIPPED:
        shutil.copy(SOURCE / f"{name}.py", tmp_path)
    assert repository.method_files(tmp_path) == repository.method_files(SOURCE)


# ----------------------------------------------------------------------------------------------- the index


def test_the_index_names_what_is_there(saved):
    index = read_index(saved)
    entry, class_name = index["_class_name"]
    assert class_name == "ProFusionPipeline" and (saved / f"{entry}.py").is_file()
    module, class_name = index["promptnet"]
    assert class_name == "PromptNet" and (saved / "promptnet" / f"{module}.py").is_file()
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    assert index["safety_checker"] == [None, None]


def test_without_an_image_encoder(tmp_path):
    parts = make_components(image_encoder=None, feature_extractor=None)
    ProFusionPipeline(**parts).save_pretrained(tmp_path / "pipeline")
    assert read_index(tmp_path / "pipeline")["feature_extractor"] == [None, None]
    assert ProFusionPipeline.from_pretrained(tmp_path / "pipeline").feature_extractor is None


def test_nothing_of_this_machine_is_written(saved, tmp_path):
    pipe = ProFusionPipeline.from_pretrained(saved)
    sd = StableDiffusionPipeline.from_pipe(pipe)
    parts = {name: pipe.components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    ProFusionPipeline.from_pipe(sd, **parts).save_pretrained(tmp_path / "again")
    files = [path for path in (tmp_path / "again").rglob("*") if path.suffix in (".json", ".md", ".txt", ".py")]
    assert {path.suffix for path in files} == {".json", ".md", ".txt", ".py"}
    for path in files:
        assert str(saved) not in path.read_text("utf-8"), path
    assert [name for name in read_index(tmp_path / "again") if name[0] == "_"] == ["_class_name", "_diffusers_version"]


# ------------------------------------------------------------------------------------------- the tokenizer


def test_a_tokenizer_that_transformers_4_reads(tmp_path):
    """Without the file that 5 writes, from the two that 4 reads, every token has the same number."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<cat-toy>"])
    ProFusionPipeline(**make_components(tokenizer=tokenizer)).save_pretrained(tmp_path / "pipeline")
    folder = tmp_path / "pipeline" / "tokenizer"
    (folder / "tokenizer.json").unlink(missing_ok=True)
    added = json.loads((folder / "added_tokens.json").read_text("utf-8"))
    assert added == {"<cat-toy>": len(tokenizer) - 1}
    read = CLIPTokenizer.from_pretrained(folder)
    for text in ("a photo of a red dog", "smiling woman on the beach!", "<cat-toy> and a hat"):
        assert read(text).input_ids == tokenizer(text).input_ids


# --------------------------------------------------------------------------------- a folder that exists already


def test_a_card_that_is_there_is_kept(tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "README.md").write_text("my own words")
    ProFusionPipeline(**make_components()).save_pretrained(target)
    assert (target / "README.md").read_text() == "my own words"


def test_saving_over_an_older_save(tmp_path):
    """Small files after large ones, whole after sharded, other code, a variant beside them: the last save loads."""
    target = tmp_path / "mine"
    ProFusionPipeline(**make_components(seed=1)).save_pretrained(target, max_shard_size="50KB")
    assert list(target.glob("unet/*-00002-of-*.safetensors")) and (target / "notes.txt").write_text("mine")
    ProFusionPipeline(**make_components(seed=2)).save_pretrained(target, variant="fp16", max_shard_size="50KB")
    shutil.copy(OLD / "pipeline.py", target)
    (target / "profusion_of_old.py").touch()
    pipe = ProFusionPipeline(**make_components(seed=3))
    pipe.save_pretrained(target)
    assert not (target / "profusion_of_old.py").exists()
    assert (target / "notes.txt").read_text() == "mine"
    assert_same_weights(ProFusionPipeline.from_pretrained(target), pipe)
    other = ProFusionPipeline(**make_components(seed=2))
    assert_same_weights(ProFusionPipeline.from_pretrained(target, variant="fp16"), other)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_saving_where_it_was_loaded_from(saved, tmp_path):
    """The weights of a loaded pipeline may still be mapped from the files that are being replaced."""
    folder = Path(shutil.copytree(saved, tmp_path / "mine"))
    pipe = ProFusionPipeline.from_pretrained(folder)
    for _ in range(3):
        pipe.save_pretrained(folder)
        pipe = ProFusionPipeline.from_pretrained(folder)
    assert_same_weights(pipe, ProFusionPipeline(**make_components()))
    for path in saved.rglob("*.*"):
        if path.is_file() and path.name != "README.md":
            assert (folder / path.relative_to(saved)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("exists", [False, True])
def test_a_save_that_fails_leaves_what_was_there(saved, exists, tmp_path, monkeypatch):
    target = tmp_path / "mine"
    if exists:
        shutil.copytree(saved, target)
    pipe = ProFusionPipeline(**make_components(seed=1))

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(pipe.scheduler, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        pipe.save_pretrained(target)
    assert [path.name for path in tmp_path.iterdir()] == (["mine"] if exists else [])
    if exists:
        assert_same_weights(ProFusionPipeline.from_pretrained(target), ProFusionPipeline(**make_components()))


@pytest.mark.parametrize("moved", [0, 5, 15])
def test_a_save_that_is_interrupted_while_moving_does_not_load(saved, moved, tmp_path, monkeypatch):
    target = Path(shutil.copytree(saved, tmp_path / "mine"))
    replace, count = os.replace, iter(range(1000))

    def replace_some(source, destination):
        if next(count) == moved:
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(older_saves.os, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        ProFusionPipeline(**make_components(seed=1)).save_pretrained(target)
    monkeypatch.undo()
    with pytest.raises(OSError, match="model_index.json"):
        ProFusionPipeline.from_pretrained(target)


def test_a_file_is_no_folder(pipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="`save_directory` must be a folder, .* is a file"):
        pipe.save_pretrained(tmp_path / "file")


def test_an_argument_without_meaning(pipe, tmp_path):
    with pytest.raises(TypeError, match="takes varient with `push_to_hub=True` only"):
        pipe.save_pretrained(tmp_path / "mine", varient="fp16")
    assert not (tmp_path / "mine").exists()
