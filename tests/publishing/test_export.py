"""Export and push as functions and commands; pushing runs against a Hub on the loopback."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hub_server import on_hub, serve
from profusion_pipeline import Concept, ProFusionPipeline, PromptNet, export_pipeline, push_pipeline
from profusion_pipeline.cli import main
from profusion_pipeline.common.open_pipeline import DEMO_FOLDER
from tiny import make_components


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline; and what it is put together from: a Stable Diffusion, a trained PromptNet, a vision tower."""
    work = tmp_path_factory.mktemp("hub")
    components = make_components()
    ProFusionPipeline(**components).save_pretrained(work / "pipeline")
    sd = {name: part for name, part in components.items() if name not in ("promptnet", "controlnet")}
    sd |= dict(image_encoder=None, feature_extractor=None)
    StableDiffusionPipeline(**sd, requires_safety_checker=False).save_pretrained(work / "stable_diffusion")
    components["promptnet"].save_pretrained(work / "promptnet")
    for name in ("image_encoder", "feature_extractor"):
        components[name].save_pretrained(work / "vision")
    return {name: str(work / name) for name in ("pipeline", "stable_diffusion", "promptnet", "vision")}


def weights(pipe) -> dict[str, torch.Tensor]:
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}


def test_export_of_a_pipeline(folders, tmp_path):
    target = export_pipeline(folders["pipeline"], tmp_path / "mine", base_model="someone/sd", license="openrail++")
    exported, original = (
        weights(ProFusionPipeline.from_pretrained(target)),
        weights(ProFusionPipeline(**make_components())),
    )
    assert all(torch.equal(exported[name], value) for name, value in original.items())
    card = (target / "README.md").read_text("utf-8")
    assert "base_model: someone/sd" in card and "license: openrail++" in card


def test_export_of_what_training_made(folders, tmp_path):
    """The Stable Diffusion, the PromptNet and the vision tower come from three places."""
    words = ["export", folders["stable_diffusion"], str(tmp_path / "mine"), "--promptnet", folders["promptnet"]]
    assert main([*words, "--image-encoder", folders["vision"], "--dtype", "float16", "--variant", "fp16"]) == 0
    files = [path.name for path in (tmp_path / "mine").rglob("*.safetensors")]
    assert len(files) == 5 and all(".fp16." in name for name in files)
    loaded = weights(ProFusionPipeline.from_pretrained(tmp_path / "mine", variant="fp16"))
    for name, value in weights(ProFusionPipeline(**make_components())).items():
        assert torch.equal(loaded[name], value.half().float() if value.is_floating_point() else value), name


def test_refusals(folders, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="`target` must not exist yet, .*: `force` writes into it"):
        export_pipeline(folders["pipeline"], tmp_path / "mine")
    with pytest.raises(ValueError, match="`dtype` must be float32, float16 or bfloat16, got 'half'"):
        export_pipeline(folders["pipeline"], tmp_path / "other", dtype="half")
    narrow = PromptNet.from_unet(make_components()["unet"], image_embed_dim=16, region_proj_channel=8)
    narrow.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="`promptnet` must fit `image_encoder`"):
        export_pipeline(folders["pipeline"], tmp_path / "other", promptnet=str(tmp_path / "narrow"))
    assert not (tmp_path / "other").exists()


