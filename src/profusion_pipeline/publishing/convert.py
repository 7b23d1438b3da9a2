"""The authors' 2023 checkpoint layout -> a ProFusion pipeline folder that diffusers of today loads.

theirs        ours                  what happens
openclip/     text_encoder/         CLIP's text tower without its last layer: sampling reads the last but one
              image_encoder/        CLIP's vision tower
              feature_extractor/    written anew, for the tower's image size
promptnet/    promptnet/            without the residual heads, which sampling multiplies by zero
scheduler/    scheduler/            DDIM with the same betas, as the authors' sampling needs it
tokenizer/, unet/, vae/             the same, weights as safetensors
"""

import contextlib
import json
import logging
import os
import pickle
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from transformers.utils import logging as transformers_logging

from ..common.files import check_folder, whole_folder, write_or_keep
from ..method.modeling_promptnet import PromptNet
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.quoting import brief, quote
from ..method.whole_files import shown_path

PIPELINE_CLASS = "StableDiffusionPromptNetPipeline"
# Folder: (config file, the entry that names its class, the name).
COMPONENTS = {
    "openclip": ("config.json", "model_type", "clip"),
    "promptnet": ("config.json", "_class_name", "PromptNetModel"),
    "scheduler": ("scheduler_config.json", None, None),  # any class: its betas are what is taken over
    "tokenizer": ("tokenizer_config.json", None, None),
    "unet": ("config.json", "_class_name", "UNet2DConditionModel"),
    "vae": ("config.json", "_class_name", "AutoencoderKL"),
}
TOKENIZER_FILES = ("vocab.json", "merges.txt")
NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
DDIM_SETTINGS = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}

# PromptNetModel settings that PromptNet has under another name, and those of which it knows one value only.
RENAMED = {"prompt_channel": "text_embed_dim"}
ONLY_VALUE = {
    "with_noise": True,
    "center_input_sample": False,
    "conv_in_kernel": 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "time_cond_proj_dim": None,
    "timestep_post_act": None,
}
RESIDUAL_HEADS = (
    "residual_projections",
    "residual_projections_2",
    "mid_residual_projection",
    "mid_residual_projection_2",
)

AUTHORS_PLACEHOLDER = "holder"  # what their prompts call the subject


def convert_checkpoint(source: str | os.PathLike, target: str | os.PathLike, *, force: bool = False) -> list[str]:
    """Write a checkpoint in the layout of the authors' 2023 release as a ProFusion pipeline.

    `target` appears whole or not at all. Pickled weights (`.bin`) are read as tensors only, no code in them runs.
    Weights are written as float32 safetensors, one component after another: the memory that it takes is that of the
    largest (`benchmarks/README.md` has the figures for Stable Diffusion 2).

    Args:
        source: Folder in the authors' layout, or the id of such a repository on the Hub, which is downloaded into the
            Hub's cache.
        target: The folder to write, for `ProFusionPipeline.from_pretrained`.
        force: Whether to replace `target` if it exists. The old one stays until the new one is complete.

    Returns:
        What was changed or left out on the way, one sentence each.

    Raises:
        FileExistsError: `target` exists and `force` is not set, or `target` is a file.
        ValueError: `source` is neither a folder nor a repository that can be had, or is not in that layout: a folder,
            setting or weight is missing, a class is another one, or shapes do not fit one another.
        OSError: `target` can't be written, tried beforehand; if it fails after the work, the sentence says where the
            pipeline is kept.

    Example:
        >>> from profusion_pipeline import ProFusionPipeline
        >>> facts = convert_checkpoint("ffhq_checkpoint", "profusion_ffhq")  # doctest: +SKIP
        >>> pipe = ProFusionPipeline.from_pretrained("profusion_ffhq")  # doctest: +SKIP
    """
    target = Path(target)
    _check_target(target, source, force)
    check_folder(target.parent, "`target`")
    check_folder(target, "`target`")
    folder = _local_folder(source)
    _check_layout(folder)
    facts: list[str] = []
    write_or_keep(lambda place: facts.extend(_convert(folder, place / target.name, replace=force)), target.parent)
    return facts


