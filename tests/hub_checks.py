"""Checks of loading and publishing that run in a process of their own: `python hub_checks.py SETTINGS.json [NAME ...]`.

`bare_*` run where nothing of this project is installed, `ours_*` where it is; `*_offline_*` where HF_HUB_OFFLINE is set
and "me/first" is in the cache. Each is a function of the settings that
`test_hub_ways.py` writes; the answer is a line of JSON, name -> None or what went wrong.
"""

import json
import shutil
import sys
import traceback
import urllib.request
import warnings
from functools import partial
from pathlib import Path

import torch

PROMPT, COLOUR = "a photo of S* on the beach", (200, 30, 60)


def latents(pipe) -> torch.Tensor:
    """Two steps of a pipeline; equal weights and code give equal numbers."""
    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = Image.new("RGB", (16, 16), COLOUR)
    return pipe(PROMPT, image=image, num_inference_steps=2, output_type="latent", generator=generator).images


def expect(pipe, settings: dict, which: str = "first") -> None:
    wanted = torch.load(settings["latents"][which], weights_only=True)
    torch.testing.assert_close(latents(pipe), wanted, rtol=0, atol=0)


def expect_as_recorded(pipe, settings: dict) -> None:
    """What the version that wrote the old repository drew with it, on another machine."""
    from safetensors.torch import load_file

    recorded = load_file(settings["old_latents"])["latents"]
    torch.testing.assert_close(latents(pipe), recorded, rtol=1e-3, atol=1e-3)


def refused(call, *words: str, case: str = "it") -> str:
    """What `call` says when it refuses."""
    try:
        call()
    except Exception as error:
        for word in words:
            assert word in str(error), error
        return str(error)
    raise AssertionError(f"{case} was not refused")


def ask(settings: dict, method: str, path: str, body: str = "") -> bytes:
    """One request to the test Hub itself, past the client."""
    data = body.encode() if method == "POST" else None
    with urllib.request.urlopen(urllib.request.Request(settings["hub"] + path, data, method=method)) as answer:
        return answer.read()


def code_that_ran() -> list[str]:
    return [name for name in sys.modules if "pipeline_profusion" in name or "modeling_promptnet" in name]


def xl_latents(pipe) -> torch.Tensor:
    """Two steps of a pipeline of Stable Diffusion XL with learnt words."""
    pipe.set_progress_bar_config(disable=True)
    subject = pipe.LearntSubject("red hat", class_noun="hat")
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, subject=subject, num_inference_steps=2, output_type="latent", generator=generator).images


def expect_xl(pipe, settings: dict) -> None:
    assert type(pipe).__name__ == "ProFusionXLPipeline", type(pipe)
    wanted = torch.load(settings["latents"]["xl"], weights_only=True)
    torch.testing.assert_close(xl_latents(pipe), wanted, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- nothing installed


def bare_our_package_is_not_there(settings):
    refused(lambda: __import__("profusion_pipeline"), "No module named 'profusion_pipeline'")


def bare_without_the_flag_no_code_runs(settings):
    from diffusers import DiffusionPipeline

    before = code_that_ran()
    for source in (settings["first"], "me/first"):
        refused(
            lambda source=source: DiffusionPipeline.from_pretrained(source), "trust_remote_code=True", "custom code"
        )
    assert code_that_ran() == before


def bare_folder(settings):
    from diffusers import DiffusionPipeline

    expect(DiffusionPipeline.from_pretrained(settings["first"], trust_remote_code=True), settings)


def bare_hub(settings):
    from diffusers import DiffusionPipeline

    expect(DiffusionPipeline.from_pretrained("me/first", trust_remote_code=True), settings)


def bare_a_dot_in_the_name(settings):
    """diffusers makes a module's name of it, in which no relative import finds its way."""
    from diffusers import DiffusionPipeline

    expect(DiffusionPipeline.from_pretrained("me/first-2.1", trust_remote_code=True), settings)


def bare_device_map(settings):
    from diffusers import DiffusionPipeline

    for source in (settings["first"], "me/first"):
        for device_map in ("cpu", "balanced"):
            expect(DiffusionPipeline.from_pretrained(source, device_map=device_map, trust_remote_code=True), settings)


def bare_components_of_the_caller(settings):
    from diffusers import DiffusionPipeline

    parts = {"promptnet": DiffusionPipeline.from_pretrained(settings["first"], trust_remote_code=True).promptnet}
    for source in (settings["first"], "me/first"):
        for how in ({}, {"device_map": "balanced"}):
            pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=True, **how, **parts)
            assert pipe.promptnet is parts["promptnet"]
            expect(pipe, settings)


