"""Pictures that say how they were made: a record of prompt, seed, settings and weights, in the picture's own file.

In PNG the record is a text chunk named `profusion`; in JPEG, WebP and AVIF it is EXIF's `UserComment`. It never holds a
path, a user's name or the reference photo: of what lies in files here there is a hash, by which it is known again.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import logging
from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD, Base

from ..method import base_hash, card, concept_file, picture_file, pipeline_profusion, quoting
from ..method.quoting import quote
from . import learnt_files
from .layout import NAMES as LAYOUT
from .layout import Read
from .open_pipeline import DEMO

logger = logging.get_logger(__name__)

CHUNK = "profusion"  # the name of the text chunk in a PNG
WITH_EXIF = ("JPEG", "WEBP", "AVIF")
EXIF_BYTES = 60_000  # a JPEG holds 65,533 bytes of EXIF
LOCAL = "local"  # all that is said of where a file or folder of this machine lies
BATCH = ("prompts", "pictures", "number")
MOST_PICTURES = 1024  # of one call, in a record that is believed

# What the call takes and a record can't say, or says in another place.
NOT_SETTINGS = """self prompt image subject concept generator latents prompt_embeds negative_prompt_embeds output_type
    init_image mask_image control_image
    return_dict cross_attention_kwargs callback_on_step_end callback_on_step_end_tensor_inputs base_inputs
    recipe pooled_prompt_embeds negative_pooled_prompt_embeds settings""".split()

# What the IPTC's vocabulary calls a picture that a trained model drew.
DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE}"/></rdf:RDF></x:xmpmeta>"""


