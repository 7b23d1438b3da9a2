"""Export and push: a pipeline, or a Stable Diffusion and a PromptNet trained on it -> a repository of its own."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, create_repo, get_token, hf_hub_download
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel

from ..common.files import check_folder, scratch_folder, write_or_keep
from ..common.open_pipeline import load_pipeline, pipeline_source
from ..method import card
from ..method.call_inputs import check_components_fit
from ..method.checks import check_files, check_place
from ..method.modeling_promptnet import PromptNet
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.quoting import quote
from ..method.reference_images import load_reference_image
from ..method.whole_files import shown_path, writing
from .samples import draw_samples, push_samples, write_samples

DTYPES = ("float32", "float16", "bfloat16")


def export_pipeline(
    source: str | Path,
    target: str | Path,
    *,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    dtype: str = "float32",
    variant: str | None = None,
    max_shard_size: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    sample_prompts: list[str] | None = None,
    sample_image: str | Image.Image | None = None,
    sample_settings: dict[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write a pipeline as a folder that loads anywhere: weights, the method's code, an index, a model card.

    The card is that of the source, if it has one and none of its parts is replaced.

    Args:
        source: Folder or Hub id of a ProFusion pipeline, or "demo"; or of a Stable Diffusion: the one that `promptnet`
            was trained with, or any without it.
        target: The folder to write; a new one appears whole or not at all.
        promptnet: Folder or Hub id of a PromptNet that takes the place of the source's, such as what training wrote.
        image_encoder: Folder or Hub id of the CLIP vision tower that this PromptNet reads.
        dtype: Of the weights: float32, float16 or bfloat16.
        variant: A word in the names of the weight files, such as fp16; loading asks for it with `variant=`.
        max_shard_size: Largest size of a weight file, like 5GB; diffusers' own limit if not given.
        base_model: For the model card: Hub id of the model that PromptNet was trained with.
        license: For the model card: the Hub's word for a licence, such as openrail++.
        sample_prompts: For the model card: prompts that the model draws, as small pictures beside it. A card that is
            there stays as it is but for these.
        sample_image: Photo of whom it draws them, for a model that takes photos; the card shows them to everybody.
        sample_settings: Arguments of the call for these pictures.
        force: Whether to write into a folder that exists. A model card in it and weights of other variants stay.

    Returns:
        The folder.

    Raises:
        FileExistsError: `target` exists and `force` is not set.
        ValueError: `dtype` is another word, `base_model` is no Hub id, `license` is not one word, a component is
            missing or does not fit, or the samples can't be drawn.
        OSError: A model is not there, or `target` can't be written, tried beforehand; if it fails after the work, the
            sentence says where the pipeline is kept.

    Example:
        >>> export_pipeline("stable-diffusion-2", "mine", promptnet="runs/first/promptnet")  # doctest: +SKIP
    """
    card.check_facts(base_model=base_model, license=license)
    check_files(variant, max_shard_size)
    target = Path(target)
    if os.path.exists(target) and not force:
        raise FileExistsError(f"`target` must not exist yet, {shown_path(target)} does: `force` writes into it.")
    check_folder(target, "`target`")
    image = _sample_photo(sample_prompts, sample_image)
    pipe = _assemble(source, promptnet, image_encoder, dtype)
    samples = draw_samples(pipe, sample_prompts, **image, **(sample_settings or {})) if sample_prompts else []
    facts = dict(base_model=base_model, license=license)
    if promptnet is None and image_encoder is None:
        facts["readme"] = card_of(source, target.name, **facts)

    def save(folder: Path) -> None:
        pipe.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size, **facts)
        if samples:
            write_samples(folder, samples)

    def write(folder: Path) -> None:
        place = folder / target.name
        if force:
            save(place)
            return
        with writing(place):
            folder.mkdir(parents=True, exist_ok=True)
            with scratch_folder(folder) as scratch:
                save(scratch / target.name)
                os.replace(scratch / target.name, place)  # which fails if another process has written there meanwhile

    write_or_keep(write, target.parent)
    return target


