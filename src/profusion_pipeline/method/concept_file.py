"""A subject that the pipeline was customised to: what is remembered of its photo, and what was learnt about it.

A concept is one safetensors file. Its header holds, as JSON, what the concept is of and for; so one move puts old or
new in place, whatever happens on the way.
"""

import base64
import html
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from . import card, checks, quoting, tensor_checks, whole_files

FILE = "concept.safetensors"
THUMBNAIL_BYTES = 100_000  # at most
SUBJECT = ("latents", "image_states", "weights")
FACTS = {"class_noun": str, "base_model": str, "base_hash": str, "settings": dict, "steps": int, "loss": (float, int)}
# The imports stand in quotes of their own: diffusers reads import lines of a repository's code by regular expression.
CARD = (
    """# {title}

A concept for [ProFusion](https://arxiv.org/abs/2305.13579): one {class_noun}, learnt from one photo in {steps} steps.

With nothing installed but diffusers and transformers; this runs the code in the base model's repository:

```python
"""
    "from diffusers import DiffusionPipeline\n"
    """
pipe = DiffusionPipeline.from_pretrained({base_model!r}, trust_remote_code=True){remark}
pipe.load_concept({repo_id!r})
pipe("S* as an astronaut").images[0]
```

With the package `profusion_pipeline`, which runs its own code only:

```python
"""
    "from profusion_pipeline import ProFusionPipeline\n"
    """
pipe = ProFusionPipeline.from_pretrained({base_model!r}){remark}
pipe.load_concept({repo_id!r})
pipe("S* as an astronaut").images[0]
```

It fits the base model that it was made for, and no other. If it shows a real person: it was made and may be used with
that person's consent only.

| | |
|---|---|
{table}
"""
)


