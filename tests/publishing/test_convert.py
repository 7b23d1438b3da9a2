"""The converter on the compact goldens' layout; that what it writes samples like the authors' code: test_parity.py."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import profusion_pipeline.publishing.convert as convert_module
from golden_set import open_golden_set
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.publishing.convert import convert_checkpoint, load_promptnet

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    return open_golden_set("compact", tmp_path_factory.mktemp("golden")).layout


@pytest.fixture(scope="module")
def converted(layout, tmp_path_factory) -> tuple[Path, list[str]]:
    target = tmp_path_factory.mktemp("converted") / "sub" / "pipeline"
    return target, convert_checkpoint(layout, target)


@pytest.fixture
def source(layout, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(layout, tmp_path / "source"))


def edit_json(file: Path, **changes) -> None:
    content = json.loads(file.read_text("utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "REMOVE"}), "utf-8")


def edit_weights(file: Path, edit) -> None:
    weights = torch.load(file, weights_only=True)
    edit(weights)
    torch.save(weights, file)


def test_what_is_written(converted):
    target, _ = converted
    assert sorted(path.name for path in target.iterdir() if path.is_dir() and "profusion_" not in path.name) == [
        "feature_extractor",
        "image_encoder",
        "promptnet",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ]
    assert {"README.md", "model_index.json", "pipeline.py"} < {path.name for path in target.iterdir()}
    assert "\n# pipeline\n" in (target / "README.md").read_text("utf-8")  # its name is the folder's
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # nothing temporary is left
    assert not [*target.rglob("*.bin")]


def test_transformers_4_finds_what_it_reads(converted):
    """5 writes neither the tokenizer's two files nor, without torchvision, this class name."""
    target, _ = converted
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (target / "tokenizer").iterdir()}
    index = json.loads((target / "model_index.json").read_text("utf-8"))
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]


def test_what_loads(converted, layout):
    pipe = ProFusionPipeline.from_pretrained(converted[0])
    theirs = json.loads((layout / "openclip" / "config.json").read_text("utf-8"))
    assert pipe.text_encoder.config.num_hidden_layers == theirs["text_config"]["num_hidden_layers"] - 1
    assert pipe.image_encoder.config.hidden_size == theirs["vision_config"]["hidden_size"]
    assert pipe.feature_extractor.crop_size["height"] == theirs["vision_config"]["image_size"]
    assert pipe.promptnet.config.image_embed_dim == 1280
    assert pipe.promptnet.config.text_embed_dim == 32
    assert pipe.safety_checker is None
    assert (pipe.config.placeholder, pipe.config.placeholder_alias) == ("S*", "holder")
    assert {parameter.dtype for model in (pipe.unet, pipe.vae) for parameter in model.parameters()} == {torch.float32}
    config = pipe.scheduler.config
    assert (type(pipe.scheduler).__name__, config.beta_start, config.beta_end) == ("DDIMScheduler", 0.00085, 0.012)
    assert (config.set_alpha_to_one, config.steps_offset, config.clip_sample) == (False, 1, False)


def test_every_weight_is_taken_over_or_named(converted, layout):
    """Each tensor of the source is in the target, or is one that the facts name, or the text tower's last layer."""
    target, facts = converted
    promptnet, left_out = load_promptnet(layout / "promptnet")
    weights = torch.load(layout / "promptnet" / f"{WEIGHTS}.bin", weights_only=True)
    kept = promptnet.state_dict()
    assert set(weights) == set(kept) | set(left_out)
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    heads = {name.split(".")[0] for name in left_out}
    assert heads == {
        "residual_projections",
        "residual_projections_2",
        "mid_residual_projection",
        "mid_residual_projection_2",
    }
    assert f"promptnet lost the {len(left_out)} tensors of its residual heads ({', '.join(sorted(heads))})" in facts[2]
    assert "4 of 5 layers" in facts[0]
    assert len(facts) == 3  # the scheduler was DDIM already

    clip = torch.load(layout / "openclip" / "pytorch_model.bin", weights_only=True)
    pipe = ProFusionPipeline.from_pretrained(target)
    ours = [*pipe.text_encoder.state_dict().items(), *pipe.image_encoder.state_dict().items()]
    expected = {
        name: tensor
        for name, tensor in clip.items()
        if name.startswith(("text_model", "vision_model")) and ".layers.4." not in name and "position_ids" not in name
    }
    assert len(ours) == len(expected)
    for name, tensor in ours:  # transformers 5 has no "text_model." in the names of a text model
        matches = [key for key in expected if key.endswith(name) and torch.equal(expected[key], tensor)]
        assert matches, name


