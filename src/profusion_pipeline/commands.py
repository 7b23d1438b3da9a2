"""What each command of `profusion` does with its arguments; `cli.py` says which there are.

Models, torch and Pillow are imported inside the functions that need them, so that `--help` is instant.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from .common.flags import Flag, flags_of_dataclass, flags_of_function, given_flags
from .common.launcher import chosen_device, launched_precision
from .customization.config import AUTO, CustomizeConfig
from .evaluation.config import EvaluationConfig
from .generate import draw
from .method.whole_files import shown_path
from .training.config import TrainingConfig

PACKAGE = Path(__file__).parent
Config = TypeVar("Config", TrainingConfig, CustomizeConfig, EvaluationConfig)


def config_of(args: argparse.Namespace, kind: type[Config]) -> Config:
    """The settings that the arguments of `profusion train`, `customize` or `evaluate` stand for.

    Args:
        args: What the parser made of them.
        kind: `TrainingConfig`, `CustomizeConfig` or `EvaluationConfig`.

    Returns:
        The config; its own defaults stand wherever no flag was given.

    Raises:
        SystemExit: 2, if a number is out of range or arguments contradict each other.

    Example:
        >>> from profusion_pipeline.cli import build_parser
        >>> typed = ["customize", "--model", "demo", "--image", "me.png", "--out", "my-concept", "--steps", "50"]
        >>> config_of(build_parser().parse_args(typed), CustomizeConfig).steps
        50
    """
    given = given_flags(args, flags_of_dataclass(kind))
    try:
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    except ValueError as error:
        args.refuse(str(error))


def publishing_flags(function: str) -> list[Flag]:
    """What `profusion export` and `profusion push` pass on to the functions of `publishing/export.py`.

    Args:
        function: `export_pipeline`, or `push_pipeline`, which refers to it for what both take.

    Returns:
        The flags; source and destination have none.

    Example:
        >>> [flag.name for flag in publishing_flags("push_pipeline")][-3:]
        ['private', 'commit_message', 'create_pr']
    """
    shared = {flag.name: flag for flag in flags_of_function(PACKAGE / "publishing" / "export.py", "export_pipeline")}
    flags = flags_of_function(PACKAGE / "publishing" / "export.py", function)
    positional = ("source", "target", "repo_id", "force")
    return [shared.get(flag.name, flag) for flag in flags if flag.name not in positional]


def _demo(args: argparse.Namespace) -> None:
    from .common.picture_files import output_paths, write_pictures

    paths = output_paths(args.out, 1, force=args.force)

    from diffusers.utils.logging import tqdm

    from .demo import demo_portraits, load_demo_pipeline
    from .demo.grid import PROMPTS, render_demo_grid

    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with tqdm(unit="step") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        grid = render_demo_grid(
            pipe, demo_portraits(), prompts=PROMPTS, seed=args.seed, num_inference_steps=args.steps, progress=progress
        )
    write_pictures([grid], paths, replace=args.force)
    print(paths[0])


def _customize(args: argparse.Namespace) -> None:
    config = config_of(args, CustomizeConfig)
    config = dataclasses.replace(config, mixed_precision=launched_precision(config.mixed_precision, None))
    out = Path(args.out)
    if os.path.isdir(out) and not args.force:
        raise FileExistsError(f"{shown_path(out)} exists already; --force replaces the concept there.")

    if args.push_to_hub is None and (args.sample_prompts or args.license or args.base_model):
        args.refuse("--sample-prompts, --license and --base-model are for the card: add --push-to-hub")

    from .common.files import check_folder, whole_folder, write_or_keep

    check_folder(out, "--out")

    from .common.open_pipeline import DEMO, load_pipeline
    from .method.card import check_facts

    check_facts(base_model=args.base_model, license=args.license)
    if args.push_to_hub is not None:
        from .publishing.export import claim_repository
        from .publishing.samples import draw_samples, push_samples

        repo_id = claim_repository(args.push_to_hub, private=args.private)

    from .customization.customize import customize
    from .demo import DEMO_CONCEPT_SETTINGS, load_photo
    from .method.faces import check_detector
    from .method.reference_images import load_picture
    from .method.subject_prompt import find_placeholder

    if config.crop_face is not None:
        check_detector(config.crop_face)
    photos = [load_photo(file, name="--image") for file in args.image]
    for file in args.mask or ():  # read again with its photo, as it is: transparent, or of numbers too dark to see
        load_picture(file, name="--mask")
    pipe = load_pipeline(args.model, **chosen_device(args.device, args.dtype, mixed=True))
    for prompt in args.sample_prompts or ():
        find_placeholder(prompt, pipe.config.placeholder)
    concept = customize(pipe, photos, config, mask=args.mask, warn=lambda text: print(text, file=sys.stderr))

    def write(folder: Path) -> None:
        if args.force:
            concept.save_pretrained(folder / out.name)
        else:
            with whole_folder(folder / out.name, replace=False) as new:
                concept.save_pretrained(new)

    write_or_keep(write, out.parent)
    if config.caption == AUTO:
        print(f"caption: {concept.settings['caption']}", file=sys.stderr)
    print(f"{concept.steps} steps, loss {concept.loss:.4f}, {concept.num_bytes / 1e6:.2f} MB", file=sys.stderr)
    print(out)
    if args.push_to_hub is not None:
        facts = dict(base_model=args.base_model, license=args.license)
        address = concept.push_to_hub(repo_id, **facts)
        if args.sample_prompts:
            settings = DEMO_CONCEPT_SETTINGS if args.model == DEMO else {}
            pipe.load_concept(concept)
            address = push_samples(repo_id, draw_samples(pipe, args.sample_prompts, **settings))
        print(address)


def _app(args: argparse.Namespace) -> None:
    from .app.serve import open_app

    where = chosen_device(args.device, args.dtype)
    open_app(args.model, **where, share=args.share, port=args.port, allow_remote=args.allow_remote)


def _evaluate(args: argparse.Namespace) -> None:
    config = config_of(args, EvaluationConfig)

    from .evaluation.study import evaluate_folder

    for line in evaluate_folder(config, **chosen_device(args.device, args.dtype)):
        print(line, flush=True)


def _train(args: argparse.Namespace) -> None:
    config = config_of(args, TrainingConfig)

    from .training.trainer import train_promptnet

    print(train_promptnet(config))


def _convert(args: argparse.Namespace) -> None:
    from .publishing.convert import convert_checkpoint

    facts = convert_checkpoint(args.source, args.target, force=args.force)
    print(*facts, sep="\n", file=sys.stderr)
    print(args.target)


def _export(args: argparse.Namespace) -> None:
    given = given_flags(args, publishing_flags("export_pipeline"))
    if args.space:
        if given.keys() - {"license"}:
            args.refuse("--space takes --license and --force only: export the pipeline first")

        from .publishing.space import write_space

        print(write_space(args.source, args.target, force=args.force, **given))
        return

    from .publishing.export import export_pipeline

    print(export_pipeline(args.source, args.target, force=args.force, **_with_sample_settings(args.source, given)))


def _push(args: argparse.Namespace) -> None:
    given = given_flags(args, publishing_flags("push_pipeline"))

    from .publishing.export import push_pipeline

    print(push_pipeline(args.source, args.repo_id, **_with_sample_settings(args.source, given)))


def _with_sample_settings(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """The demo model draws its card's samples with scales of its own, and of portraits by their words."""
    from .common.open_pipeline import DEMO
    from .demo import DEMO_SETTINGS, load_photo

    photo = {"sample_image": load_photo(given["sample_image"], "--sample-image")} if "sample_image" in given else {}
    return given | photo | ({"sample_settings": DEMO_SETTINGS} if source == DEMO else {})


RUN = {
    "demo": _demo,
    "generate": draw,
    "customize": _customize,
    "app": _app,
    "evaluate": _evaluate,
    "train": _train,
    "convert": _convert,
    "export": _export,
    "push": _push,
}