def asks_for_the_commit() -> bool:
    from diffusers.utils.import_utils import compare_versions

    return compare_versions("diffusers", ">=", "0.40")


def bare_local_files_only(settings):
    """Nothing is downloaded, but for a repository's code diffusers asks the Hub for the commit since 0.40."""
    from diffusers import DiffusionPipeline

    DiffusionPipeline.from_pretrained("me/first", trust_remote_code=True)
    ask(settings, "GET", "/-/log")
    expect(DiffusionPipeline.from_pretrained("me/first", local_files_only=True, trust_remote_code=True), settings)
    asked = json.loads(ask(settings, "GET", "/-/log"))
    assert bool(asked) == asks_for_the_commit() and not any(line.startswith("GET /me/") for line in asked), asked


def bare_offline_by_id(settings):
    """For the same reason, code cannot be loaded by id without a connection since 0.40."""
    from diffusers import DiffusionPipeline

    for how in ({}, {"local_files_only": True}):
        load = partial(DiffusionPipeline.from_pretrained, "me/first", trust_remote_code=True, **how)
        if asks_for_the_commit():
            refused(load, "offline mode is enabled")
        else:
            expect(load(), settings)


def bare_offline_by_the_folder_in_the_cache(settings):
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    ask(settings, "GET", "/-/log")
    folder = Path(hf_hub_download("me/first", "model_index.json")).parent
    expect(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), settings)
    assert json.loads(ask(settings, "GET", "/-/log")) == []


def bare_saving_again_writes_the_same(settings):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(settings["first"], trust_remote_code=True)
    for target in (Path(settings["work"], "again"), Path(settings["work"], "and_again")):
        pipe.save_pretrained(target)
        for path in Path(settings["first"]).rglob("*"):
            if path.is_file() and path.name != "README.md" and ".fp16." not in path.name:
                assert (target / path.relative_to(settings["first"])).read_bytes() == path.read_bytes(), path
        pipe = DiffusionPipeline.from_pretrained(target, trust_remote_code=True)
    expect(pipe, settings)


def bare_two_versions(settings):
    from diffusers import DiffusionPipeline

    pipes = {}
    for name, source in (
        ("first", settings["first"]),
        ("second", settings["second"]),
        ("first of the Hub", "me/first"),
        ("second of the Hub", "me/second"),
        ("first again", settings["first"]),
    ):
        pipes[name] = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    for name, pipe in pipes.items():
        expect(pipe, settings, name.split()[0])
    copy = Path(settings["work"], "second_copy")
    pipes["second"].save_pretrained(copy)
    code = [path.relative_to(copy) for path in copy.rglob("*.py")]
    assert len(code) == 3
    assert all((copy / path).read_bytes() == Path(settings["second"], path).read_bytes() for path in code)