def test_one_component_is_in_memory_at_a_time(layout, tmp_path, monkeypatch):
    load, models = convert_module._load_whole, []

    def watch(*args, **kwargs):
        assert all(weight.is_meta for model in models for weight in model.parameters())
        models.append(load(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr(convert_module, "_load_whole", watch)
    convert_checkpoint(layout, tmp_path / "target")
    assert len(models) == 4


@pytest.mark.parametrize(
    "component, form",
    [
        ("unet", "safetensors"),
        ("unet", "sharded safetensors"),
        ("promptnet", "safetensors"),
        ("promptnet", "sharded safetensors"),
        ("promptnet", "sharded bin"),
    ],
)
def test_other_forms_of_weights(source, converted, component, form, tmp_path):
    folder = source / component
    weights = torch.load(folder / f"{WEIGHTS}.bin", weights_only=True)
    (folder / f"{WEIGHTS}.bin").unlink()
    suffix = form.split()[-1]
    save = save_file if suffix == "safetensors" else torch.save
    if form.startswith("sharded"):
        names = sorted(weights)
        shards = {"00001-of-00002": names[::2], "00002-of-00002": names[1::2]}
        files = {f"{WEIGHTS}-{number}.{suffix}": part for number, part in shards.items()}
        for file, part in files.items():
            save({name: weights[name].contiguous() for name in part}, folder / file)
        weight_map = {name: file for file, part in files.items() for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{WEIGHTS}.{suffix}.index.json").write_text(json.dumps(index))
    else:
        save(weights, folder / f"{WEIGHTS}.safetensors")
    convert_checkpoint(source, tmp_path / "target")
    written, expected = (path / component / f"{WEIGHTS}.safetensors" for path in (tmp_path / "target", converted[0]))
    assert written.read_bytes() == expected.read_bytes()


def test_another_scheduler_becomes_ddim_with_its_betas(source, tmp_path):
    file = source / "scheduler" / "scheduler_config.json"
    edit_json(file, _class_name="PNDMScheduler", steps_offset=0, beta_end=0.013, prediction_type="v_prediction")
    facts = convert_checkpoint(source, tmp_path / "target")
    config = ProFusionPipeline.from_pretrained(tmp_path / "target").scheduler.config
    assert (config.beta_end, config.prediction_type, config.steps_offset) == (0.013, "v_prediction", 1)
    assert any("_class_name 'PNDMScheduler' became 'DDIMScheduler', steps_offset 0 became 1" in fact for fact in facts)


def test_half_precision_is_written_as_float32(source, tmp_path):
    for file in (source / "promptnet" / f"{WEIGHTS}.bin", source / "openclip" / "pytorch_model.bin"):
        weights = torch.load(file, weights_only=True)
        torch.save(
            {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}, file
        )
    convert_checkpoint(source, tmp_path / "target")
    pipe = ProFusionPipeline.from_pretrained(tmp_path / "target")
    models = (pipe.promptnet, pipe.text_encoder, pipe.image_encoder)
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.float32}


def test_repository_on_the_hub(layout, converted, tmp_path, monkeypatch):
    """A repository that the Hub's cache holds already, so that no network is needed."""
    repository = tmp_path / "cache" / "models--somebody--profusion"
    shutil.copytree(layout, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    convert_checkpoint("somebody/profusion", tmp_path / "target")
    written, expected = (path / "promptnet" / f"{WEIGHTS}.safetensors" for path in (tmp_path / "target", converted[0]))
    assert written.read_bytes() == expected.read_bytes()


# --- refused, and nothing written -----------------------------------------------------------------------------------


def assert_refused(source, target: Path, match: str, error=ValueError, **kwargs) -> None:
    before = sorted(target.parent.iterdir())
    with pytest.raises(error, match=match):
        convert_checkpoint(source, target, **kwargs)
    assert sorted(target.parent.iterdir()) == before


@pytest.mark.parametrize("part", ["openclip", "promptnet", "scheduler", "tokenizer", "unet", "vae"])
def test_missing_folder(source, tmp_path, part):
    shutil.rmtree(source / part)
    assert_refused(source, tmp_path / "target", rf"layout of the authors' release \(2023\).*{part}.*is missing")


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "tokenizer/merges.txt", f"promptnet/{WEIGHTS}.bin"]
)
def test_missing_file(source, tmp_path, file):
    (source / file).unlink()
    assert_refused(source, tmp_path / "target", rf"layout of the authors' release .*{Path(file).name} (is|are) missing")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_missing_weights_file(source, tmp_path, part):
    (source / part / f"{WEIGHTS}.bin").unlink()
    assert_refused(source, tmp_path / "target", f"{part}' the weights cannot be loaded")


def test_broken_json(source, tmp_path):
    (source / "vae" / "config.json").write_text("{")
    assert_refused(source, tmp_path / "target", "vae' config.json is not JSON")


@pytest.mark.parametrize(
    "file, changes, match",
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionPipeline"},
            "names the pipeline 'StableDiffusionPipeline', ex",
        ),
        (
            "unet/config.json",
            {"_class_name": "UNet2DModel"},
            "unet/config.json has _class_name 'UNet2DModel', expected 'UN",
        ),
        (
            "promptnet/config.json",
            {"_class_name": "PromptNet"},
            "has _class_name 'PromptNet', expected 'PromptNetModel'",
        ),
        (
            "openclip/config.json",
            {"model_type": "siglip"},
            "openclip/config.json has model_type 'siglip', expected 'clip'",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": "REMOVE"}, "scheduler_config.json has no beta_end"),
        ("promptnet/config.json", {"with_noise": False}, "with_noise False, PromptNet knows only True"),
        (
            "promptnet/config.json",
            {"time_embedding_type": "fourier"},
            "time_embedding_type 'fourier', PromptNet knows only",
        ),
        ("promptnet/config.json", {"region_proj_channel": 64}, "promptnet' the weights do not fit: .*size mismatch"),
        ("unet/config.json", {"out_channels": 8}, "unet' the weights cannot be loaded"),
    ],
)
def test_wrong_setting(source, tmp_path, file, changes, match):
    edit_json(source / file, **changes)
    assert_refused(source, tmp_path / "target", match)