def record_of(
    pipe: pipeline_profusion.ProFusionPipeline,
    *,
    model: str | Path,
    prompt: str,
    seed: int,
    settings: Mapping[str, Any],
    references: Sequence[tuple[str | Path, Image.Image]] = (),
    concept: tuple[str | Path, concept_file.Concept] | None = None,
    learnt: learnt_files.Learnt | None = None,
    layout: Read | None = None,
    batch: tuple[int, int, int] = (1, 1, 0),
) -> dict[str, Any]:
    """What is to be said of a picture that a call drew.

    Args:
        pipe: The pipeline that drew it.
        model: Where the pipeline came from: folder, Hub id or "demo". Of a folder only that it was one is said.
        prompt: The picture's own.
        seed: Of the picture's own generator, on the CPU.
        settings: Those that the call was given, as for this picture alone; the others have the call's defaults.
        references: Who S* was: where each photo came from and what it was.
        concept: In their place, where the concept came from and what it was.
        learnt: In their place, words that others have taught a model.
        layout: Pictures whose layout the call took over, and ControlNets; of this picture's prompt.
        batch: How many prompts the call had, how many pictures for each, and the number of this one among all of them
            from 0. The last bits of a picture depend on how many are drawn at once.

    Returns:
        What `json.dumps` takes.

    Raises:
        ValueError: `settings` has a name that the call has not.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> record = record_of(load_demo_pipeline(), model="demo", prompt="S*", seed=7, settings={"guidance_scale": 5})
        >>> record["seed"], record["settings"]["guidance_scale"], record["model"]["source"]
        (7, 5, 'demo')
    """
    calls = [kind.__call__ for kind in reversed(type(pipe).__mro__) if "__call__" in vars(kind)]  # XL's adds to ours
    parameters = {name: one for call in calls for name, one in inspect.signature(call).parameters.items()}
    defaults = {name: parameter.default for name, parameter in parameters.items() if name not in NOT_SETTINGS}
    unknown = sorted(settings.keys() - defaults.keys())
    if unknown:
        raise ValueError(f"`settings` must be settings of the call that can be written down, got {quote(unknown[0])}.")
    seen = [{"source": _public_source(source), "hash": _hash(one)} for source, one in references]
    who: dict[str, Any] = {"references": seen}
    if concept is not None:
        who = {"concept": {"source": _public_source(concept[0]), "hash": _hash(concept[1])}}
    if learnt is not None:
        who = {"learnt": _record_of_learnt(learnt)}
    if layout:
        who["layout"] = {
            name: [{"source": _public_source(source), "hash": _hash(one)} for source, one in each]
            for name, each in layout.items()
        }
    return {
        "prompt": prompt,
        "seed": seed,
        "settings": {**defaults, **settings},
        **who,
        "model": {
            "source": _public_source(model),
            "hash": base_hash.pipeline_hash(pipe),
            "scheduler": type(pipe.scheduler).__name__,
            "dtype": str(pipe.unet.dtype).removeprefix("torch."),
            "device": pipe.device.type,
        },
        "batch": dict(zip(BATCH, batch, strict=True)),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of what computes a picture.

    Returns:
        Version by the library's name.

    Example:
        >>> list(versions())
        ['profusion_pipeline', 'torch', 'diffusers', 'transformers']
    """
    return {"profusion_pipeline": version("profusion-pipeline")} | {
        library.__name__: library.__version__ for library in (torch, diffusers, transformers)
    }


def differences(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Why one picture may not be the other although prompt, seed and settings are the same.

    Args:
        record: Of one picture.
        other: Of the other one.

    Returns:
        A few words for each reason, none if there is none.

    Example:
        >>> differences({"versions": {"torch": "2.6"}}, {"versions": {"torch": "2.7"}})
        ['torch 2.7 in place of 2.6']
    """
    said = []
    for what, part in (("model", "model"), ("concept", "concept")):
        if record.get(part, {}).get("hash") != other.get(part, {}).get("hash"):
            said.append(f"another {what}")
    for what, part, kind in (
        ("photo", None, "references"),
        ("LoRA", "learnt", "loras"),
        ("textual inversion", "learnt", "textual_inversions"),
        *((name, "layout", name) for name in LAYOUT),
    ):
        parts = [each if part is None else each.get(part, {}) for each in (record, other)]
        hashes = [[one.get("hash") for one in each.get(kind, [])] for each in parts]
        if hashes[0] != hashes[1]:
            said.append(f"another {what}")
    for name in ("scheduler", "dtype", "device"):
        old, new = (each.get("model", {}).get(name) for each in (record, other))
        if old != new:
            said.append(f"{name} {new} in place of {old}")
    for name, new in other.get("versions", {}).items():
        old = record.get("versions", {}).get(name)
        if old != new:
            said.append(f"{name} {new} in place of {old}")
    return said


def save_options(suffix: str, record: Mapping[str, Any] | None, *, mark: bool = False) -> dict[str, Any]:
    """How Pillow is told to write a record into a picture's file.

    Args:
        suffix: Of the file, which says its format. PNG, JPEG, WebP and AVIF hold a record, others are left without.
        record: As `record_of` gives it; None for none.
        mark: Whether the file also says, in the words of the IPTC that picture agencies and platforms read, that the
            picture was made by a trained model.

    Returns:
        Keyword arguments for `Image.save`.

    Example:
        >>> list(save_options(".jpg", {"prompt": "S*"}))
        ['exif']
    """
    kind = Image.registered_extensions().get(suffix.lower())
    text = None if record is None else json.dumps(record)  # in ASCII
    options: dict[str, Any] = {}
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text is not None:
            chunks.add_itxt(CHUNK, json.dumps(record, ensure_ascii=False))
        if mark:
            chunks.add_itxt("XML:com.adobe.xmp", XMP)
        options["pnginfo"] = chunks
    elif kind in WITH_EXIF:
        if text is not None and len(text) > EXIF_BYTES:
            logger.warning("The prompt is too long for a picture's EXIF: the record is left out. PNG would hold it.")
        elif text is not None:
            exif = Image.Exif()
            exif[Base.Software] = f"profusion_pipeline {version('profusion-pipeline')}"
            exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0" + text.encode()
            options["exif"] = exif
        if mark:
            options["xmp"] = XMP.encode()
    return options


def read_record(source: Any, name: str = "picture") -> dict[str, Any]:
    """What a picture says of how it was made.

    Args:
        source: Its file, as `load_picture` takes it: a path, bytes or an open file.
        name: What errors call it.

    Returns:
        The record, as `record_of` made it.

    Raises:
        TypeError: As of `load_picture`.
        ValueError: The file is no picture, or says nothing that `record_of` would have made.

    Example:
        >>> record = {"prompt": "S* at sea", "seed": 7, "settings": {}, "model": {}, "batch": {}, "versions": {}}
        >>> Image.new("RGB", (8, 8)).save("a.png", **save_options(".png", record))
        >>> read_record("a.png")["prompt"]
        'S* at sea'
    """
    with picture_file.open_picture(source, name) as picture:
        try:
            picture.load()
            text = picture.info.get(CHUNK) if picture.format == "PNG" else _exif_comment(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"`{name}` must be a whole image, cannot read it: {quoting.brief(error)}.") from error
    if not isinstance(text, str):
        raise ValueError(
            f"`{name}` must be a picture that says how it was made, as `profusion generate` writes them without "
            "--no-metadata; this one says nothing."
        )
    try:
        record = json.loads(text)
        _check_record(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`{name}` must hold a record of `profusion generate`, got another one: {quoting.brief(error)}."
        ) from error
    return record


def _exif_comment(picture: Image.Image) -> str | None:
    comment = picture.getexif().get_ifd(IFD.Exif).get(Base.UserComment)
    prefix = b"ASCII\0\0\0"
    if isinstance(comment, bytes) and comment.startswith(prefix):
        return comment.removeprefix(prefix).decode("ascii", errors="replace")
    return None


def _check_record(record: Any) -> None:
    """A stranger may have written it: only what has the right form is gone by."""
    kinds = {"prompt": str, "seed": int, "settings": dict, "model": dict, "batch": dict, "versions": dict}
    for name, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"`{name}` must be there and of {kind.__name__}.")
    if not 0 <= record["seed"] < 2**63:
        raise ValueError(f"`seed` must be in 0..2**63 - 1, got {quoting.quote(record['seed'])}.")
    batch = record["batch"]
    prompts, pictures, number = (batch.get(name, first) for name, first in zip(BATCH, (1, 1, 0), strict=True))
    counts = all(type(one) is int and one >= 0 for one in (prompts, pictures, number))
    if not (counts and number < prompts * pictures <= MOST_PICTURES):
        raise ValueError(f"`batch` must number one of at most {MOST_PICTURES} pictures, got {quoting.quote(batch)}.")
    learnt = record.get("learnt", {})
    parts = [record.get("concept", {}), learnt, *_list_of(record.get("references", []))]
    if isinstance(learnt, dict):
        for kind in ("loras", "textual_inversions"):
            parts += learnt.get(kind, []) if isinstance(learnt.get(kind, []), list) else [None]
    said = record.get("layout", {})
    for name in LAYOUT if isinstance(said, dict) else ():
        parts += said.get(name, []) if isinstance(said.get(name, []), list) else [None]
    for part in (said, *parts):
        if not isinstance(part, dict):
            raise ValueError(
                f"`layout`, `references`, `concept` and `learnt` must be objects, got {quoting.quote(part)}."
            )