def test_force_writes_beside_what_is_there(folders, tmp_path):
    export_pipeline(folders["pipeline"], tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("my own words")
    export_pipeline(folders["pipeline"], tmp_path / "mine", variant="fp16", dtype="float16", force=True)
    assert (tmp_path / "mine" / "README.md").read_text() == "my own words"
    names = {path.name for path in (tmp_path / "mine" / "unet").iterdir()}
    assert {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"} <= names


def test_push_needs_a_token(folders, monkeypatch):
    monkeypatch.setattr("profusion_pipeline.publishing.export.get_token", lambda: None)
    with pytest.raises(ValueError, match="Pushing needs a token of the Hub"):
        push_pipeline(folders["pipeline"], "me/mine")


def test_push(folders, tmp_path):
    """The command, in a process that knows no other Hub."""
    words = ["push", folders["stable_diffusion"], "me/mine", "--promptnet", folders["promptnet"]]
    words += ["--image-encoder", folders["vision"], "--commit-message", "first", "--license", "openrail++"]
    code = f"import sys; from profusion_pipeline.cli import main; sys.exit(main({words!r}))"
    with serve() as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "any", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["me/mine"]
    assert done.stdout.strip() == f"{hub.url}/me/mine/commit/{repository.refs['main']}"
    assert len(repository.commits) == 2  # the empty one of a new repository, and this
    files = repository.commits[repository.refs["main"]]
    for path, content in files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(content)
    assert b"license: openrail++" in files["README.md"]
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "ProFusionPipeline"]
    pushed, original = (
        weights(ProFusionPipeline.from_pretrained(tmp_path / "copy")),
        weights(ProFusionPipeline(**make_components())),
    )
    assert all(torch.equal(pushed[name], value) for name, value in original.items())


def pushed(
    words: list[str], folder, before: dict[str, bytes] | None = None, others: dict[str, dict[str, bytes]] | None = None
) -> dict[str, bytes]:
    """What is on the Hub after a `profusion push` in a process of its own; `before` and others are there already."""
    return on_hub(words[1], ["push", *words], folder, (others or {}) | ({words[1]: before} if before else {}))


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_card_of_a_pipeline_on_the_hub_goes_with_it(folders, tmp_path):
    source = export_pipeline(folders["pipeline"], tmp_path / "model", license="mit")
    files = files_of(source)
    text = files["README.md"].decode().replace('"model"', '"her/model"').replace("\n# model\n", "\n# her/model\n")
    files["README.md"] = text.replace("\n## Limits\n", "\n## Limits of hers\n").encode()
    card = pushed(["her/model", "me/other"], tmp_path, others={"her/model": files})["README.md"].decode()
    assert "## Limits of hers" in card and "license: mit" in card
    assert "\n# me/other\n" in card and 'from_pretrained("me/other"' in card and "her/model" not in card
    del files["README.md"]
    assert (
        b"# me/other" in pushed(["her/model", "me/other"], tmp_path / "again", others={"her/model": files})["README.md"]
    )


def test_a_concept_is_pushed_where_it_is_made(folders, tmp_path):
    words = ["customize", "--model", folders["pipeline"], "--image", "demo", "--out", str(tmp_path / "ada")]
    words += ["--steps", "1", "--pool-size", "1", "--batch-size", "1", "--push-to-hub", "me/ada", "--private"]
    files = on_hub("me/ada", words, tmp_path, {})
    (tmp_path / "pushed.safetensors").write_bytes(files["concept.safetensors"])
    there, here = Concept.from_pretrained(tmp_path / "pushed.safetensors"), Concept.from_pretrained(tmp_path / "ada")
    assert all(torch.equal(there.changes[name], change) for name, change in here.changes.items())
    assert b"pipe.load_concept('me/ada')" in files["README.md"]


def test_nothing_is_learnt_without_a_token(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("profusion_pipeline.publishing.export.get_token", lambda: None)
    words = [
        "customize",
        "--model",
        "nowhere",
        "--image",
        "demo",
        "--out",
        str(tmp_path / "ada"),
        "--push-to-hub",
        "me/a",
    ]
    assert main(words) == 1
    assert "Pushing needs a token of the Hub" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_is_published_with_its_own_card(tmp_path):
    own = (DEMO_FOLDER / "README.md").read_bytes()
    assert pushed(["demo", "me/avatars"], tmp_path)["README.md"] == own
    before = {"README.md": b"my own words"}
    assert pushed(["demo", "me/avatars"], tmp_path, before)["README.md"] == b"my own words"
    assert (export_pipeline("demo", tmp_path / "mine") / "README.md").read_bytes() == own


def test_a_card_goes_with_its_pipeline(folders, tmp_path):
    """Under the new name, with the facts that are given; of a pipeline put together anew it is another."""
    source = export_pipeline(folders["pipeline"], tmp_path / "source", license="mit")
    text = (source / "README.md").read_text("utf-8")
    (source / "README.md").write_text(text.replace("\n## Limits\n", "\n## Limits of mine\n"), encoding="utf-8")
    card = (export_pipeline(source, tmp_path / "carried") / "README.md").read_text("utf-8")
    assert "## Limits of mine" in card and "license: mit" in card
    assert "\n# carried\n" in card and 'from_pretrained("carried"' in card and '"source"' not in card
    facts = dict(base_model="someone/sd", license="openrail++")
    card = (export_pipeline(source, tmp_path / "completed", **facts) / "README.md").read_text("utf-8")
    assert "Base model: [someone/sd]" in card and "license: openrail++" in card and "not recorded" not in card
    card = (export_pipeline("demo", tmp_path / "demo", license="mit") / "README.md").read_text("utf-8")
    assert "license: mit\n" in card and "<!-- scores -->" in card
    other = export_pipeline(source, tmp_path / "other", promptnet=folders["promptnet"])
    assert "## Limits of mine" not in (other / "README.md").read_text("utf-8")


def test_facts_are_checked_before_any_work(folders, tmp_path, capsys):
    with pytest.raises(ValueError, match="`base_model` must be the id of a model on the Hub"):
        export_pipeline("no/such/pipeline", tmp_path / "mine", base_model="two\nlines")
    with pytest.raises(ValueError, match="`license` must be the Hub's word"):
        push_pipeline("no/such/pipeline", "me/mine", license="two words")
    words = ["export", folders["pipeline"], str(tmp_path / "mine"), "--base-model", "[a](b)"]
    assert main(words) != 0 and "`base_model` must be the id" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("old", [True, False])
def test_what_can_not_be_written_is_kept(folders, tmp_path, temporary, no_room_for, old):
    target = tmp_path / "mine"
    if old:
        target.mkdir()
        (target / "README.md").write_text("my own words")
    no_room_for(target / "model_index.json" if old else target)
    with pytest.raises(OSError, match="mine' could not be written, .*: No space left on device. It is kept in '.*'."):
        export_pipeline(folders["pipeline"], target, force=old)
    (kept,) = temporary.iterdir()
    assert ProFusionPipeline.from_pretrained(kept / "mine").config.placeholder == "S*"
    assert not (target / "model_index.json").exists()


@pytest.mark.parametrize("part", ["source", "promptnet", "image_encoder"])
def test_places_that_are_none(folders, tmp_path, part):
    words = {"source": folders["pipeline"], part: "a" * 300}
    with pytest.raises(FileNotFoundError, match="must be a folder or file that exists, or the Hub id") as raised:
        export_pipeline(words.pop("source"), tmp_path / "mine", **words)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (dict(variant="../fp16"), "`variant` must be a word for names of files, such as fp16, got '../fp16'"),
        (dict(variant=""), "`variant` must be a word for names of files, such as fp16, got ''"),
        (dict(max_shard_size="many"), "`max_shard_size` must be a number of bytes, or a text such as 5GB, got 'many'"),
        (dict(max_shard_size=-1), "`max_shard_size` must be a number of bytes, or a text such as 5GB, got -1"),
        (dict(max_shard_size=True), "`max_shard_size` must be a number of bytes, .* got True"),
    ],
)
def test_names_and_sizes_of_files_that_are_none(tmp_path, words, match):
    for write in (export_pipeline, push_pipeline):
        with pytest.raises(ValueError, match=match):
            write("no/model", tmp_path / "mine", **words)


@pytest.mark.parametrize("target", ["a" * 300, "a\0b", "/proc/x"])
def test_targets_that_no_folder_can_be(target):
    with pytest.raises(OSError, match="`target` must be a p") as raised:
        export_pipeline("no/model", target)
    assert len(str(raised.value)) < 300


def test_of_two_at_a_time_neither_writes_over_the_other(folders, tmp_path, temporary, monkeypatch):
    save = ProFusionPipeline.save_pretrained

    def save_after_another(pipe, folder, **settings):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "model_index.json").write_text("another's")
        save(pipe, folder, **settings)

    monkeypatch.setattr(ProFusionPipeline, "save_pretrained", save_after_another)
    with pytest.raises(OSError, match="mine' could not be written, .*: Directory not empty. It is kept in '.*'."):
        export_pipeline(folders["pipeline"], tmp_path / "mine")
    assert (tmp_path / "mine" / "model_index.json").read_text() == "another's"
