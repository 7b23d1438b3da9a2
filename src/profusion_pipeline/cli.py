"""`profusion demo | generate | customize | app | evaluate | train | convert | export | push`.

Flags are not written down here: those of `generate` are read from `ProFusionPipeline.__call__` (its signature and
docstring), those of `train`, `customize` and `evaluate` from the fields of their configs, those of `export` and `push`
from the functions in `publishing/export.py`. Models, torch and Pillow are imported inside the functions that need them,
so that `--help` is instant.
"""

import argparse
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .common.flags import Flag, add_flags, flags_of_dataclass, flags_of_function, given_flags, seed, whole_number
from .common.launcher import check_launcher, chosen_place, launched_precision
from .common.sentences import sentence_of
from .customization.config import AUTO, CustomizeConfig
from .evaluation.config import EvaluationConfig
from .generate import call_flags, draw
from .training.config import TrainingConfig

PACKAGE = Path(__file__).parent
Config = TypeVar("Config", TrainingConfig, CustomizeConfig, EvaluationConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `profusion`; None takes those of the process.

    Returns:
        0 if it worked, 1 if it failed (one sentence on stderr; with `PROFUSION_DEBUG=1` in the environment the
        exception itself).

    Raises:
        SystemExit: 2 for words that argparse refuses, 0 after `--help`.

    Example:
        >>> main(["generate", "--model", "demo", "--image", "missing.png", "--prompt", "S*", "--out", "x.png"])
        1
    """
    args = build_parser().parse_args(argv)
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # their remarks are for those who write code
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # the name of a file may be no text: it is said byte for byte
    command = args.run.__name__.removeprefix("_")
    try:
        # Before any work: what accelerate launch and torchrun ask for in vain.
        shares = command in ("train", "evaluate")
        check_launcher(f"profusion {command}", several_processes=shares, accumulation=command == "train")
        args.run(args)
    except KeyboardInterrupt:
        print("profusion: stopped.", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("PROFUSION_DEBUG") == "1":
            raise
        print(f"profusion: {sentence_of(error)}", file=sys.stderr)
        return 1
    return 0


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


def _generate(args: argparse.Namespace) -> None:
    draw(args)


def _customize(args: argparse.Namespace) -> None:
    config = config_of(args, CustomizeConfig)
    config = dataclasses.replace(config, mixed_precision=launched_precision(config.mixed_precision, None))
    out = Path(args.out)
    if out.is_dir() and not args.force:
        raise FileExistsError(f"{str(out)!r} exists already; --force replaces the concept there.")

    if args.push_to_hub is None and (args.sample_prompts or args.license or args.base_model):
        args.refuse("--sample-prompts, --license and --base-model are for the card: add --push-to-hub")

    from .common.files import check_folder, whole_folder, write_or_keep
    from .common.open_pipeline import DEMO, load_pipeline
    from .method.card import check_facts

    check_folder(out, "--out")
    check_facts(base_model=args.base_model, license=args.license)
    if args.push_to_hub is not None:
        from .publishing.export import claim_repository
        from .publishing.samples import draw_samples, push_samples

        repo_id = claim_repository(args.push_to_hub, private=args.private)

    from .customization.customize import customize
    from .demo import DEMO_CONCEPT_SETTINGS, load_photo
    from .method.reference_images import load_picture
    from .method.subject_prompt import find_placeholder

    photos = [load_photo(file, name="--image") for file in args.image]
    for file in args.mask or ():  # read again with its photo, as it is: transparent, or of numbers too dark to see
        load_picture(file, name="--mask")
    pipe = load_pipeline(args.model, **chosen_place(args.device, args.dtype))
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

    place = chosen_place(args.device, args.dtype)
    open_app(args.model, **place, share=args.share, port=args.port, allow_remote=args.allow_remote)


def _evaluate(args: argparse.Namespace) -> None:
    config = config_of(args, EvaluationConfig)

    from .evaluation.study import evaluate_folder

    for line in evaluate_folder(config, **chosen_place(args.device, args.dtype)):
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


def config_of(args: argparse.Namespace, kind: type[Config]) -> Config:
    """The settings that the words of `profusion train`, `customize` or `evaluate` stand for.

    Args:
        args: What the parser made of them.
        kind: `TrainingConfig`, `CustomizeConfig` or `EvaluationConfig`.

    Returns:
        The config; its own defaults stand wherever no flag was given.

    Raises:
        SystemExit: 2, if a number is out of range or words contradict each other.

    Example:
        >>> words = ["customize", "--model", "demo", "--image", "me.png", "--out", "my-concept", "--steps", "50"]
        >>> config_of(build_parser().parse_args(words), CustomizeConfig).steps
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
        The flags; source and destination are words without one.

    Example:
        >>> [flag.name for flag in publishing_flags("push_pipeline")][-3:]
        ['private', 'commit_message', 'create_pr']
    """
    shared = {flag.name: flag for flag in flags_of_function(PACKAGE / "publishing" / "export.py", "export_pipeline")}
    flags = flags_of_function(PACKAGE / "publishing" / "export.py", function)
    words = ("source", "target", "repo_id", "force")
    return [shared.get(flag.name, flag) for flag in flags if flag.name not in words]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands.

    Example:
        >>> build_parser().parse_args(["convert", "old", "new"]).target
        'new'
    """
    parser = argparse.ArgumentParser(prog="profusion", description="One portrait and a prompt -> pictures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(commands, _demo, "[options]", "Draw the demo grid with the bundled model, offline.")
    command.add_argument("--seed", type=seed, default=0, help="Seed of the noise (default: 0).")
    command.add_argument(
        "--steps", type=whole_number, default=25, help="Denoising steps of each picture (default: 25)."
    )
    command.add_argument("--out", default="profusion_demo.png", help="The picture (default: profusion_demo.png).")
    _add_force(command)

    command = _command(
        commands,
        _generate,
        "(--model M (--image FILE | --concept FOLDER | --words TEXT) --prompt TEXT | --from PICTURE) [options]",
        "Pictures of the person on the reference photo(s), of a concept, or of what a LoRA or word has learnt.",
    )
    command.add_argument(
        "--model",
        default=None,
        help='Folder or Hub id of a ProFusion pipeline, or "demo"; for --words of any Stable Diffusion 1.x or 2.x.',
    )
    command.add_argument(
        "--image",
        default=None,
        nargs="+",
        metavar="FILE",
        help='Reference photo; several show the same person. "demo" is a bundled portrait, demo:2 the second of them.',
    )
    command.add_argument(
        "--concept",
        default=None,
        nargs="+",
        metavar="FOLDER",
        help="In place of --image: what `profusion customize` made, a folder or Hub id; one, or one for each prompt.",
    )
    command.add_argument(
        "--words",
        default=None,
        metavar="TEXT",
        help="In place of --image: what stands for S* in the prompt, such as the words a LoRA was trained with; with "
        "--class-noun.",
    )
    command.add_argument(
        "--lora",
        default=None,
        nargs="+",
        metavar="FILE",
        help="A file, folder or Hub id: the LoRA that --words were learnt with; it computes S* only. Several add up.",
    )
    command.add_argument(
        "--lora-scale", default=None, nargs="+", type=float, metavar="X", help="Weight of each LoRA (default: 1)."
    )
    command.add_argument(
        "--textual-inversion",
        default=None,
        nargs="+",
        metavar="FILE",
        help="A file, folder or Hub id of a learnt word, which --words may hold; without --words it stands for S*.",
    )
    command.add_argument(
        "--from",
        dest="again",
        default=None,
        metavar="PICTURE",
        help="A picture of `profusion generate`, to be drawn again as it says of itself; flags that are given win.",
    )
    command.add_argument(
        "--prompts", default=None, metavar="FILE", help="In place of --prompt: a text file with a prompt in each line."
    )
    add_flags(command, call_flags())
    command.add_argument("--out", default="profusion.png", help="The picture; several are numbered (profusion.png).")
    command.add_argument(
        "--metadata",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Whether PNG, JPEG, WebP and AVIF say how they were made: prompt, seed, settings, hashes of photo and "
        "weights; no path and no name (default: they do).",
    )
    command.add_argument(
        "--mark-ai",
        action="store_true",
        default=False,
        help="Say in the picture's file, in the IPTC's words for platforms and agencies, that a model drew it.",
    )
    _add_place(command)
    command.add_argument(
        "--seed", type=seed, default=None, help="Seed of the first picture, +1 for each further one (default: drawn)."
    )
    _add_force(command)

    command = _command(
        commands,
        _customize,
        "--model M --image FILE --out FOLDER [options]",
        "Bring S* nearer to the person on one photo; the result is for `profusion generate --concept`.",
    )
    command.add_argument("--model", required=True, help='Folder or Hub id of a ProFusion pipeline, or "demo".')
    command.add_argument(
        "--image",
        required=True,
        metavar="FILE",
        nargs="+",
        help='The photo, or several of one person; "demo" is a bundled portrait.',
    )
    command.add_argument(
        "--mask",
        default=None,
        metavar="FILE",
        nargs="+",
        help="Picture of the photo's size, light where the person is; one for each photo.",
    )
    command.add_argument("--out", required=True, metavar="FOLDER", help="Where the concept is kept.")
    command.add_argument(
        "--push-to-hub",
        default=None,
        metavar="REPO_ID",
        help="Also publish it, with a card; the repository is made if it is not there.",
    )
    command.add_argument("--license", default=None, help="For the card: the Hub's word for a licence.")
    command.add_argument(
        "--base-model", default=None, help="For the card: Hub id of the model, if --model is a folder of this machine."
    )
    command.add_argument(
        "--sample-prompts",
        default=None,
        nargs="+",
        metavar="TEXT",
        help="For the card: prompts that are drawn with the concept, as small pictures. They show the person to all.",
    )
    command.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Whether a new repository is private (default: as the account has it).",
    )
    add_flags(command, flags_of_dataclass(CustomizeConfig))
    _add_place(command)
    _add_force(command)

    command = _command(
        commands,
        _app,
        "[--model M] [options]",
        "A page in the browser: draw, customise, compare. Without a model, the bundled one.",
    )
    command.add_argument("--model", default="demo", help='Folder or Hub id of a ProFusion pipeline (default: "demo").')
    command.add_argument("--port", type=whole_number, default=None, help="Default: the first free one from 7860.")
    command.add_argument(
        "--allow-remote",
        action="store_true",
        default=False,
        help="Let other machines open the page, not this one only.",
    )
    command.add_argument("--share", action="store_true", default=False, help="Let Gradio make a public address for it.")
    _add_place(command)

    command = _command(
        commands,
        _evaluate,
        "--model M --subjects FOLDER --prompts FILE --output FOLDER [options]",
        "Compare ways of drawing a person, on a folder of people: tables and plots.",
    )
    add_flags(command, flags_of_dataclass(EvaluationConfig))
    _add_place(command)

    command = _command(
        commands,
        _train,
        "--model M --data DATA --output FOLDER [options]",
        "Train a PromptNet on a folder or a stream of pictures.",
    )
    add_flags(command, flags_of_dataclass(TrainingConfig))

    command = _command(
        commands,
        _convert,
        "SOURCE TARGET [options]",
        "The authors' 2023 checkpoint layout -> a ProFusion pipeline folder.",
    )
    command.add_argument("source", help="Folder or Hub id in the authors' layout.")
    command.add_argument("target", help="The folder to write; it appears whole or not at all.")
    _add_force(command)

    command = _command(
        commands,
        _export,
        "SOURCE TARGET [options]",
        "A pipeline, with its code and a model card -> a folder that loads anywhere; or the app around it -> a Space.",
    )
    command.add_argument("source", help='Folder or Hub id of a pipeline or a Stable Diffusion 2, or "demo".')
    command.add_argument("target", help="The folder to write; a new one appears whole or not at all.")
    command.add_argument(
        "--space", action="store_true", default=False, help="Write the app around it, as a Space of Hugging Face."
    )
    add_flags(command, publishing_flags("export_pipeline"))
    _add_force(command)

    command = _command(
        commands,
        _push,
        "SOURCE REPO_ID [options]",
        "A pipeline, with its code and a model card -> a repository on the Hub, as one commit.",
    )
    command.add_argument("source", help='Folder or Hub id of a pipeline or a Stable Diffusion 2, or "demo".')
    command.add_argument("repo_id", help="Repository on the Hub; made if it is not there.")
    add_flags(command, publishing_flags("push_pipeline"))
    return parser


def _command(commands, run: Callable, words: str, help: str) -> argparse.ArgumentParser:
    name = run.__name__.removeprefix("_")
    parser = commands.add_parser(
        name,
        usage=f"profusion {name} {words}",
        help=help,
        description=help,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=run, refuse=parser.error)
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=None, help="E.g. cpu, cuda:1 (default: cuda where there is one, else cpu).")
    parser.add_argument(
        "--dtype",
        default=None,
        choices=["float32", "float16", "bfloat16"],
        help="Default: float16 on cuda, float32 elsewhere.",
    )


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", default=False, help="Replace what is there already.")