@pytest.mark.parametrize(
    "file, name, match",
    [
        (f"unet/{WEIGHTS}.bin", "conv_in.weight", "unet' weights are missing: conv_in.weight"),
        (f"vae/{WEIGHTS}.bin", "decoder.conv_out.bias", "vae' weights are missing: decoder.conv_out.bias"),
        (
            "openclip/pytorch_model.bin",
            "text_model.final_layer_norm.bias",
            "openclip' weights are missing: .*final_layer",
        ),
        (
            "openclip/pytorch_model.bin",
            "vision_model.pre_layrnorm.bias",
            "openclip' weights are missing: .*pre_layrnorm",
        ),
        (f"promptnet/{WEIGHTS}.bin", "conv_in.bias", "promptnet' the weights do not fit: .*conv_in.bias"),
        (
            f"promptnet/{WEIGHTS}.bin",
            "vision_embedding.weight",
            "promptnet' weights are missing: vision_embedding.weight",
        ),
    ],
)
def test_missing_weight(source, tmp_path, file, name, match):
    edit_weights(source / file, lambda weights: weights.pop(name))
    assert_refused(source, tmp_path / "target", match)


def test_unknown_weight_in_promptnet(source, tmp_path):
    edit_weights(source / "promptnet" / f"{WEIGHTS}.bin", lambda weights: weights.update(extra=torch.zeros(1)))
    assert_refused(source, tmp_path / "target", "promptnet' the weights do not fit: .*extra")


