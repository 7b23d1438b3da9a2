"""Concepts on a pipeline: loaded by name, told apart row by row, and gone without a trace when unloaded.

In lora mode a concept is an adapter of PEFT on UNet and PromptNet. It is never active by itself: a call says for every
row of a batch whose adapter computes it ("__base__" for none), so that several concepts share a batch, and so that the
rows of ∅ and C can be left to the untouched base. In full mode the changed weights stand in for the base's while a
call runs.
"""

import html
import re
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils import is_peft_available

from . import adapters, base_hash, call_inputs, checks, concept_file, learnt_subject, quoting, shared_models

SHOWN = 300  # characters of all concepts, where they are printed
CHANGED_MODELS = ("unet", "promptnet")
WAIT = "load and unload concepts while nothing is drawn around these models"


class LoadedConcept(NamedTuple):
    """A concept that a pipeline holds.

    Args:
        concept: The Concept.
        scale: By which its changes are multiplied.
        adapter: Its name in the models, in lora mode: of this loading alone, because pipelines may share them.
    """

    concept: concept_file.Concept
    scale: float
    adapter: str


class LoadedConcepts(dict):
    """The concepts that a pipeline holds, by name; a line for each where they are shown.

    Example:
        >>> LoadedConcepts()
        no concepts
    """

    def __repr__(self) -> str:
        text = f"{len(self) or 'no'} concept{'' if len(self) == 1 else 's'}"
        for number, (name, one) in enumerate(self.items(), start=1):
            line = f"\n{quoting.quote(name)} x {one.scale:g}: {one.concept!r}"
            if len(text) + len(line) > SHOWN - 20:
                return f"{text}\nand {len(self) - number + 1} more"
            text += line
        return text

    def _repr_html_(self) -> str:
        """A notebook shows whom each is of, where the photo was kept."""
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>x {one.scale:g}</td><td>{one.concept._repr_html_()}</td></tr>"
            for name, one in self.items()
        ]
        return f"<table>{''.join(rows)}</table>"


@dataclass(frozen=True)
class CallConcepts:
    """Whose each picture of one call is.

    Args:
        names: The concept of each picture, None where it has none; nothing where the call uses none.
        base_guidance: Whether ∅ and C are left to the untouched base.
        learnt: The LearntSubject of each picture, None where it has none; nothing where the call uses none.

    Example:
        >>> CallConcepts(("ada", "ada", "bob"), base_guidance=True).names[2]
        'bob'
    """

    names: tuple[str | None, ...] = ()
    base_guidance: bool = False
    learnt: tuple[learnt_subject.LearntSubject | None, ...] = ()


