"""What `profusion generate` draws: pictures of what its flags say, or once more what a picture says of itself.

Models, torch and Pillow are imported inside the functions that need them, so that `--help` is instant.
"""

import argparse
import dataclasses
import secrets
import sys
from pathlib import Path
from typing import Any

from .common.flags import Flag, flags_of_function, given_flags, option_of
from .common.launcher import chosen_device
from .method.checks import check_characters
from .method.whole_files import shown_path

CALL = Path(__file__).parent / "method" / "pipeline_profusion.py"

# Parameters of the call that say in which form Python gets the answer, or that have a flag of another form.
NOT_FLAGS = {"image", "concept", "generator", "output_type", "return_dict", "callback_on_step_end_tensor_inputs"}
OF_PROMPT = ("class_noun", "class_prompt", "negative_prompt")  # given once, or for each prompt
OF_REFERENCES = ("image_weights", "height", "width")  # what a subject is encoded with


def call_flags() -> list[Flag]:
    """What `profusion generate` passes on to `ProFusionPipeline.__call__`.

    Example:
        >>> [flag.default for flag in call_flags() if flag.name == "num_inference_steps"]
        [50]
    """
    flags = [flag for flag in flags_of_function(CALL, "ProFusionPipeline.__call__") if flag.name not in NOT_FLAGS]
    # A file or a picture may give the prompt, so it needn't be typed.
    return [dataclasses.replace(flag, default=None) if flag.name == "prompt" else flag for flag in flags]


@dataclasses.dataclass
class Work:
    """One call and what becomes of it.

    Args:
        model: Folder, Hub id or "demo".
        prompts: One for each prompt of the call.
        settings: The call's others, as they were given.
        seed: Of the first picture.
        images: Where the photos lie.
        concepts: Where the concepts lie, one or one for each prompt.
        learnt: Arguments of `load_learnt`, where S* is what others have taught a model.
        layout: Where pictures whose layout is taken over lie, and ControlNets; by the names in `common/layout.py`.
        device: None for the usual one.
        dtype: None for the usual one.
        only: The number of the one picture that is wanted of the call's; None for all.
        old: The record of a picture that this one shall be like.

    Example:
        >>> Work("demo", ["S* at sea"], {"num_images_per_prompt": 3}, seed=7, images=["demo"]).seeds
        [7, 8, 9]
    """

    model: str
    prompts: list[str]
    settings: dict[str, Any]
    seed: int
    images: list[str] = dataclasses.field(default_factory=list)
    concepts: list[str] = dataclasses.field(default_factory=list)
    learnt: dict[str, Any] | None = None
    layout: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    only: int | None = None
    old: dict[str, Any] | None = None

    @property
    def seeds(self) -> list[int]:
        """Of each picture of the call. Of company that is drawn only for the shape of the batch, the wanted one's."""
        count = len(self.prompts) * self.settings.get("num_images_per_prompt", 1)
        return [self.seed + (0 if self.only is not None else i) for i in range(count)]


def draw(args: argparse.Namespace) -> None:
    """Do what the flags of `profusion generate` say.

    Args:
        args: What the parser made of them.

    Raises:
        SystemExit: 2, if flags are missing or contradict each other.
        Exception: What the pipeline, the pictures and the files say.

    Example:
        >>> from profusion_pipeline.cli import build_parser
        >>> typed = "generate --model demo --image demo --num-inference-steps 2 --out me.png --prompt"
        >>> draw(build_parser().parse_args([*typed.split(), "a pencil sketch of S*"]))
        me.png
    """
    from .common.picture_files import output_paths, write_pictures

    work = _work_again(args) if args.again else _work(args)
    for name in OF_PROMPT:
        check_characters(name, "".join(work.settings.get(name) or ""))
    check_characters("prompt", "".join(work.prompts))
    paths = output_paths(args.out, 1 if work.only is not None else len(work.seeds), force=args.force)

    pictures, records = _draw(work)
    if work.old is not None:
        _say_differences(work.old, records[0])
    write_pictures(pictures, paths, replace=args.force, records=records if args.metadata else (), mark=args.mark_ai)
    print(f"seed {work.seed}", file=sys.stderr)
    print(*paths, sep="\n")


def _work(args: argparse.Namespace) -> Work:
    """What the flags alone say."""
    _refuse_one_without_the_other(args)
    if args.model is None:
        args.refuse("the following arguments are required: --model")
    prompts = _prompts(args)
    if not prompts:
        args.refuse("the following arguments are required: --prompt (or --prompts)")
    work = Work(
        model=args.model,
        prompts=prompts,
        settings=_typed(args),
        seed=secrets.randbelow(2**32) if args.seed is None else args.seed,
        images=args.image or [],
        concepts=args.concept or [],
        learnt=_learnt(args),
        layout=_layout(args),
        device=args.device,
        dtype=args.dtype,
    )
    _check_concepts(args, work)
    return work