def bare_stable_diffusion_with_our_code(settings):
    from diffusers import DiffusionPipeline

    whole = DiffusionPipeline.from_pretrained(settings["first"], trust_remote_code=True)
    parts = {name: whole.components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    for source in (settings["stable_diffusion"], "me/stable_diffusion"):
        for code in (settings["first"], "me/first"):
            pipe = DiffusionPipeline.from_pretrained(source, custom_pipeline=code, trust_remote_code=True, **parts)
            assert type(pipe).__name__ == "ProFusionPipeline" and pipe.promptnet is whole.promptnet
            expect(pipe, settings)


def bare_from_pipe_shares_components_both_ways(settings):
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    whole = DiffusionPipeline.from_pretrained(settings["first"], trust_remote_code=True)
    parts = {name: whole.components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    sd = StableDiffusionPipeline.from_pretrained(settings["stable_diffusion"])
    pipe = type(whole).from_pipe(sd, **parts)
    assert all(pipe.components[name] is sd.components[name] for name in ("unet", "vae", "text_encoder", "tokenizer"))
    expect(pipe, settings)


def bare_old_repository(settings):
    from diffusers import DiffusionPipeline

    for source in (settings["old"], "me/old"):
        expect_as_recorded(DiffusionPipeline.from_pretrained(source, trust_remote_code=True), settings)


def bare_xl(settings):
    from diffusers import DiffusionPipeline

    expect_xl(DiffusionPipeline.from_pretrained(settings["xl"], trust_remote_code=True), settings)
    ask(settings, "GET", "/-/log")
    expect_xl(DiffusionPipeline.from_pretrained("me/xl", trust_remote_code=True), settings)
    asked = json.loads(ask(settings, "GET", "/-/log"))
    assert 0 < len(asked) <= 60, (len(asked), asked)


def bare_xl_code_on_another_base(settings):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        settings["stable_diffusion_xl"], custom_pipeline="me/xl", trust_remote_code=True
    )
    assert pipe.promptnet is None
    expect_xl(pipe, settings)


def bare_xl_saved_again(settings):
    from diffusers import DiffusionPipeline

    again = Path(settings["work"], "xl_again")
    DiffusionPipeline.from_pretrained(settings["xl"], trust_remote_code=True).save_pretrained(again)
    expect_xl(DiffusionPipeline.from_pretrained(again, trust_remote_code=True), settings)
    assert (again / "pipeline.py").read_bytes() == Path(settings["xl"], "pipeline.py").read_bytes()


def ours_xl(settings):
    from profusion_pipeline import ProFusionXLPipeline

    before = code_that_ran()
    for source in (settings["xl"], "me/xl", settings["stable_diffusion_xl"]):
        expect_xl(ProFusionXLPipeline.from_pretrained(source), settings)
    assert not [name for name in set(code_that_ran()) - set(before) if "diffusers_modules" in name]


def bare_a_load_makes_few_requests(settings):
    """At most 60 with an empty cache, and 10 with a full one: diffusers 0.42 makes 5, 0.38 makes 8."""
    from diffusers import DiffusionPipeline

    cache = Path(settings["work"], "counted")
    for at_most in (60, 10):
        ask(settings, "GET", "/-/log")
        DiffusionPipeline.from_pretrained("me/first", cache_dir=cache, trust_remote_code=True)
        asked = json.loads(ask(settings, "GET", "/-/log"))
        assert 0 < len(asked) <= at_most, (len(asked), asked)


# ------------------------------------------------------------------------------------------ our package is there


def ours_folder_and_hub_run_no_code_of_the_repository(settings):
    from profusion_pipeline import ProFusionPipeline

    for source in (settings["trapped"], "me/trapped"):
        pipe = ProFusionPipeline.from_pretrained(source)
        assert type(pipe) is ProFusionPipeline
        expect(pipe, settings)
    refused(lambda: ProFusionPipeline.from_pretrained(settings["trapped_more"]))
    refused(lambda: ProFusionPipeline.from_pretrained("me/trapped_more"))
    assert not Path(settings["marker"]).exists()


def ours_code_of_another_component_stays_out(settings):
    from profusion_pipeline import ProFusionPipeline

    refused(lambda: ProFusionPipeline.from_pretrained(settings["trapped_unet"]), "trust_remote_code=True")
    refused(lambda: ProFusionPipeline.from_pretrained("me/trapped_unet"), "trust_remote_code=True")
    assert not Path(settings["marker"]).exists()


def ours_offline_by_id(settings):
    from profusion_pipeline import ProFusionPipeline

    ask(settings, "GET", "/-/log")
    expect(ProFusionPipeline.from_pretrained("me/first"), settings)
    assert json.loads(ask(settings, "GET", "/-/log")) == []


def ours_local_files_only(settings):
    from profusion_pipeline import ProFusionPipeline

    ProFusionPipeline.from_pretrained("me/first")
    ask(settings, "GET", "/-/log")
    expect(ProFusionPipeline.from_pretrained("me/first", local_files_only=True), settings)
    assert json.loads(ask(settings, "GET", "/-/log")) == []


def ours_named_revision(settings):
    from profusion_pipeline import ProFusionPipeline

    expect(ProFusionPipeline.from_pretrained("me/moved", revision="v1"), settings)
    now = ProFusionPipeline.from_pretrained("me/moved")
    assert now.config.placeholder == "moved"


def ours_variant(settings):
    from profusion_pipeline import ProFusionPipeline

    for source in (settings["first"], "me/first"):
        pipe = ProFusionPipeline.from_pretrained(source, variant="fp16", cache_dir=Path(settings["work"], "variant"))
        whole = ProFusionPipeline.from_pretrained(settings["first"])
        for name in ("promptnet", "unet", "vae", "text_encoder", "image_encoder"):
            for key, value in getattr(pipe, name).state_dict().items():
                rounded = getattr(whole, name).state_dict()[key]
                assert torch.equal(value, rounded.half().float() if value.is_floating_point() else rounded), (name, key)
    downloaded = [path.name for path in Path(settings["work"], "variant").rglob("*.safetensors")]
    assert len(downloaded) == 5 and all(".fp16." in name for name in downloaded)


def ours_dtypes(settings):
    from profusion_pipeline import ProFusionPipeline

    models = ("promptnet", "unet", "vae", "text_encoder", "image_encoder")
    for source in (settings["first"], "me/first"):
        for keyword in ("dtype", "torch_dtype"):
            pipe = ProFusionPipeline.from_pretrained(source, **{keyword: torch.bfloat16})
            assert {getattr(pipe, name).dtype for name in models} == {torch.bfloat16}
        pipe = ProFusionPipeline.from_pretrained(source, dtype={"vae": torch.float32, "default": torch.float16})
        assert {name: getattr(pipe, name).dtype for name in models} == {
            name: torch.float32 if name == "vae" else torch.float16 for name in models
        }


def ours_half_precision_files_load_in_one_dtype(settings):
    from diffusers import DiffusionPipeline

    from profusion_pipeline import ProFusionPipeline

    half = Path(settings["work"], "half")
    ProFusionPipeline.from_pretrained(settings["first"], dtype=torch.float16).save_pretrained(half)
    models = ("promptnet", "unet", "vae", "text_encoder", "image_encoder")
    for pipe in (
        ProFusionPipeline.from_pretrained(half),
        DiffusionPipeline.from_pretrained(half, trust_remote_code=True),
    ):
        assert {getattr(pipe, name).dtype for name in models} == {torch.float32}


def ours_device_map(settings):
    from profusion_pipeline import ProFusionPipeline

    for source in (settings["first"], "me/first"):
        for device_map in ("cpu", "balanced"):
            expect(ProFusionPipeline.from_pretrained(source, device_map=device_map), settings)


def ours_components_of_the_caller(settings):
    from profusion_pipeline import ProFusionPipeline, PromptNet

    promptnet = PromptNet.from_pretrained(settings["first"], subfolder="promptnet")
    for source in (settings["first"], "me/first"):
        pipe = ProFusionPipeline.from_pretrained(source, promptnet=promptnet)
        assert pipe.promptnet is promptnet
        expect(pipe, settings)
    parts = {name: pipe.components[name] for name in ("image_encoder", "feature_extractor")}
    expect(ProFusionPipeline.from_pretrained("me/stable_diffusion", promptnet=promptnet, **parts), settings)


def ours_pushed_and_loaded(settings):
    from huggingface_hub import HfApi

    from profusion_pipeline import ProFusionPipeline

    pipe = ProFusionPipeline.from_pretrained(settings["first"])
    ask(settings, "GET", "/-/log")
    commit = pipe.push_to_hub("me/pushed", base_model="someone/stable-diffusion-2-base", license="openrail++")
    posted = json.loads(ask(settings, "GET", "/-/log"))
    assert sum("/commit/" in line for line in posted) == 1
    assert HfApi().model_info("me/pushed").sha == commit.oid
    expect(ProFusionPipeline.from_pretrained("me/pushed"), settings)
    card = Path(HfApi().hf_hub_download("me/pushed", "README.md")).read_text()
    for words in ("license: openrail++", "base_model: someone/stable-diffusion-2-base", '"me/pushed"'):
        assert words in card, words


def ours_pushing_keeps_the_card_and_takes_old_files_away(settings):
    from huggingface_hub import HfApi

    from profusion_pipeline import ProFusionPipeline

    hub = HfApi()
    hub.create_repo("me/kept", exist_ok=True)
    hub.upload_file(repo_id="me/kept", path_or_fileobj=b"my own words", path_in_repo="README.md")
    hub.upload_folder(repo_id="me/kept", folder_path=settings["second"], ignore_patterns=["README.md"])
    pipe = ProFusionPipeline.from_pretrained(settings["first"])
    pipe.push_to_hub("me/kept", max_shard_size="50KB")
    pipe.push_to_hub("me/kept", variant="fp16")
    pipe.push_to_hub("me/kept")
    names = hub.list_repo_files("me/kept")
    assert Path(hub.hf_hub_download("me/kept", "README.md")).read_bytes() == b"my own words"
    local = Path(settings["work"], "kept")
    for variant in ("fp16", None):
        pipe.save_pretrained(local, variant=variant)
    ours = {path.relative_to(local).as_posix() for path in local.rglob("*")}
    assert set(names) - ours == {".gitattributes"}
    expect(ProFusionPipeline.from_pretrained("me/kept"), settings)


OWN_FILES = {"my_notes.py", "helpers.py", "notes/profusion_mine.py"}


def write_own_files(folder: Path) -> None:
    for path in OWN_FILES:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("print('mine')\n")


def assert_code_is_new(names: set[str], settings: dict) -> None:
    """Only files of a new save's code are left, and the user's own."""
    first = {path.relative_to(settings["first"]).as_posix() for path in Path(settings["first"]).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == first | OWN_FILES


def ours_malformed_index(settings):
    from huggingface_hub import HfApi

    from profusion_pipeline import ProFusionPipeline

    hub = HfApi()
    hub.create_repo("me/malformed", exist_ok=True)
    index = json.loads(Path(settings["first"], "model_index.json").read_text())
    for content, words in (
        ("nothing", "must be JSON"),
        (json.dumps(index | {"_class_name": []}), "`_class_name` must be"),
        (json.dumps(index | {"unet": ["diffusers"]}), "'unet' must be a pair"),
        (json.dumps(index | {"unet": [None, None]}), "the components `unet`"),
        (json.dumps(index | {"unet": ["diffusers", "UNet3000"]}), "`unet` must be a class"),
    ):
        hub.upload_file(repo_id="me/malformed", path_or_fileobj=content.encode(), path_in_repo="model_index.json")
        refused(lambda: ProFusionPipeline.from_pretrained("me/malformed"), words, "model_index.json", case=words)


def ours_old_repository(settings):
    from profusion_pipeline import ProFusionPipeline

    for source in (settings["old"], "me/old"):
        expect_as_recorded(ProFusionPipeline.from_pretrained(source), settings)


def ours_saving_over_an_old_repository(settings):
    from diffusers import DiffusionPipeline

    from profusion_pipeline import ProFusionPipeline

    folder = Path(shutil.copytree(settings["old"], Path(settings["work"], "saved_over")))
    write_own_files(folder)
    for _ in range(2):
        ProFusionPipeline.from_pretrained(folder).save_pretrained(folder)
        assert_code_is_new({path.relative_to(folder).as_posix() for path in folder.rglob("*")}, settings)
        expect_as_recorded(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), settings)


def ours_pushing_over_an_old_repository(settings):
    from diffusers import DiffusionPipeline
    from huggingface_hub import HfApi

    from profusion_pipeline import ProFusionPipeline

    hub = HfApi()
    folder = Path(shutil.copytree(settings["old"], Path(settings["work"], "pushed_over")))
    write_own_files(folder)
    hub.create_repo("me/pushed_over", exist_ok=True)
    hub.upload_folder(repo_id="me/pushed_over", folder_path=folder)
    for _ in range(2):
        ProFusionPipeline.from_pretrained("me/pushed_over").push_to_hub("me/pushed_over")
        assert_code_is_new(set(hub.list_repo_files("me/pushed_over")), settings)
        expect_as_recorded(DiffusionPipeline.from_pretrained("me/pushed_over", trust_remote_code=True), settings)


def ours_saving_with_push_to_hub(settings):
    from profusion_pipeline import ProFusionPipeline

    pipe = ProFusionPipeline.from_pretrained(settings["first"])
    pipe.save_pretrained(Path(settings["work"], "saved_and_pushed"), push_to_hub=True, commit_message="whole")
    expect(ProFusionPipeline.from_pretrained("me/saved_and_pushed"), settings)


def ours_promptnet_alone(settings):
    from profusion_pipeline import PromptNet

    promptnet = PromptNet.from_pretrained(settings["first"], subfolder="promptnet")
    promptnet.push_to_hub("me/promptnet")
    loaded = PromptNet.from_pretrained("me/promptnet")
    for name, value in promptnet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def ours_interrupted_upload_leaves_nothing(settings):
    from huggingface_hub import HfApi

    from profusion_pipeline import ProFusionPipeline

    pipe = ProFusionPipeline.from_pretrained(settings["first"])
    for refusal in ("PUT /-/lfs/", "POST .*/commit/"):
        pipe.promptnet.conv_in.bias.data += 1  # another file, which the server does not have yet
        ask(settings, "POST", "/-/refuse", refusal)
        try:
            refused(lambda: pipe.push_to_hub("me/interrupted"))
        finally:
            ask(settings, "POST", "/-/refuse")
        assert HfApi().list_repo_files("me/interrupted") == [".gitattributes"]
        refused(lambda: ProFusionPipeline.from_pretrained("me/interrupted"))
    pipe.push_to_hub("me/interrupted")
    ProFusionPipeline.from_pretrained("me/interrupted")


def ours_interrupted_download_loads_nothing(settings):
    from profusion_pipeline import ProFusionPipeline

    cache = Path(settings["work"], "interrupted")
    files = [path.relative_to(settings["first"]).as_posix() for path in Path(settings["first"]).rglob("*.*")]
    needed = [path for path in files if not path.endswith((".py", ".md")) and ".fp16." not in path]
    assert len(needed) > 15
    for path in needed:
        ask(settings, "POST", "/-/refuse", f"GET /me/first/resolve/.*/{path}$")
        try:
            for offline in (False, True):
                how = dict(cache_dir=cache, local_files_only=offline)
                refused(lambda how=how: ProFusionPipeline.from_pretrained("me/first", **how), case=path)
        finally:
            ask(settings, "POST", "/-/refuse")
        shutil.rmtree(cache)
    expect(ProFusionPipeline.from_pretrained("me/first", cache_dir=cache), settings)


CHECKS = {name: check for name, check in globals().items() if name.startswith(("bare_", "ours_"))}


def main(settings_file: str, *names: str) -> None:
    settings = json.loads(Path(settings_file).read_text())
    outcome = {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                CHECKS[name](settings)
            outcome[name] = None
        except Exception:
            outcome[name] = traceback.format_exc()
    print("\n" + json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