def push_pipeline(
    source: str | Path,
    repo_id: str,
    *,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    dtype: str = "float32",
    variant: str | None = None,
    max_shard_size: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    sample_prompts: list[str] | None = None,
    sample_image: str | Image.Image | None = None,
    sample_settings: dict[str, Any] | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a pipeline as one commit: weights, the method's code, an index, a model card. A card there is kept.

    Sample pictures and the card that shows them are a second commit.
    A new repository's card is that of the source, if it has one and none of its parts is replaced.

    Args:
        source: As of [`export_pipeline`].
        repo_id: Repository on the Hub; it is made if it is not there.
        promptnet: As of [`export_pipeline`].
        image_encoder: As of [`export_pipeline`].
        dtype: As of [`export_pipeline`].
        variant: As of [`export_pipeline`].
        max_shard_size: As of [`export_pipeline`].
        base_model: As of [`export_pipeline`].
        license: As of [`export_pipeline`].
        sample_prompts: As of [`export_pipeline`]; the pictures are a commit of their own.
        sample_image: As of [`export_pipeline`].
        sample_settings: As of [`export_pipeline`].
        private: Whether a new repository is private; the account's default if not given.
        commit_message: Of the commit.
        create_pr: Whether to open a pull request rather than commit.

    Returns:
        Address of the commit; with samples, of the second.

    Raises:
        ValueError: There is no token for the Hub, `dtype` is another word, `base_model` is no Hub id, `license` is not
            one word, a component is missing or does not fit, or the samples can't be drawn.
        OSError: A model is not there, or the Hub refuses.

    Example:
        >>> push_pipeline("profusion-sd2", "me/profusion-sd2")  # doctest: +SKIP
    """
    card.check_facts(base_model=base_model, license=license)
    check_files(variant, max_shard_size)
    image = _sample_photo(sample_prompts, sample_image)
    repo_id = claim_repository(repo_id, private=private)  # before any model is loaded: a mistyped name is told at once
    pipe = _assemble(source, promptnet, image_encoder, dtype)
    samples = draw_samples(pipe, sample_prompts, **image, **(sample_settings or {})) if sample_prompts else []
    facts = dict(base_model=base_model, license=license)
    if promptnet is None and image_encoder is None:
        facts["readme"] = card_of(source, repo_id, **facts)
    files = dict(variant=variant, max_shard_size=max_shard_size)
    commit = pipe.push_to_hub(repo_id, commit_message=commit_message, create_pr=create_pr, **facts, **files)
    if samples:
        return push_samples(repo_id, samples, revision=commit.pr_revision)
    return commit.commit_url


def _sample_photo(prompts: list[str] | None, image: str | Image.Image | None) -> dict[str, Image.Image]:
    """What the call is told of whom it draws; read before any model is loaded."""
    if image is None:
        return {}
    if not prompts:
        raise ValueError("`sample_image` is for `sample_prompts`, of which there is none.")
    return {"image": load_reference_image(image, name="sample_image")}


def claim_repository(repo_id: str, *, private: bool | None = None) -> str:
    """Make a repository that will be pushed to, unless it is there.

    Args:
        repo_id: "name" or "owner/name".
        private: Whether a new one is private; the account's default if None.

    Returns:
        Its id, with the owner in front.

    Raises:
        ValueError: There is no token for the Hub, or the name can't be one.
        OSError: The Hub refuses.

    Example:
        >>> claim_repository("me/profusion-sd2", private=True)  # doctest: +SKIP
    """
    if get_token() is None:
        raise ValueError("Pushing needs a token of the Hub: `hf auth login`, or HF_TOKEN in the environment.")
    return create_repo(repo_id, private=private, exist_ok=True).repo_id


def _readme_of(source: str | Path) -> Path | None:
    """The card's file in a folder, or fetched from the Hub; None if there is none."""
    found = pipeline_source(source)
    if os.path.isdir(found):
        return file if (file := Path(found, "README.md")).is_file() else None
    try:
        return Path(hf_hub_download(found, "README.md"))
    except (OSError, ValueError):  # of huggingface_hub: a repository without one, or nothing but a cache without it
        return None


def card_of(source: str | Path, name: str, *, base_model: str | None = None, license: str | None = None) -> str | None:
    """The card of a source, for its new place.

    Args:
        source: As of [`export_pipeline`].
        name: Of the new place.
        base_model: As of [`export_pipeline`].
        license: As of [`export_pipeline`].

    Returns:
        Its text; None if there is none, or it lacks a fact that is known now.

    Example:
        >>> card_of("demo", "mine")[:3]
        '---'
    """
    file = _readme_of(source)
    if file is None:
        return None
    text = file.read_text(encoding="utf-8")
    facts = {key: fact for key, fact in dict(base_model=base_model, license=license).items() if fact}
    if facts and card.UNKNOWN in text:
        return None
    old = file.parent.name if os.path.isdir(pipeline_source(source)) else str(source)
    text = text.replace(f'"{old}"', f'"{name}"').replace(f"\n# {card.plain(old)}\n", f"\n# {card.plain(name)}\n")
    if not facts:
        return text
    changed = ModelCard(text, ignore_metadata_errors=True)
    vars(changed.data).update(facts)
    return str(changed)


def _assemble(
    source: str | Path, promptnet: str | None, image_encoder: str | None, dtype_name: str
) -> ProFusionPipeline:
    if dtype_name not in DTYPES:
        raise ValueError(f"`dtype` must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {quote(dtype_name)}.")
    dtype = getattr(torch, dtype_name)
    parts = {}
    for name, place in (("promptnet", promptnet), ("image_encoder", image_encoder)):
        if place is not None:
            check_place(name, place)
    if promptnet is not None:
        parts["promptnet"] = PromptNet.from_pretrained(promptnet, torch_dtype=dtype)
    if image_encoder is not None:
        parts["image_encoder"] = CLIPVisionModel.from_pretrained(image_encoder, dtype=dtype)
        parts["feature_extractor"] = CLIPImageProcessor.from_pretrained(image_encoder)
    pipe = load_pipeline(source, dtype=dtype, device="cpu", **parts)
    check_components_fit(pipe.components)
    return pipe