class ConceptLoaderMixin:
    """A pipeline that can be customised, and that holds concepts by name.

    Example:
        >>> pipe.load_concept("my-concept")  # doctest: +SKIP
        >>> pipe("a portrait of S*, at the beach").images[0]  # doctest: +SKIP
        >>> pipe.unload_concept()  # doctest: +SKIP
    """

    # `profusion_pipeline.customization.customize` puts its function here. It is not imported from here, because remote
    # code would then run whatever version of the package happens to be installed.
    _customize: Callable[..., concept_file.Concept] | None = None

    @property
    def concepts(self) -> dict[str, LoadedConcept]:
        """The loaded concepts by name."""
        return vars(self).setdefault("_concepts", LoadedConcepts())

    def customize(self, photo: Any, config: Any = None, **options: Any) -> concept_file.Concept:
        """Bring S* nearer to one subject; see `profusion_pipeline.customization.customize.customize`.

        The pipeline itself is left as it was: `load_concept` puts what was learnt to use.

        Args:
            photo: A PIL image, array, tensor or path, or a list of them.
            config: A `CustomizeConfig`; its defaults if None.
            **options: Fields of `CustomizeConfig` (`class_noun="person"`, `steps=100`, ...), which go before those of
                `config`, and `mask`, `paint` and `warn` as there.

        Returns:
            A [`Concept`].

        Raises:
            ImportError: The pipeline was loaded as remote code, which is without customising, or PEFT isn't installed.

        Example:
            >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
            >>> pipe = load_demo_pipeline()
            >>> pipe.set_progress_bar_config(disable=True)
            >>> concept = pipe.customize(demo_portraits()[0], class_noun="a person", prompt="a portrait of S*", steps=2)
            >>> concept.steps
            2
        """
        if self._customize is None:
            raise ImportError(
                "Customising is not part of the code that a pipeline carries: install the package profusion_pipeline "
                "and open the pipeline with `profusion_pipeline.ProFusionPipeline.from_pretrained`."
            )
        return self._customize(photo, config, **options)

    def load_concept(
        self, concept: concept_file.Concept | str | Path, name: str = "concept", **hub_options: Any
    ) -> None:
        """Take a concept in; calls may name it from now on, and need no image.

        Args:
            concept: A [`Concept`], or where one lies: a folder, a file or a Hub id.
            name: Under which calls will know it; several concepts need several names.
            **hub_options: As of `Concept.from_pretrained`.

        Raises:
            ImportError: PEFT isn't installed.
            OSError: There is no concept at that place.
            TypeError: It is something else.
            ValueError: It was made for another base model, there is no PromptNet, the name is taken, of more than 100
                signs, or of others than letters, digits, `_` and `-`, or the pipeline is under sequential off-loading.

        Example:
            >>> pipe.load_concept("my-concept", name="ada")  # doctest: +SKIP
        """
        call_inputs.check_promptnet(self.promptnet)
        if isinstance(concept, str | Path):
            concept = concept_file.Concept.from_pretrained(concept, **hub_options)
        if not isinstance(concept, concept_file.Concept) and type(concept).__name__ != "Concept":  # of remote code
            raise TypeError(f"`concept` must be a Concept, or where one lies, got {quoting.quote(concept)}.")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name):
            raise ValueError(
                f"`name` must be made of up to 100 letters, digits, `_` and `-`, got {quoting.quote(name)}."
            )
        if name in self.concepts:
            raise ValueError(f"`name` {name!r} is taken: unload that concept first, or choose another name.")
        if concept.mode == "lora" and not is_peft_available():
            raise ImportError("A concept in lora mode needs PEFT: `pip install peft`.")
        ours = base_hash.pipeline_hash(self)
        if concept.base_hash != ours:
            raise ValueError(
                f"The concept was made for {quoting.quote(concept.base_model)}, whose weights have the hash "
                f"{concept.base_hash[:12]}..., but those of this pipeline have {ours[:12]}...: it fits its own base "
                "only."
            )
        checks.check_without("class_noun", [concept.class_noun], self.config.placeholder)
        call_inputs.list_subjects(concept, 1, self.promptnet)
        for component in CHANGED_MODELS:
            adapters.check_changes(getattr(self, component), concept.changes_of(component), concept.mode)
        adapter = f"concept_{uuid.uuid4().hex}"
        if concept.mode == "lora":
            with shared_models.in_use(self._changed_models, to_change=True, advice=WAIT):
                self._add_adapter(concept, adapter)
        self.concepts[name] = LoadedConcept(concept, 1.0, adapter)

    def _add_adapter(self, concept: concept_file.Concept, adapter: str) -> None:
        """To all models, or to none."""
        try:
            for component, model in zip(CHANGED_MODELS, self._changed_models, strict=True):
                changes = concept.changes_of(component)
                with adapters.keep_active(model):
                    model.load_lora_adapter(changes, prefix=None, adapter_name=adapter, _pipeline=self)
                adapters.follow_rows(model)
        except BaseException:
            self._remove_adapter(adapter)
            raise

    def _remove_adapter(self, adapter: str) -> None:
        for model in self._changed_models:
            if adapter in getattr(model, "peft_config", {}):  # else `unload_lora_weights` took it along
                adapters.remove_adapter(model, adapter)

    def set_concept_scale(self, scale: float, name: str | None = None) -> None:
        """Say how much of what was learnt counts.

        Args:
            scale: 0 is the untouched base, to the bit; 1, the start, is the concept as it was learnt; more exaggerates,
                and less than 0 leads away from it.
                Set by a callback, it holds from the next step on in lora mode, and from the next call on in full mode.
            name: Of the concept; all loaded ones if None.

        Raises:
            TypeError: `scale` isn't a number.
            ValueError: `scale` is not finite, or no such concept is loaded.

        Example:
            >>> pipe.set_concept_scale(0.8)  # doctest: +SKIP
        """
        scale = checks.check_scale("scale", scale, signed=True)
        for one in self._named("name", name):
            loaded = self.concepts[one]
            for layer in [*self.unet.modules(), *self.promptnet.modules()]:
                if loaded.adapter in getattr(layer, "lora_A", ()):
                    layer.set_scale(loaded.adapter, scale)
            self.concepts[one] = loaded._replace(scale=scale)

    def unload_concept(self, name: str | None = None) -> None:
        """Forget a concept; without any, the pipeline is the one of before, bit for bit.

        Args:
            name: Of the concept; all loaded ones if None.

        Raises:
            ValueError: No such concept is loaded.

        Example:
            >>> pipe.unload_concept("ada")  # doctest: +SKIP
        """
        names = self._named("name", name)
        with shared_models.in_use(self._changed_models, to_change=True, advice=WAIT):
            for one in names:
                self._remove_adapter(self.concepts.pop(one).adapter)

    @property
    def _changed_models(self) -> list[torch.nn.Module]:
        return [getattr(self, name) for name in CHANGED_MODELS if getattr(self, name) is not None]

    def _named(self, argument: str, name: str | None) -> list[str]:
        if name is None:
            return list(self.concepts)
        self._check_loaded(argument, name)
        return [name]

    def _check_loaded(self, argument: str, name: Any) -> None:
        if not isinstance(name, str) or name not in self.concepts:
            loaded = ", ".join(map(repr, self.concepts)) or "none"
            raise ValueError(
                f"`{argument}` must be the name of a loaded concept ({loaded}), got {quoting.quote(name)}."
            )

    def _choose_concepts(
        self,
        concept: str | list[str] | None,
        subject: Any,
        num_prompts: int,
        has_image: bool,
        base_guidance: bool | None,
    ) -> tuple[list[str | None], bool]:
        """The concept of each prompt, and whether the base guides it.

        Those that the call names, or the only one that is loaded; none where it says otherwise who S* is.
        """
        if base_guidance is not None:
            checks.check_flag("base_guidance", base_guidance)
        subjects = call_inputs.list_per_prompt("subject", subject, num_prompts)
        named = any(isinstance(one, str) for one in subjects)
        if concept is None and named:
            names = [one if isinstance(one, str) else None for one in subjects]
        elif concept is None:
            if has_image or subject is not None or not self.concepts:
                return [None] * num_prompts, base_guidance is not False
            if len(self.concepts) > 1:
                raise ValueError(
                    f"`concept` must name one of the {len(self.concepts)} loaded concepts "
                    f"({', '.join(map(repr, self.concepts))}), or one for each prompt, got None."
                )
            names = [next(iter(self.concepts))] * num_prompts
        elif has_image or subject is not None:
            raise ValueError("`concept` holds its own subject: give it, or `image` or `subject`, not both.")
        else:
            names = call_inputs.list_per_prompt("concept", concept, num_prompts)
        for name in names:
            if name is not None or not named:
                self._check_loaded("subject" if named else "concept", name)
        chosen = [name for name in dict.fromkeys(names) if not (named and name is None)]
        for name in chosen:
            if self.concepts[name].concept.mode == "full" and (base_guidance or len(set(names)) > 1):
                raise ValueError(
                    f"The concept {name!r} was made in full mode, which changes the weights of the whole call: it must "
                    "be the only one of the call, with `base_guidance=False`."
                )
            if self.concepts[name].concept.mode == "lora":
                self._check_adapters(name)
            elif any(adapters.is_offloaded(model) for model in self._changed_models):
                raise ValueError(
                    f"The concept {name!r} was made in full mode, which changes weights in memory: it can't be used "
                    "under sequential or group off-loading."
                )
        if base_guidance is None:
            base_guidance = all(self.concepts[name].concept.mode == "lora" for name in chosen)
        return names, base_guidance

    def _subjects_of(
        self, names: list[str | None], subject: Any, class_noun: Any
    ) -> tuple[Any, str | list[str] | None]:
        """Subject and class noun of each prompt, a concept's own in the place of its name."""
        if not any(names):
            return subject, class_noun
        own = [None if name is None else self.concepts[name].concept for name in names]
        subjects = call_inputs.list_per_prompt("subject", subject, len(names))
        nouns = call_inputs.list_per_prompt("class_noun", class_noun, len(names))
        both = [
            (one, noun) if mine is None else (mine, mine.class_noun)
            for mine, one, noun in zip(own, subjects, nouns, strict=True)
        ]
        return [one for one, _ in both], [noun for _, noun in both]

    def _check_adapters(self, name: str) -> None:
        for model in (self.unet, self.promptnet):
            # The processors say it: layers call themselves fused for ever, once they were.
            if any("Fused" in type(processor).__name__ for processor in model.attn_processors.values()):
                raise ValueError(
                    f"The concept {name!r} changes to_q, to_k and to_v, which {type(model).__name__} has fused: "
                    "`unfuse_qkv_projections()` first."
                )
            if self.concepts[name].adapter not in getattr(model, "peft_config", {}):
                raise ValueError(
                    f"The adapters of the concept {name!r} are gone, as after `unload_lora_weights`: unload the "
                    "concept and load it again."
                )

    def _models_of(self, concepts: CallConcepts) -> dict[str, torch.nn.Module]:
        """What a call computes with at every step; a concept made in full mode has its own weights in it."""
        models = {name: getattr(self, name) for name in (*CHANGED_MODELS, *(part for _, part in self.TEXT_PARTS))}
        models = {name: model for name, model in models.items() if model is not None}
        for name in filter(None, concepts.names[:1]):  # in full mode it is the only one
            concept, scale, _ = self.concepts[name]
            if concept.mode == "full" and scale != 0:
                for component in CHANGED_MODELS:
                    changes = concept.changes_of(component)
                    models[component] = adapters.with_changes(models[component], changes, scale)
        return models

    def _adapters_of(
        self,
        concepts: CallConcepts,
        owner: torch.Tensor,
        num_shared: int,
        num_made: int,
        lora_scale: float,
        elsewhere: Collection[int] = (),
    ) -> tuple[adapters.RowAdapters, adapters.RowAdapters]:
        """The adapters of each row of the UNet, those of its picture's subject, and of each row of PromptNet.

        Under `base_guidance` the first `num_shared` rows, those of ∅ and C, are left to the base. PromptNet makes S*
        for the last `num_made`. Rows that are computed `elsewhere`, by another UNet, are not among the UNet's.
        """
        of_picture = [[] for _ in concepts.names or concepts.learnt]
        for picture, name in enumerate(concepts.names):
            if name is not None and self.concepts[name].concept.mode == "lora" and self.concepts[name].scale != 0:
                of_picture[picture] = [(self.concepts[name].adapter, 1.0)]
        active = adapters.active_adapters(self.unet)
        for picture, subject in enumerate(concepts.learnt):
            if subject is not None:
                of_picture[picture] = subject.weighted_adapters(active, lora_scale)
        left_out = learnt_subject.all_adapters(concepts.learnt)
        if not any(of_picture):
            return (adapters.RowAdapters((), left_out),) * 2
        of_row = [of_picture[picture] for picture in owner.tolist()]
        if concepts.base_guidance:
            of_row[:num_shared] = [[]] * num_shared
        made = of_row[len(of_row) - num_made :]
        of_row = [pairs for row, pairs in enumerate(of_row) if row not in elsewhere]
        return adapters.RowAdapters.of(of_row, left_out), adapters.RowAdapters.of(made, left_out)