def _convert(folder: Path, target: Path, *, replace: bool) -> list[str]:
    """Write the pipeline; what was changed or left out on the way."""
    with _quiet_libraries(), whole_folder(target, replace=replace) as new:
        clip = CLIPConfig.from_pretrained(folder / "openclip")
        clip.text_config.num_hidden_layers -= 1
        promptnet, left_out = load_promptnet(folder / "promptnet")
        components = {
            "promptnet": _written(new / "promptnet", promptnet),
            "vae": _written(new / "vae", _load_whole(AutoencoderKL, folder / "vae")),
            "unet": _written(new / "unet", _load_whole(UNet2DConditionModel, folder / "unet")),
            "text_encoder": _written(
                new / "text_encoder", _load_whole(CLIPTextModel, folder / "openclip", config=clip.text_config)
            ),
            "image_encoder": _written(
                new / "image_encoder", _load_whole(CLIPVisionModel, folder / "openclip", config=clip.vision_config)
            ),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "scheduler": DDIMScheduler.from_config(
                _read_json(folder / "scheduler", "scheduler_config.json"), **DDIM_SETTINGS
            ),
            "feature_extractor": _make_feature_extractor(clip.vision_config.image_size),
        }
        for name in ("tokenizer", "scheduler", "feature_extractor"):
            components[name].save_pretrained(new / name)
        _check_fit(folder, components)
        pipeline = ProFusionPipeline(**components, placeholder_alias=AUTHORS_PLACEHOLDER)
        pipeline.save_config(new)
        pipeline.complete_repository(new, target.name)
    return _facts(folder, components, left_out)


def _check_target(target: Path, source: str | os.PathLike, force: bool) -> None:
    if os.path.exists(target) and not os.path.isdir(target):
        raise FileExistsError(f"`target` must be a folder, {shown_path(target)} is a file.")
    if os.path.isdir(target) and not force:
        raise FileExistsError(f"`target` must not exist yet, {shown_path(target)} does: `force` replaces it.")
    # `force` would delete what it reads.
    if os.path.isdir(source) and Path(source).resolve().is_relative_to(target.resolve()):
        raise ValueError(f"`target` must not be `source` or a folder around it, got {shown_path(target)}.")


def _local_folder(source: str | os.PathLike) -> Path:
    if os.path.isdir(source):
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.txt", "*.bin", "*.safetensors"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"`source` must be a folder or a repository on the Hub, {shown_path(source)} is no folder here, "
            f"and the Hub says: {brief(error)}."
        ) from error


def _check_layout(folder: Path) -> None:
    """The index, every folder, the class of each and the scheduler's betas: all that can be seen without weights."""
    name = _read_json(folder, "model_index.json").get("_class_name")
    if name != PIPELINE_CLASS:
        raise _not_the_layout(folder, f"model_index.json names the pipeline {quote(name)}, expected {PIPELINE_CLASS!r}")
    configs = {part: _read_json(folder / part, file) for part, (file, _, _) in COMPONENTS.items()}
    for part, (file, key, expected) in COMPONENTS.items():
        if key is not None and configs[part].get(key) != expected:
            raise _not_the_layout(
                folder, f"{part}/{file} has {key} {quote(configs[part].get(key))}, expected {expected!r}"
            )
    for file in TOKENIZER_FILES:
        if not (folder / "tokenizer" / file).is_file():
            raise _not_the_layout(folder, f"tokenizer/{file} is missing")
    for key in NOISE_SCHEDULE:
        if key not in configs["scheduler"]:
            raise _not_the_layout(folder, f"scheduler/scheduler_config.json has no {key}")