def _plain(name: str, value: Any, *, depth: int = 2) -> Any:
    """A setting: a text, a number, yes or no, or a list of these, or of such lists."""
    if isinstance(value, tuple | list) and depth:
        return [_plain(name, one, depth=depth - 1) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`settings` must hold finite numbers, got {quoting.quote(value)} for {quoting.quote(name)}.")
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(
            f"`settings` must hold texts and numbers, got {quoting.quote(value)} for {quoting.quote(name)}."
        )
    return value


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Concept:
    """What customising a pipeline to one subject gives: it can be saved, shared, and loaded beside others.

    It has the tensors of a [`SubjectEmbedding`], so it can stand in its place, too.

    Args:
        latents: Clean latents of the photo, scaled as the UNet has them. [R, C, h, w]
        image_states: Last hidden state of the CLIP vision tower, all tokens. [R, N, V]
        weights: How much each reference counts. [R]
        changes: What was learnt, by "unet." or "promptnet." and the name of the weight: in lora mode the factors
            `lora_A` and `lora_B` of what is added to it, in full mode what is added itself.
        class_noun: What the subject is, in plain words.
        base_model: Folder or Hub id of the pipeline that it was made with.
        base_hash: Of that pipeline's weights, as `base_hash` gives it.
        settings: The `CustomizeConfig`, by field.
        steps: Optimiser steps done.
        loss: Mean of the last ten.
        thumbnail: The photo, small, as the bytes of a JPEG file, for whoever looks at the concept; None where it was
            not to be kept.

    Raises:
        TypeError: A field is of another type, or a tensor isn't of floats.
        ValueError: Shapes disagree, a number isn't finite, or the settings know no such mode.

    Example:
        >>> concept = Concept.from_pretrained("ada")  # doctest: +SKIP
        >>> pipe.load_concept(concept)  # doctest: +SKIP
    """

    latents: torch.Tensor
    image_states: torch.Tensor
    weights: torch.Tensor
    changes: dict[str, torch.Tensor]
    class_noun: str
    base_model: str
    base_hash: str
    settings: dict[str, Any]
    steps: int
    loss: float
    thumbnail: bytes | None = None

    def __post_init__(self):
        tensor_checks.check_subject(self.latents, self.image_states, self.weights)
        for name, kind in FACTS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                kind = kind if isinstance(kind, type) else float
                raise TypeError(f"`{name}` must be of {kind.__name__}, got {quoting.quote(value)}.")
        checks.check_count("steps", self.steps, at_least=0)
        if not math.isnan(self.loss):  # of what was learnt elsewhere
            checks.check_number("loss", self.loss)
        if not 0 < len(self.class_noun) <= 200:
            raise ValueError(f"`class_noun` must be of 1 to 200 characters, got {quoting.quote(self.class_noun)}.")
        if self.thumbnail is not None:
            is_jpeg = isinstance(self.thumbnail, bytes) and self.thumbnail.startswith(b"\xff\xd8")
            if not is_jpeg or len(self.thumbnail) > THUMBNAIL_BYTES:
                raise ValueError(
                    f"`thumbnail` must be a JPEG file of at most {THUMBNAIL_BYTES} bytes, got "
                    f"{quoting.quote(self.thumbnail)}."
                )
        checks.check_choice("mode", self.settings.get("mode"), ("lora", "full"))
        if unnamed := [name for name in self.settings if not isinstance(name, str)]:
            raise TypeError(f"`settings` must have names for keys, got {quoting.quote(unnamed[0])}.")
        plain = {name: _plain(name, value) for name, value in self.settings.items()}
        object.__setattr__(self, "settings", plain)  # as they come back from a file
        if not isinstance(self.changes, dict):
            raise TypeError(f"`changes` must be a dictionary, got {type(self.changes).__name__}.")
        for name, tensor in self.changes.items():
            if not isinstance(name, str) or not name.startswith(("unet.", "promptnet.")):
                raise ValueError(f"`changes` must be of `unet.` or `promptnet.`, got {quoting.quote(name)}.")
            tensor_checks.check_float_tensor(name, tensor)

    def __repr__(self) -> str:
        noun, base = quoting.quote(self.class_noun), quoting.quote(self.base_model)
        learnt = f"mode={self.mode!r}, {self.steps} steps, loss {self.loss:.4f}, {self.num_bytes / 1e6:.2f} MB"
        return f"Concept({noun}, {learnt}, for {base})"

    def _repr_html_(self) -> str:
        """A notebook shows whom it is of, if the photo was kept, and what was learnt."""
        picture = ""
        if self.thumbnail is not None:
            data = base64.b64encode(self.thumbnail).decode()
            picture = f'<img src="data:image/jpeg;base64,{data}"><br>'
        return f"{picture}<code>{html.escape(repr(self))}</code>"

    @property
    def mode(self) -> str:
        """What was learnt: "lora" or "full"."""
        return self.settings["mode"]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors, which is the size of the file but for a few KB."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def changes_of(self, component: str) -> dict[str, torch.Tensor]:
        """What was learnt of one model.

        Args:
            component: "unet" or "promptnet".

        Returns:
            The changes, by the model's own names.

        Example:
            >>> list(concept.changes_of("unet"))[0]  # doctest: +SKIP
            'down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight'
        """
        prefix = f"{component}."
        return {name.removeprefix(prefix): t for name, t in self.changes.items() if name.startswith(prefix)}

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f"subject.{name}": getattr(self, name) for name in SUBJECT} | self.changes

    def to_bytes(self) -> bytes:
        """The file that `save_pretrained` writes, in memory.

        Returns:
            A safetensors file.

        Example:
            >>> concept.to_bytes()[:0]  # doctest: +SKIP
            b''
        """
        return save(self._plain_tensors(), metadata=self._metadata())

    def _plain_tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor.contiguous().cpu() for name, tensor in self._tensors().items()}

    def _metadata(self) -> dict[str, str]:
        facts = {name: getattr(self, name) for name in FACTS}
        metadata = {"format": "pt", "concept": json.dumps(facts)}
        if self.thumbnail is not None:  # in the header, where versions that know of none don't look
            metadata["thumbnail"] = base64.b64encode(self.thumbnail).decode()
        return metadata

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `concept.safetensors` into a folder, whole or not at all; until then an older one stays.

        Args:
            folder: It is made if it doesn't exist.

        Raises:
            OSError: There is no room, or the folder can't be written to. An older concept there is as it was.

        Example:
            >>> concept.save_pretrained("ada")  # doctest: +SKIP
        """
        folder = Path(folder)
        with whole_files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with whole_files.whole_file(folder / FILE) as new:
            save_file(self._plain_tensors(), new, metadata=self._metadata())

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **hub_options: Any) -> "Concept":
        """Read what `save_pretrained` wrote, or what lies on the Hub.

        Args:
            source: A folder, the file itself, or a Hub id.
            **hub_options: As of `hf_hub_download`: `revision`, `token`, `cache_dir`, `local_files_only` and so on.

        Returns:
            The concept, on the CPU.

        Raises:
            OSError: There is no concept at `source`.
            ValueError: The file isn't a whole safetensors file, or holds something else.

        Example:
            >>> Concept.from_pretrained("ada").class_noun  # doctest: +SKIP
            'woman'
        """
        path = Path(checks.check_place("concept", source))
        if path.is_dir():
            path = path / FILE
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no concept in the folder {whole_files.shown_path(source)}: no {FILE}."
                )
        elif not path.is_file():
            path = cls._download(os.fspath(source), **hub_options)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{whole_files.shown_path(path)} isn't a whole safetensors file: {quoting.brief(error)}."
            ) from error
        if "concept" not in metadata or any(f"subject.{name}" not in tensors for name in SUBJECT):
            raise ValueError(f"{whole_files.shown_path(path)} is a safetensors file, but holds no concept.")
        subject = {name: tensors.pop(f"subject.{name}") for name in SUBJECT}
        try:
            facts = json.loads(metadata["concept"])
            missing = [name for name in FACTS if not isinstance(facts, dict) or name not in facts]
            if missing:
                raise ValueError(f"its header must say {', '.join(missing)}.")
            thumbnail = base64.b64decode(metadata["thumbnail"], validate=True) if "thumbnail" in metadata else None
            known = {name: facts[name] for name in FACTS}
            return cls(**subject, changes=tensors, **known, thumbnail=thumbnail)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{whole_files.shown_path(path)} holds no concept that can be used: {quoting.brief(error)}."
            ) from error

    @staticmethod
    def _download(repo_id: str, **hub_options: Any) -> Path:
        try:
            return Path(hf_hub_download(repo_id, FILE, **hub_options))
        except (OSError, ValueError) as error:  # huggingface_hub's own are among these
            raise OSError(
                f"There is no concept at {quoting.quote(repo_id)}, neither a folder nor on the Hub: "
                f"{quoting.brief(error)}."
            ) from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Publish the concept with a card that says how to use it. A card that is there is kept.

        Args:
            repo_id: "name" or "owner/name"; the repository is made if it doesn't exist.
            base_model: As of `card`.
            license: As of `card`.
            private: Whether a new repository is private; None leaves it to the owner's settings.
            token: The access token; None takes the one of this machine.

        Returns:
            The address of the commit.

        Raises:
            ValueError: `base_model` is no Hub id or `license` is not one word.

        Example:
            >>> concept.push_to_hub("ada/ada")  # doctest: +SKIP
        """
        card.check_facts(base_model=base_model, license=license)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if not api.file_exists(repo_id, "README.md"):
                self.card(repo_id, base_model=base_model, license=license).save(Path(folder, "README.md"))
            return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Concept for ProFusion")

    def card(self, repo_id: str, *, base_model: str | None = None, license: str | None = None) -> ModelCard:
        """The model card.

        Args:
            repo_id: Where the concept will lie.
            base_model: Hub id of the pipeline that it was made with, if it was loaded from a folder.
            license: The Hub's word for a licence, such as `openrail++`.

        Returns:
            A card with metadata, a few lines of code and the settings.

        Raises:
            ValueError: `base_model` is no Hub id or `license` is not one word.

        Example:
            >>> print(concept.card("ada/ada"))  # doctest: +SKIP
        """
        card.check_facts(base_model=base_model, license=license)
        base = base_model or self._base_on_hub()
        data = ModelCardData(
            license=license,
            library_name="diffusers",
            pipeline_tag="text-to-image",
            tags=["profusion", "concept"],
            base_model=base,
        )
        rows = {
            "base model": base or self.base_model,
            "licence": license or "not stated; the base model's terms apply in any case",
            "hash of its weights": self.base_hash,
            "loss": f"{self.loss:.4f}",
            **self.settings,
        }
        text = CARD.format(
            title=card.plain(repo_id.split("/")[-1]),
            repo_id=repo_id,
            table="\n".join(f"| {card.plain(name)} | {card.plain(value)} |" for name, value in rows.items()),
            class_noun=card.plain(self.class_noun),
            steps=self.steps,
            base_model=base or "owner/base-model",
            remark="" if base else "  # put the folder or Hub id of the base model here",
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

    def _base_on_hub(self) -> str | None:
        """The base model's Hub id, if it was loaded by one; of a folder only the name is known."""
        if self.base_model.count("/") != 1 or Path(self.base_model).exists():
            return None
        try:
            card.check_facts(base_model=self.base_model)
        except ValueError:  # of a file that somebody else made
            return None
        return self.base_model
