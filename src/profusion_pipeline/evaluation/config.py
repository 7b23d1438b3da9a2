"""What `profusion evaluate` takes; standard library only, so that its `--help` is instant."""

import os
from dataclasses import dataclass

from ..common.launcher import launched_precision
from ..common.settings import check_settings, setting
from ..method.checks import check_characters


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """A study of systems on a folder of subjects: one field per setting, its help sentence in the metadata.

    Raises:
        TypeError: A field has another type than annotated.
        ValueError: A field is out of its range, or two fields contradict each other.

    Example:
        >>> EvaluationConfig(output="runs/study", redraw=True).questions
        (1, 2, 3, 4, 5)
    """

    # What is compared, on whom
    model: str | None = setting(None, help='Folder or Hub id of a ProFusion pipeline, or "demo".')
    subjects: str | None = setting(
        None, help="Folder with a sub-folder for each subject; systems see its first picture, likeness is to all."
    )
    prompts: str | None = setting(None, help="File with a prompt a line, each with S* once.")
    output: str = setting(help="Folder for rows, what was learnt, tables and plots.")
    systems: tuple[str, ...] = setting(
        (), help="Names of systems; all if not given, without the pre-trained ones where there is no --weights."
    )
    metrics: tuple[str, ...] = setting(
        ("dino-vits16", "clip-vit-b-32"),
        help="Encoders (clip-vit-b-32, clip-rn50x64, dino-vits16, sface, ...; demo-clip for the demo, offline) or "
        "module:attribute of your own. Plots show the first that compares pictures against the first that knows texts.",
    )
    questions: tuple[int, ...] = setting(
        (1, 2, 3, 4, 5),
        help="Which are asked: 1 systems, 2 guidance, 3 fusion, 4 pre-training, captions and augmentation, "
        "5 schedulers, 6 what each system costs (alone, so let nothing else run).",
    )
    weights: str | None = setting(None, help="Folder of pre-trained rivals (e4t, l2, plain), for those systems.")

    # How it is drawn
    class_noun: str = setting("person", help="What the subjects are, in plain words.")
    learning_prompt: str = setting("a photo of S*", help="Under which systems learn a photo.")
    captions: bool = setting(
        False,
        help="Learn each photo with its caption, the file caption.txt beside it: what it shows besides the subject.",
    )
    pool_size: int = setting(
        32, help="Pictures made of the photo that systems learn from; 1 is the photo alone.", minimum=1
    )
    unet_rows: int = setting(
        250, help="UNet rows that a picture may take: 50 steps of Fusion Sampling with m = 1.", minimum=9
    )
    seeds: int = setting(2, help="Pictures of each subject and prompt for question 1; diversity needs 2.", minimum=1)
    batch_size: int = setting(10, help="Pictures drawn in one call, at most.", minimum=1)
    mixed_precision: str | None = setting(
        None,
        help="Autocast while drawing, not while learning. If not given, what accelerate launch says, or no.",
        choices=("no", "fp16", "bf16"),
    )

    # Processes
    worker: int | None = setting(
        None, help="Number of this process, from 0 on; RANK, which torchrun sets, or 0 if not given.", minimum=0
    )
    workers: int | None = setting(
        None, help="How many processes share the run; WORLD_SIZE, which torchrun sets, or 1 if not given.", minimum=1
    )
    resume: bool = setting(False, help="Go on with the run in --output.")
    redraw: bool = setting(False, help="Only make tables and plots, from the rows in --output.")

    def __post_init__(self):
        check_settings(self)
        for question in self.questions:
            if question not in range(1, 7):
                raise ValueError(f"`questions` must be among 1 to 6, got {question}.")
        for name in ("class_noun", "learning_prompt"):
            check_characters(name, getattr(self, name))
        _ = self.precision  # a launcher that contradicts it is refused
        worker, workers = self.share
        if worker >= workers:
            raise ValueError(f"`worker` must be 0 to {workers - 1} with {workers} workers, got {worker}.")

    @property
    def precision(self) -> str:
        """The mixed precision given, else the launcher's, else "no"."""
        return launched_precision(self.mixed_precision, "no")

    @property
    def share(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        worker = int(os.environ.get("RANK", 0)) if self.worker is None else self.worker
        workers = int(os.environ.get("WORLD_SIZE", 1)) if self.workers is None else self.workers
        return worker, workers
