"""Concepts on a pipeline: loaded by name, told apart row by row, and gone without a trace when unloaded.

In lora mode a concept is an adapter of PEFT on UNet and PromptNet. It is never active by itself: a call says for every
row of a batch whose adapter computes it ("__base__" for none), so that several concepts share a batch, and so that the
rows of ∅ and C can be left to the untouched base. In full mode the changed weights stand in for the base's while a
call runs.
"""

import importlib
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils import is_peft_available

from .profusion_adapters import (
    BASE,
    RowAdapters,
    active_adapters,
    base_hash,
    changed_weights,
    is_offloaded,
    keep_active,
    remove_adapter,
)
from .profusion_concept import Concept

CHANGED_MODELS = ("unet", "promptnet")


class LoadedConcept(NamedTuple):
    """A concept that a pipeline holds.

    Args:
        concept: The Concept.
        scale: By which its changes are multiplied.
    """

    concept: Concept
    scale: float


class ConceptLoaderMixin:
    """A pipeline that can be customised, and that holds concepts by name.

    Example:
        >>> pipe.load_concept("my-concept")  # doctest: +SKIP
        >>> pipe("a portrait of S*, at the beach").images[0]  # doctest: +SKIP
        >>> pipe.unload_concept()  # doctest: +SKIP
    """

    @property
    def concepts(self) -> dict[str, LoadedConcept]:
        """The loaded concepts by name."""
        return vars(self).setdefault("_concepts", {})

    @cached_property
    def _row_adapters(self) -> dict[str, RowAdapters]:
        return {name: RowAdapters() for name in CHANGED_MODELS}

    def customize(self, photo: Any, config: Any = None, **options: Any) -> Concept:
        """Bring S* nearer to one subject, from one photo; see `profusion_pipeline.customize.customize`.

        The pipeline itself is left as it was: `load_concept` puts what was learnt to use.

        Args:
            photo: A PIL image, array, tensor or path.
            config: A `CustomizeConfig`; its defaults if None.
            **options: Fields of `CustomizeConfig` (`class_noun="person"`, `steps=100`, ...), which go before those of
                `config`, and `mask` and `paint` as there.

        Returns:
            A [`Concept`].

        Raises:
            ImportError: The package `profusion_pipeline` isn't installed, as it need not be where the pipeline was
                loaded as remote code.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> pipe = load_demo_pipeline()
            >>> pipe.set_progress_bar_config(disable=True)
            >>> concept = pipe.customize(demo_portraits()[0], class_noun="a person", prompt="a portrait of S*", steps=2)
            >>> concept.steps
            2
        """
        try:  # no import statement: where only the pipeline's own files are, diffusers would ask for the package
            home = importlib.import_module("profusion_pipeline.customize")
        except ImportError as error:
            raise ImportError(
                'Customising needs more than the pipeline\'s own files: `pip install "profusion_pipeline[train]"`.'
            ) from error
        return home.customize(self, photo, config, **options)

    def load_concept(self, concept: Concept | str | Path, name: str = "concept", **hub_options: Any) -> None:
        """Take a concept in; calls may name it from now on, and need no image.

        Args:
            concept: A [`Concept`], or where one lies: a folder, a file or a Hub id.
            name: Under which calls will know it; several concepts need several names.
            **hub_options: As of `Concept.from_pretrained`.

        Raises:
            ImportError: PEFT isn't installed.
            OSError: There is no concept at that place.
            ValueError: It was made for another base model, the name is taken or has other signs than letters, digits,
                `_` and `-`, or the pipeline is under sequential off-loading.

        Example:
            >>> pipe.load_concept("my-concept", name="ada")  # doctest: +SKIP
        """
        if isinstance(concept, str | Path):
            concept = Concept.from_pretrained(concept, **hub_options)
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"`name` must be made of letters, digits, `_` and `-`, got {name!r}.")
        if name in self.concepts:
            raise ValueError(f"`name` {name!r} is taken: unload that concept first, or choose another name.")
        if concept.mode == "lora" and not is_peft_available():
            raise ImportError("A concept in lora mode needs PEFT: `pip install peft`.")
        ours = base_hash(self.unet, self.text_encoder, self.promptnet)
        if concept.base_hash != ours:
            raise ValueError(
                f"The concept was made for {concept.base_model!r}, whose weights have the hash "
                f"{concept.base_hash[:12]}..., but those of this pipeline have {ours[:12]}...: it fits its own base "
                "only."
            )
        if concept.mode == "lora":
            for component, rows in self._row_adapters.items():
                model = getattr(self, component)
                with keep_active(model):
                    model.load_lora_adapter(
                        concept.changes_of(component), prefix=None, adapter_name=_adapter(name), _pipeline=self
                    )
                rows.follow(model)
        self.concepts[name] = LoadedConcept(concept, 1.0)

    def set_concept_scale(self, scale: float, name: str | None = None) -> None:
        """Say how much of what was learnt counts.

        Args:
            scale: 0 is the untouched base, to the bit; 1, the start, is the concept as it was learnt; more exaggerates.
                Set by a callback, it holds from the next step on in lora mode, and from the next call on in full mode.
            name: Of the concept; all loaded ones if None.

        Raises:
            TypeError: `scale` isn't a number.
            ValueError: `scale` is negative or not finite, or no such concept is loaded.

        Example:
            >>> pipe.set_concept_scale(0.8)  # doctest: +SKIP
        """
        if not isinstance(scale, Real) or isinstance(scale, bool):
            raise TypeError(f"`scale` must be a number, not {scale!r}.")
        if not math.isfinite(scale) or scale < 0:
            raise ValueError(f"`scale` must be a finite number of at least 0, not {scale!r}.")
        for one in self._named("name", name):
            concept = self.concepts[one].concept
            if concept.mode == "lora":
                for layer in [*self.unet.modules(), *self.promptnet.modules()]:
                    if _adapter(one) in getattr(layer, "lora_A", ()):
                        layer.set_scale(_adapter(one), scale)
            self.concepts[one] = LoadedConcept(concept, float(scale))

    def unload_concept(self, name: str | None = None) -> None:
        """Forget a concept; without any, the pipeline is the one of before, bit for bit.

        Args:
            name: Of the concept; all loaded ones if None.

        Raises:
            ValueError: No such concept is loaded.

        Example:
            >>> pipe.unload_concept("ada")  # doctest: +SKIP
        """
        for one in self._named("name", name):
            if self.concepts.pop(one).concept.mode == "lora":
                for component, rows in self._row_adapters.items():
                    model = getattr(self, component)
                    if _adapter(one) in getattr(model, "peft_config", {}):  # else `unload_lora_weights` took it along
                        remove_adapter(model, _adapter(one))
                    rows.follow(model)

    def _named(self, argument: str, name: str | None) -> list[str]:
        if name is None:
            return list(self.concepts)
        if name not in self.concepts:
            loaded = ", ".join(map(repr, self.concepts)) or "none"
            raise ValueError(f"`{argument}` must be the name of a loaded concept ({loaded}), not {name!r}.")
        return [name]

    def _choose_concepts(
        self, concept: str | list[str] | None, num_prompts: int, has_subject: bool, base_guidance: bool | None
    ) -> list[str]:
        """The concept of each prompt, or nothing where the call says otherwise who S* is."""
        if concept is None:
            if has_subject or not self.concepts:
                return []
            if len(self.concepts) > 1:
                raise ValueError(
                    f"`concept` must name one of the {len(self.concepts)} loaded concepts "
                    f"({', '.join(map(repr, self.concepts))}), or one for each prompt, got None."
                )
            concept = next(iter(self.concepts))
        elif has_subject:
            raise ValueError("`concept` holds its own subject: give it, or `image` or `subject`, not both.")
        names = concept if isinstance(concept, list) else [concept] * num_prompts
        if len(names) != num_prompts:
            raise ValueError(f"`concept` has {len(names)} entries, but there are {num_prompts} prompts.")
        for name in dict.fromkeys(names):
            self._named("concept", name)
            if self.concepts[name].concept.mode == "full" and (base_guidance or len(set(names)) > 1):
                raise ValueError(
                    f"The concept {name!r} was made in full mode, which changes the weights of the whole call: it must "
                    "be the only one of the call, with `base_guidance=False`."
                )
            if self.concepts[name].concept.mode == "lora":
                self._check_adapters(name)
            elif is_offloaded(self.unet) or is_offloaded(self.promptnet):
                raise ValueError(
                    f"The concept {name!r} was made in full mode, which changes weights in memory: it can't be used "
                    "under sequential or group off-loading."
                )
        return list(names)

    def _check_adapters(self, name: str) -> None:
        for model in (self.unet, self.promptnet):
            # The processors say it: layers call themselves fused for ever, once they were.
            if any("Fused" in type(processor).__name__ for processor in model.attn_processors.values()):
                raise ValueError(
                    f"The concept {name!r} changes to_q, to_k and to_v, which {type(model).__name__} has fused: "
                    "`unfuse_qkv_projections()` first."
                )
            if _adapter(name) not in getattr(model, "peft_config", {}):
                raise ValueError(
                    f"The adapters of the concept {name!r} are gone, as after `unload_lora_weights`: unload the "
                    "concept and load it again."
                )
            if active_adapters(model):
                raise ValueError(
                    f"The concept {name!r} can't be used beside the active adapters "
                    f"{', '.join(map(repr, active_adapters(model)))}: `pipe.unload_lora_weights()` or "
                    "`pipe.disable_lora()` first."
                )

    @contextmanager
    def _weights_of_concept(self) -> Iterator[None]:
        """While the block runs, the weights are those of the call's concept, if that was made in full mode."""
        with ExitStack() as until_the_end:
            for name in self._concept_of_picture[:1]:  # in full mode it is the only one
                concept, scale = self.concepts[name]
                if concept.mode == "full" and scale > 0:
                    for component in CHANGED_MODELS:
                        changes = concept.changes_of(component)
                        until_the_end.enter_context(changed_weights(getattr(self, component), changes, scale))
            yield

    def _adapters_of(self, owner: torch.Tensor, num_shared: int) -> tuple[str, ...]:
        """The adapter of each row, which is that of its picture's concept; nothing where the call uses no adapters.

        The first `num_shared` rows, those of ∅ and C, are left to the base under `base_guidance`.
        """
        of_picture = []
        for name in self._concept_of_picture:
            loaded = self.concepts[name]
            if loaded.concept.mode == "lora":
                of_picture.append(_adapter(name) if loaded.scale > 0 else BASE)
        if not of_picture:
            return ()
        of_row = [of_picture[picture] for picture in owner.tolist()]
        return tuple([BASE] * num_shared + of_row[num_shared:] if self._base_guidance else of_row)


def _adapter(name: str) -> str:
    return f"concept_{name}"