def _typed(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that were given as flags, those of a recipe spelled out, so that a picture's record says them."""
    typed = given_flags(args, [flag for flag in call_flags() if flag.name != "prompt"])
    if "recipe" in typed:
        from .method.recipes import with_recipe

        typed = with_recipe(typed)
    return typed


def _work_again(args: argparse.Namespace) -> Work:
    """What a picture says of itself, and over it the flags."""
    from .common.made_with import BATCH, LOCAL, read_record
    from .method.faces import AUTO

    if _num_kinds(args) > 1:
        _refuse_one_without_the_other(args)
    old = read_record(args.again, name="--from")
    typed, known = _typed(args), {flag.name for flag in call_flags() if flag.name not in ("prompt", "recipe")}
    settings = {name: value for name, value in old["settings"].items() if name in known and value is not None} | typed

    images, concepts, model = args.image or [], args.concept or [], args.model or old["model"].get("source")
    learnt = None if images or concepts else _learnt_again(old, _learnt(args))
    if not (images or concepts or learnt):
        images = [each.get("source") for each in old.get("references", [])]
        concepts = [old["concept"].get("source")] if "concept" in old else []
    learnt_sources = {
        "--lora": (learnt or {}).get("loras", []),
        "--textual-inversion": (learnt or {}).get("textual_inversions", []),
    }
    layout = _layout_again(old) | _layout(args)
    layout_sources = {option_of(name): given for name, given in layout.items()}
    sources = {"--image": images, "--concept": concepts, **learnt_sources, **layout_sources, "--model": [model]}
    if "crop_face" not in typed and settings.get("crop_face") not in (None, AUTO):  # nor a path of a stranger's picture
        sources["--crop-face"] = [LOCAL]
    for flag, given in sources.items():
        if any(source == LOCAL or not isinstance(source, str) for source in given):
            args.refuse(f"{flag} must be given, because a picture doesn't say where what it was made with lies")
    if not (images or concepts or learnt):
        _refuse_one_without_the_other(args)

    prompts, only = _prompts(args), None
    device = args.device or ("cpu" if old["model"].get("device") == "cpu" else None)
    if not prompts and args.seed is None and "num_images_per_prompt" not in typed:
        # As many at once as then, on which its last bits depend; the others' prompts are not known, and not needed.
        count, pictures, only = (old["batch"].get(name, first) for name, first in zip(BATCH, (1, 1, 0), strict=True))
        prompts, settings["num_images_per_prompt"] = [old["prompt"]] * count, pictures
    elif "num_images_per_prompt" not in typed:
        settings.pop("num_images_per_prompt", None)
    work = Work(
        model=model,
        prompts=prompts or [old["prompt"]],
        settings=settings,
        seed=old["seed"] if args.seed is None else args.seed,
        images=images,
        concepts=concepts,
        learnt=learnt,
        layout=layout,
        device=device,
        dtype=args.dtype or _dtype_of(old),
        only=only,
        old=old,
    )
    _check_concepts(args, work)
    return work


def _layout(args: argparse.Namespace) -> dict[str, list[str]]:
    from .common.layout import NAMES

    return {name: getattr(args, name) for name in NAMES if getattr(args, name)}


def _layout_again(old: dict[str, Any]) -> dict[str, list[str]]:
    """Where a picture says that these lay; by names that there are, because a stranger may have written it."""
    from .common.layout import NAMES

    said = old.get("layout", {})
    return {name: [one.get("source") for one in said[name]] for name in NAMES if said.get(name)}


def _dtype_of(record: dict[str, Any]) -> str | None:
    dtype = record["model"].get("dtype")
    return dtype if dtype in ("float32", "float16", "bfloat16") else None


def _prompts(args: argparse.Namespace) -> list[str]:
    typed = getattr(args, "prompt", None) or []
    if args.prompts is None:
        return typed
    if typed:
        args.refuse("one of --prompt and --prompts must say what to draw")

    from .common.text_files import read_lines

    try:
        prompts = [line.strip() for line in read_lines(args.prompts) if line.strip()]
    except OSError as error:
        raise OSError(
            f"--prompts must be a file that can be read ({error.strerror}), got {shown_path(args.prompts)}."
        ) from error
    if not prompts:
        raise ValueError(f"--prompts must be a file with a prompt in each line, {shown_path(args.prompts)} has none.")
    return prompts


def _refuse_one_without_the_other(args: argparse.Namespace) -> None:
    if _num_kinds(args) != 1:
        args.refuse("one of --image and --concept must say who S* is, or --words, --lora and --textual-inversion")
    if args.lora and args.words is None and not args.textual_inversion:
        args.refuse("--words must say what stands for S*, such as the words that --lora was trained with")
    if args.lora_scale and len(args.lora_scale) != len(args.lora or ()):
        args.refuse(f"--lora-scale must be given for each of {len(args.lora or ())} --lora, got {len(args.lora_scale)}")
    if _learnt(args) and not isinstance(_learnt(args)["class_noun"], str):
        args.refuse("--class-noun must say once what the words stand for, such as dog")


def _num_kinds(args: argparse.Namespace) -> int:
    """How many of the three ways to say who S* is were taken."""
    return sum(map(bool, (args.image, args.concept, args.words or args.lora or args.textual_inversion)))


def _learnt(args: argparse.Namespace) -> dict[str, Any] | None:
    if not (args.words or args.lora or args.textual_inversion):
        return None
    nouns = given_flags(args, [flag for flag in call_flags() if flag.name == "class_noun"]).get("class_noun")
    return {
        "words": args.words,
        "class_noun": nouns[0] if isinstance(nouns, list) and len(nouns) == 1 else nouns,
        "loras": args.lora or [],
        "scales": args.lora_scale or [],
        "textual_inversions": args.textual_inversion or [],
    }


def _learnt_again(old: dict[str, Any], typed: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a picture says of learnt words, and over it what was typed."""
    said = old.get("learnt")
    if not said:
        return typed
    sources = {kind: [part.get("source") for part in said.get(kind, [])] for kind in ("loras", "textual_inversions")}
    named = {name: said.get(name) for name in ("words", "class_noun", "scales")}
    return named | sources | {name: value for name, value in (typed or {}).items() if value}


def _check_concepts(args: argparse.Namespace, work: Work) -> None:
    if work.concepts and len(work.concepts) not in (1, len(work.prompts)):
        args.refuse(f"--concept must be given once or for each of {len(work.prompts)} prompts, got {len(args.concept)}")


def _draw(work: Work) -> tuple[list, list[dict[str, Any]]]:
    """The pictures that are wanted, and the record of each."""
    import torch

    from .common.layout import arguments, load_controlnets, read_pictures
    from .common.learnt_files import load_learnt
    from .common.open_pipeline import load_pipeline
    from .demo import load_photo
    from .method.faces import check_detector, crop_face

    photos = [(source, load_photo(source, name="--image")) for source in work.images]
    seen = [photo for _, photo in photos]
    detector = work.settings.get("crop_face")
    if detector is not None:
        check_detector(detector)
        seen = [crop_face(photo, lambda text: print(text, file=sys.stderr), detector) for photo in seen]
    layout, device = read_pictures(work.layout, load_photo), chosen_device(work.device, work.dtype)
    controlnets = load_controlnets(work.layout.get("controlnet", []), **device)
    controlnet = {"controlnet": controlnets[0] if len(controlnets) == 1 else controlnets} if controlnets else {}
    pipe, learnt = load_pipeline(work.model, **device, **controlnet), None
    # A generator for each picture: number i of this run is had again, alone, with --seed (seed + i).
    generators = [torch.Generator().manual_seed(seed) for seed in work.seeds]
    settings = {name: value for name, value in work.settings.items() if name != "crop_face"} | arguments(layout)
    layout = layout | {"controlnet": list(zip(work.layout.get("controlnet", []), controlnets, strict=True))}
    if work.concepts:
        names = {source: f"concept-{number}" for number, source in enumerate(dict.fromkeys(work.concepts), start=1)}
        for source, name in names.items():
            pipe.load_concept(source, name=name)
        of_prompt = [names[source] for source in work.concepts]
        settings["concept"] = of_prompt[0] if len(of_prompt) == 1 else of_prompt
    elif work.learnt:
        learnt = load_learnt(pipe, **work.learnt)
        settings["subject"] = learnt.subject
    else:
        encoding = (settings.pop(name, None) for name in OF_REFERENCES)
        settings["subject"] = pipe.encode_subject(seen, *encoding)
    prompt = work.prompts[0] if len(work.prompts) == 1 else work.prompts
    pictures = pipe(prompt, generator=generators, **settings).images
    wanted = range(len(pictures)) if work.only is None else [work.only]
    return [pictures[i] for i in wanted], [_record(pipe, work, photos, learnt, layout, i) for i in wanted]


def _record(pipe, work: Work, photos: list, learnt: Any, layout: dict, number: int) -> dict[str, Any]:
    from .common.layout import of_prompt as layout_of
    from .common.made_with import record_of
    from .method.faces import detector_name

    per_prompt = work.settings.get("num_images_per_prompt", 1)
    of_prompt = number // per_prompt
    settings = dict(work.settings)
    if "crop_face" in settings:
        settings["crop_face"] = detector_name(settings["crop_face"])
    for name in OF_PROMPT:
        if isinstance(settings.get(name), list):
            settings[name] = settings[name][of_prompt]
    concept = None
    if work.concepts:
        source = work.concepts[of_prompt if len(work.concepts) > 1 else 0]
        concept = (source, pipe.concepts[f"concept-{list(dict.fromkeys(work.concepts)).index(source) + 1}"].concept)
    return record_of(
        pipe,
        model=work.model,
        prompt=work.prompts[of_prompt],
        seed=work.seeds[number],
        settings=settings,
        references=photos,
        concept=concept,
        learnt=learnt,
        layout=layout_of(layout, of_prompt),
        batch=(len(work.prompts), per_prompt, number),
    )


def _say_differences(old: dict[str, Any], new: dict[str, Any]) -> None:
    from .common.made_with import differences

    said = differences(old, new)
    if said:
        print(f"The picture may come out otherwise: {', '.join(said)}.", file=sys.stderr)
