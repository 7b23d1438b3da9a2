"""`profusion demo | generate | customize | app | evaluate | train | convert | export | push`.

Flags are not written down here: those of `generate` are read from `ProFusionPipeline.__call__` (its signature and
docstring), those of `train`, `customize` and `evaluate` from the fields of their configs, those of `export` and `push`
from the functions in `publishing/export.py`. What a command does is in `commands.py`.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from .commands import RUN, publishing_flags
from .common.flags import add_flags, flags_of_dataclass, seed, whole_number
from .common.launcher import check_launcher, tell_launcher
from .common.sentences import sentence_of
from .customization.config import CustomizeConfig
from .evaluation.config import EvaluationConfig
from .generate import call_flags
from .training.config import TrainingConfig

# What `generate` takes beside the reference, as `common/layout.py` reads it.
LAYOUT_FLAGS = (
    (
        "--init-image",
        "FILE",
        "A picture to begin with, with --strength below 1 or --mask-image; one for all prompts, or one for each.",
    ),
    ("--mask-image", "FILE", "What of --init-image is drawn anew, where it is white; of its size."),
    ("--controlnet", "MODEL", "Folder or Hub id of a ControlNet, which reads --control-image; or several."),
    ("--control-image", "FILE", "Edges, a pose or depth, as --controlnet learnt them; one for each of several."),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after `profusion`; None takes those of the process.

    Returns:
        0 if it worked, 1 if it failed (one sentence on stderr; with `PROFUSION_DEBUG=1` in the environment the
        exception itself).

    Raises:
        SystemExit: 2 for arguments that argparse refuses, 0 after `--help`.

    Example:
        >>> main(["generate", "--model", "demo", "--image", "missing.png", "--prompt", "S*", "--out", "x.png"])
        1
    """
    args = build_parser().parse_args(argv)
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # their remarks are for those who write code
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # the name of a file may be no text: it is said byte for byte
    try:
        # Before any work: what accelerate launch and torchrun ask for in vain.
        check_launcher(
            f"profusion {args.command}",
            several_processes=args.command in ("train", "evaluate"),
            accumulation=args.command == "train",
            precision=args.command in ("train", "customize", "generate", "app", "evaluate"),
        )
        RUN[args.command](args)
    except KeyboardInterrupt:
        print("profusion: stopped.", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("PROFUSION_DEBUG") == "1":
            raise
        sentence = f"profusion: {sentence_of(error)}"
        print(sentence, file=sys.stderr)
        tell_launcher(sentence)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands.

    Example:
        >>> build_parser().parse_args(["convert", "old", "new"]).target
        'new'
    """
    parser = argparse.ArgumentParser(prog="profusion", description="One portrait and a prompt -> pictures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(commands, "demo", "[options]", "Draw the demo grid with the bundled model, offline.")
    command.add_argument("--seed", type=seed, default=0, help="Seed of the noise (default: 0).")
    command.add_argument(
        "--steps", type=whole_number, default=25, help="Denoising steps of each picture (default: 25)."
    )
    command.add_argument("--out", default="profusion_demo.png", help="The picture (default: profusion_demo.png).")
    _add_force(command)

    command = _command(
        commands,
        "generate",
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
    for name, metavar, help in LAYOUT_FLAGS:
        command.add_argument(name, default=None, nargs="+", metavar=metavar, help=help)
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
    _add_device(command)
    command.add_argument(
        "--seed", type=seed, default=None, help="Seed of the first picture, +1 for each further one (default: drawn)."
    )
    _add_force(command)

    command = _command(
        commands,
        "customize",
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
    _add_device(command)
    _add_force(command)

    command = _command(
        commands,
        "app",
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
    _add_device(command)

    command = _command(
        commands,
        "evaluate",
        "--model M --subjects FOLDER --prompts FILE --output FOLDER [options]",
        "Compare ways of drawing a person, on a folder of people: tables and plots.",
    )
    add_flags(command, flags_of_dataclass(EvaluationConfig))
    _add_device(command)

    command = _command(
        commands,
        "train",
        "--model M --data DATA --output FOLDER [options]",
        "Train a PromptNet on a folder or a stream of pictures.",
    )
    add_flags(command, flags_of_dataclass(TrainingConfig))

    command = _command(
        commands,
        "convert",
        "SOURCE TARGET [options]",
        "The authors' 2023 checkpoint layout -> a ProFusion pipeline folder.",
    )
    command.add_argument("source", help="Folder or Hub id in the authors' layout.")
    command.add_argument("target", help="The folder to write; it appears whole or not at all.")
    _add_force(command)

    command = _command(
        commands,
        "export",
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
        "push",
        "SOURCE REPO_ID [options]",
        "A pipeline, with its code and a model card -> a repository on the Hub, as one commit; samples as a second.",
    )
    command.add_argument("source", help='Folder or Hub id of a pipeline or a Stable Diffusion 2, or "demo".')
    command.add_argument("repo_id", help="Repository on the Hub; made if it is not there.")
    add_flags(command, publishing_flags("push_pipeline"))
    return parser


def _command(commands, name: str, usage: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        usage=f"profusion {name} {usage}",
        help=help,
        description=help,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(command=name, refuse=parser.error)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=None, help="E.g. cpu, cuda:1 (default: cuda where there is one, else cpu).")
    parser.add_argument(
        "--dtype",
        default=None,
        choices=["float32", "float16", "bfloat16"],
        help="Default: float16 on cuda, float32 elsewhere.",
    )


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", default=False, help="Replace what is there already.")