def _read_json(folder: Path, file: str) -> dict:
    if not (folder / file).is_file():
        raise _not_the_layout(folder, f"{file} is missing")
    try:
        return json.loads((folder / file).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise _not_the_layout(folder, f"{file} is not JSON ({brief(error)})") from error


def _not_the_layout(folder: Path, what: str) -> ValueError:
    return ValueError(f"`source` must be in the layout of the authors' release (2023), in {shown_path(folder)} {what}.")


def _load_whole(model_class, folder: Path, **kwargs):
    """from_pretrained that takes no half: it fills what a file lacks with random numbers and only warns."""
    try:
        model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise _not_the_layout(folder, f"the weights cannot be loaded: {brief(error)}") from error
    if info["missing_keys"]:
        raise _not_the_layout(folder, f"weights are missing: {_shortened(info['missing_keys'])}")
    return model.to(torch.float32)


def _written(folder: Path, model: torch.nn.Module) -> torch.nn.Module:
    """The model, on disk now and empty here: what follows has the memory for itself."""
    model.save_pretrained(folder)
    return model.to("meta")


def _make_feature_extractor(size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def load_promptnet(folder: str | os.PathLike) -> tuple[PromptNet, list[str]]:
    """Read the authors' PromptNetModel as a PromptNet.

    Args:
        folder: Its folder: `config.json` and `diffusion_pytorch_model.bin` or `.safetensors`, whole or in shards.

    Returns:
        The PromptNet, in float32, and the names of the weights that it has no place for: the residual heads.

    Raises:
        ValueError: Weights or settings are missing, do not fit one another, or PromptNet has no counterpart of them.

    Example:
        >>> promptnet, left_out = load_promptnet("ffhq_checkpoint/promptnet")  # doctest: +SKIP
    """
    folder = Path(folder)
    config = _read_json(folder, "config.json")
    for key, value in ONLY_VALUE.items():
        if config.get(key, value) != value:
            raise _not_the_layout(folder, f"config.json has {key} {quote(config[key])}, PromptNet knows only {value!r}")
    weights = _read_weights(folder)
    left_out = [name for name in weights if name.split(".")[0] in RESIDUAL_HEADS]
    for name in left_out:
        del weights[name]
    if "vision_embedding.weight" not in weights:
        raise _not_the_layout(folder, "weights are missing: vision_embedding.weight")

    settings = {RENAMED.get(key, key): value for key, value in config.items()}
    settings["image_embed_dim"] = weights["vision_embedding.weight"].shape[1]  # fixed in the authors' code
    known = signature(PromptNet.__init__).parameters
    with torch.device("meta"):
        promptnet = PromptNet.from_config({key: value for key, value in settings.items() if key in known})
    try:
        promptnet.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise _not_the_layout(folder, f"the weights do not fit: {brief(error)}") from error
    return promptnet.to(torch.float32).eval(), left_out


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a component, mapped from the file(s) rather than read into memory."""
    for file in (folder / "diffusion_pytorch_model.safetensors", folder / "diffusion_pytorch_model.bin"):
        index = file.with_name(f"{file.name}.index.json")
        if index.is_file():
            shards = [folder / name for name in sorted(set(_read_json(folder, index.name)["weight_map"].values()))]
        elif file.is_file():
            shards = [file]
        else:
            continue
        return {name: tensor for shard in shards for name, tensor in _read_tensors(shard).items()}
    raise _not_the_layout(folder, "diffusion_pytorch_model.safetensors and diffusion_pytorch_model.bin are missing")


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise _not_the_layout(file.parent, f"{file.name} cannot be read: {brief(error)}") from error


def _check_fit(folder: Path, components: dict) -> None:
    config = {name: components[name].config for name in ("vae", "text_encoder", "unet", "promptnet", "image_encoder")}
    pairs = {
        "promptnet's pseudo words and openclip's text": (
            config["promptnet"].text_embed_dim,
            config["text_encoder"].hidden_size,
        ),
        "promptnet's vision states and openclip's": (
            config["promptnet"].image_embed_dim,
            config["image_encoder"].hidden_size,
        ),
        "unet's text states and openclip's": (config["unet"].cross_attention_dim, config["text_encoder"].hidden_size),
        "promptnet's latents and vae's": (config["promptnet"].in_channels, config["vae"].latent_channels),
        "unet's latents and vae's": (config["unet"].in_channels, config["vae"].latent_channels),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise _not_the_layout(folder, f"the widths of {what} must agree, got {one} and {other}")


def _facts(folder: Path, components: dict, left_out: list[str]) -> list[str]:
    layers = components["text_encoder"].config.num_hidden_layers
    size = components["image_encoder"].config.image_size
    facts = [
        f"openclip became text_encoder ({layers} of {layers + 1} layers: sampling reads the last but one) and "
        "image_encoder; its projections, which neither needs, were left out.",
        f"feature_extractor is new: CLIP's, for pictures of {size} x {size}.",
    ]
    if left_out:
        heads = ", ".join(sorted({name.split(".")[0] for name in left_out}))
        facts.append(
            f"promptnet lost the {len(left_out)} tensors of its residual heads ({heads}): sampling multiplied what "
            "they gave by zero."
        )
    theirs, ours = _read_json(folder / "scheduler", "scheduler_config.json"), components["scheduler"].config
    changed = {key for key in ("_class_name", *DDIM_SETTINGS) if theirs.get(key) != ours[key]}
    if changed:
        changes = ", ".join(f"{key} {theirs.get(key)!r} became {ours[key]!r}" for key in sorted(changed))
        facts.append(f"scheduler keeps its betas, but {changes}: Fusion Sampling was made for that.")
    return facts


def _shortened(names, limit: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Both libraries report every left-out weight as a problem; what matters is checked here and raised."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bar) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