def test_components_that_do_not_fit(source, tmp_path):
    def widen(weights):
        weights["vision_embedding.weight"] = torch.zeros(32, 1024)

    edit_weights(source / "promptnet" / f"{WEIGHTS}.bin", widen)
    assert_refused(
        source, tmp_path / "target", "promptnet's vision states and openclip's must agree, got 1024 and 1280"
    )


class Trap:
    def __reduce__(self):
        return print, ("this code must not run",)


@pytest.mark.parametrize("file", [f"promptnet/{WEIGHTS}.bin", f"unet/{WEIGHTS}.bin", "openclip/pytorch_model.bin"])
def test_code_in_a_pickle_does_not_run(source, tmp_path, file, capsys):
    torch.save({"weight": Trap()}, source / file)
    assert_refused(source, tmp_path / "target", f"{Path(file).parent}'.* cannot be (read|loaded)")
    assert capsys.readouterr().out == ""
    pickle.loads(pickle.dumps(Trap()))  # this is what it would have done
    assert capsys.readouterr().out == "this code must not run\n"


@pytest.mark.parametrize("file", [f"promptnet/{WEIGHTS}.bin", f"vae/{WEIGHTS}.bin", "openclip/pytorch_model.bin"])
def test_truncated_weights(source, tmp_path, file):
    whole = (source / file).read_bytes()
    (source / file).write_bytes(whole[: len(whole) // 2])
    assert_refused(source, tmp_path / "target", f"{Path(file).parent}'.* cannot be (read|loaded)")


def test_source_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (tmp_path / "missing", "nobody/nothing"):
        assert_refused(source, tmp_path / "target", "`source` must be a folder or a repository on the Hub")


def test_existing_target(layout, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    assert_refused(layout, target, "`target` must not exist yet", FileExistsError)
    assert_refused(layout, target / "mine.txt", "`target` must be a folder", FileExistsError, force=True)
    assert (target / "mine.txt").read_text() == "mine"
    convert_checkpoint(layout, target, force=True)
    assert not (target / "mine.txt").exists()
    assert (target / "model_index.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("where", [".", ".."])
def test_target_around_the_source(source, where):
    assert_refused(source, source / where, "`target` must not be `source` or a folder around it", force=True)
    assert (source / "model_index.json").exists()


@pytest.mark.parametrize("moment", ["saving", "moving"])
def test_old_target_survives_a_failure(layout, tmp_path, monkeypatch, moment):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    replace = os.replace

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    def replace_but_not_the_new(origin, destination):
        fail() if Path(origin).name == "new" else replace(origin, destination)

    if moment == "saving":
        monkeypatch.setattr(convert_module.AutoencoderKL, "save_pretrained", fail)
    else:
        monkeypatch.setattr(os, "replace", replace_but_not_the_new)
    assert_refused(layout, target, "No space left", OSError, force=True)
    assert (target / "mine.txt").read_text() == "mine"


def test_libraries_are_as_loud_as_before(converted):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        assert library.get_verbosity() < convert_module.logging.CRITICAL
        assert library.is_progress_bar_enabled()


def test_what_can_not_be_moved_into_its_place_is_kept(layout, tmp_path, temporary, no_room_for):
    no_room_for(tmp_path / "mine")
    with pytest.raises(OSError, match="mine' could not be written, .*: No space left on device. It is kept in '.*'."):
        convert_checkpoint(layout, tmp_path / "mine")
    (kept,) = temporary.iterdir()
    assert ProFusionPipeline.from_pretrained(kept / "mine").config.placeholder_alias == "holder"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("source", ["a" * 300, "nowhere/at/all", "a\0b"])
def test_a_source_that_no_place_has(source, tmp_path):
    with pytest.raises(ValueError, match="`source` must be a folder or a repository on the Hub") as raised:
        convert_checkpoint(source, tmp_path / "mine")
    assert len(str(raised.value)) < 500