def _list_of(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _public_source(source: str | Path) -> str:
    """The bundled model and portraits by their word, what lies on the Hub by its id, what lies here as "local"."""
    text = str(source)
    if re.fullmatch(rf"{DEMO}(:\d+)?", text):
        return text
    if isinstance(source, str) and not Path(text).exists() and text.count("/") == 1:
        try:
            card.check_facts(base_model=text)
            return text
        except ValueError:
            pass
    return LOCAL


def _record_of_learnt(learnt: learnt_files.Learnt) -> dict[str, Any]:
    kinds = {"loras": learnt.loras, "textual_inversions": learnt.textual_inversions}
    return {
        "words": learnt.subject.words,
        "class_noun": learnt.subject.class_noun,
        "scales": [scale for _, scale in learnt.subject.adapters],
        **{
            kind: [{"source": _public_source(source), "hash": _hash(tensors)} for source, tensors in parts]
            for kind, parts in kinds.items()
        },
    }


def _hash(thing: Image.Image | concept_file.Concept | dict[str, torch.Tensor] | torch.nn.Module) -> str:
    """64 hexadecimal digits of what it holds, wherever it lies."""
    if isinstance(thing, torch.nn.Module):
        return base_hash.base_hash(thing, None, None)
    digest = hashlib.sha256()
    if isinstance(thing, Image.Image):
        digest.update(f"{thing.mode} {thing.size}".encode() + thing.tobytes())
        return digest.hexdigest()
    tensors = thing if isinstance(thing, dict) else None
    if tensors is None:
        tensors = {name: getattr(thing, name) for name in concept_file.SUBJECT} | thing.changes
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
