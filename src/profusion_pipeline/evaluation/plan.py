"""What a study asks, as a list of settings: one thing varied at a time, all at an equal number of UNet rows a picture.

    question   varied
    1          the system; of ProFusion's, m
    2          guidance, for every system
    3          m, γ, η, ω_f, the part of the steps that has a fusion stage, who predicts ∅ and C
    4          the pre-training of PromptNet; caption and augmentation, for every system that learns; before and after
    5          scheduler and number of steps

The sixth, what learning and drawing cost, is measured alone, by `costs.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..common.files import write_whole
from ..common.text_files import read_lines
from ..method.quoting import quote
from ..method.whole_files import shown_path
from .rows import Setting, learning_text
from .systems.profusion import ProFusion
from .systems.system import Sampling, System

QUESTIONS = {
    1: "Prompt and identity of the systems",
    2: "Identity against prompt over guidance, at equal UNet rows",
    3: "What fusion does, and where it is worth its rows",
    4: "Regulariser, caption, augmentation, before and after customising",
    5: "Schedulers and steps",
}
NO_FUSION = Sampling(num_fusion_steps=0)
FACTORS = (1.0, 0.5, 1.5)  # of guidance
SUBJECT_SCALES = (0.2, 0.5, 1.0)  # γ
ETAS = (0.25, 0.5, 0.75)
FUSION_FACTORS = (0.0, 0.5, 2.0)  # of ω_f
WINDOWS = ((0.0, 0.25), (0.0, 0.5), (0.5, 1.0), (0.75, 1.0))
POOL_SIZE = 32  # pictures made of the photo where there is augmentation
SCHEDULES = (("DDIM", 50), ("DPM++ 2M", 25), ("UniPC", 15))


PLAN = "plan.jsonl"


class Cell(NamedTuple):
    """One line of a question's table, and one point of its plot.

    Args:
        question: A number of `QUESTIONS`.
        curve: What is varied in this and its neighbours; points of a curve are joined.
        label: What tells it from these.
        setting: What is drawn.
        seeds: How many pictures of each subject and prompt.
        reference: What it is compared with, pair by pair; None for nothing.
    """

    question: int
    curve: str
    label: str
    setting: Setting
    seeds: int
    reference: Setting | None = None


def make_plan(
    systems: Mapping[str, System],
    *,
    learning: Mapping[str, Any] | None = None,
    captioned: bool = False,
    rows: int = 80,
    questions: Sequence[int] = tuple(QUESTIONS),
    seeds: int = 2,
) -> list[Cell]:
    """The cells of these questions, the most important first; several cells may share a setting.

    Args:
        systems: By name, in the order of the tables.
        learning: Fields of `CustomizeConfig` that all systems share, e.g. `pool_size=1` for no augmentation.
        captioned: Whether systems learn a photo with its caption; question 4 then asks what that does.
        rows: UNet rows that a picture may take, at least those of one step; says the steps, except for question 5.
        questions: Numbers of `QUESTIONS`.
        seeds: How many pictures of each subject and prompt for question 1; with 2 or more there is diversity.

    Returns:
        The cells.

    Raises:
        ValueError: There is no such question, or a step of a system takes more than `rows`.

    Example:
        >>> from profusion_pipeline.evaluation.systems.baselines import SYSTEMS
        >>> cells = make_plan({"Stable Diffusion": SYSTEMS["Stable Diffusion"]}, questions=[1], rows=50)
        >>> cells[0].setting.sampling.num_inference_steps
        25
    """
    for question in questions:
        if question not in QUESTIONS:
            raise ValueError(f"A question must be one of {', '.join(map(str, QUESTIONS))}, got {quote(question)}.")
    maker = _Plan(systems, dict(learning or {}), captioned, rows)
    cells = []
    for question in questions:
        for curve, label, setting, reference in getattr(maker, f"question_{question}")():
            cells.append(Cell(question, curve, label, setting, seeds if question == 1 else 1, reference))
    return cells


def steps_within(system: System, sampling: Sampling, rows: int) -> Sampling:
    """As many steps as the rows allow.

    Args:
        system: That draws.
        sampling: How, but for the steps.
        rows: UNet rows that a picture may take.

    Returns:
        `sampling` with the greatest number of steps.

    Raises:
        ValueError: Not even one step is possible.

    Example:
        >>> from profusion_pipeline.evaluation.systems.baselines import SYSTEMS
        >>> steps_within(SYSTEMS["PromptNet"], Sampling(num_fusion_steps=1), 100).num_inference_steps
        20
    """
    possible = (replace(sampling, num_inference_steps=steps) for steps in range(rows, 0, -1))
    for one in possible:
        if system.unet_rows(one) <= rows:
            return one
    raise ValueError(f"`rows` must allow one step of {system.name} at least, got {rows}.")


def settings_of(cells: Sequence[Cell]) -> dict[Setting, int]:
    """What is to be drawn for these cells: each setting once, with the greatest number of seeds that a cell asks for.

    Args:
        cells: As from [`make_plan`].

    Returns:
        Setting -> seeds, in the order of the cells.

    Example:
        >>> setting = Setting("A", "", Sampling())
        >>> settings_of([Cell(1, "", "A", setting, 2), Cell(2, "A", "1", setting, 1)]) == {setting: 2}
        True
    """
    seeds = {}
    for cell in cells:
        seeds[cell.setting] = max(cell.seeds, seeds.get(cell.setting, 0))
    return seeds


def save_plan(folder: str | Path, cells: Sequence[Cell]) -> None:
    """Keep the cells beside the rows, so that tables and plots can be made from the folder alone.

    Args:
        folder: Of the run. Other cells that were kept there before stay.
        cells: As from [`make_plan`].

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_plan(folder, [Cell(1, "", "A", Setting("A", "", Sampling()), 2)])
        >>> load_plan(folder)[0].label
        'A'
    """
    before = load_plan(folder) if Path(folder, PLAN).is_file() else []
    union = sorted(dict.fromkeys([*cells, *before]), key=lambda cell: cell.question)
    lines = [json.dumps(cell._asdict(), default=asdict) for cell in union]
    write_whole(Path(folder, PLAN), "".join(f"{line}\n" for line in lines))


def load_plan(folder: str | Path) -> list[Cell]:
    """The cells of a run.

    Args:
        folder: Of the run.

    Returns:
        As they were given to [`save_plan`].

    Raises:
        FileNotFoundError: The folder holds no plan.

    Example:
        >>> load_plan("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: There is no plan in 'nowhere': it has no plan.jsonl.
    """
    file = Path(folder, PLAN)
    if not file.is_file():
        raise FileNotFoundError(f"There is no plan in {shown_path(folder)}: it has no {PLAN}.")
    cells = []
    for line in read_lines(file):
        cell = json.loads(line)
        for name in ("setting", "reference"):
            if cell[name]:
                cell[name] = Setting(**cell[name] | {"sampling": Sampling(**cell[name]["sampling"])})
        cells.append(Cell(**cell))
    return cells


Line = tuple[str, str, Setting, Setting | None]  # curve, label, setting, reference


class _Plan:
    def __init__(self, systems: Mapping[str, System], learning: dict[str, Any], captioned: bool, rows: int):
        self.systems, self.learning, self.captioned, self.rows = systems, learning, captioned, rows

    def setting(
        self,
        system: System,
        sampling: Sampling,
        *,
        equal_rows: bool = True,
        captioned: bool | None = None,
        **learning: Any,
    ) -> Setting:
        if equal_rows:
            sampling = steps_within(system, sampling, self.rows)
        if not system.learns:
            return Setting(system.name, "", sampling)
        with_caption = self.captioned if captioned is None else captioned
        learns = learning_text(system.config(**self.learning | learning), captioned=with_caption)
        return Setting(system.name, learns, sampling)

    def fusing(self) -> list[ProFusion]:
        return [system for system in self.systems.values() if isinstance(system, ProFusion)]

    def main(self) -> list[System]:
        """All but those with a PromptNet of their own, which question 4 is about."""
        return [system for system in self.systems.values() if getattr(system, "promptnet", None) is None]

    def ours(self) -> list[ProFusion]:
        """The one that questions about fusion are put to, or none: customised where there is one."""
        own = [system for system in self.main() if isinstance(system, ProFusion)]
        return sorted(own, key=lambda system: not system.learns)[:1]

    def foil(self, system: ProFusion) -> ProFusion | None:
        """Of a customised one, the same before; of a regularised one, the one trained as long without."""
        for other in self.fusing():
            before = system.learns and not other.learns and other.promptnet == system.promptnet
            plain = system.promptnet == "l2" and other.promptnet == "plain" and not (system.learns or other.learns)
            if before or plain:
                return other
        return None

    def usual(self, system: System) -> list[tuple[str, Sampling]]:
        """How a system draws when nothing is varied: (label, sampling)."""
        if isinstance(system, ProFusion):
            return [(f"{system.name}, m = {m}", Sampling(num_fusion_steps=m)) for m in (1, 0)]
        return [(system.name, NO_FUSION)]

    def question_1(self) -> Iterator[Line]:
        ours = [self.setting(system, Sampling(num_fusion_steps=1)) for system in self.ours()]
        for system in self.main():
            for label, sampling in self.usual(system):
                setting = self.setting(system, sampling)
                yield label, "", setting, ours[0] if ours and setting != ours[0] else None

    def question_2(self) -> Iterator[Line]:
        for factor in FACTORS:
            for system in self.main():
                for label, sampling in self.usual(system):
                    yield label, f"x {factor:g}", self.setting(system, replace(sampling, guidance=factor)), None

    def question_3(self) -> Iterator[Line]:
        for system in self.ours():
            base = Sampling(num_fusion_steps=1)
            own = system.guidance(base)
            of_guidance = [factor * own.fusion_guidance_scale for factor in FUSION_FACTORS]
            varied = [("m", f"{m}", replace(base, num_fusion_steps=m)) for m in range(4)]
            for start, end in WINDOWS:
                window = replace(base, fusion_start=start, fusion_end=end)
                varied.append(("part of the steps", f"{start:g} to {end:g}", window))
            for name, symbol, values in (
                ("fusion_subject_scale", "γ", SUBJECT_SCALES),
                ("fusion_eta", "η", ETAS),
                ("fusion_guidance_scale", "ω_f", of_guidance),
            ):
                varied += [(symbol, f"{value:g}", replace(base, **{name: value})) for value in values]
                varied.append((symbol, f"{getattr(own, name):g}", base))
            if system.learns:  # by the base is the pipeline's own way
                for m in (1, 0):
                    by_itself = replace(base, num_fusion_steps=m, base_guidance=False)
                    varied.append(("∅ and C by the customised model", f"m = {m}", by_itself))
            usual = self.setting(system, base)
            for curve, label, sampling in varied:
                setting = self.setting(system, sampling)
                yield curve, label, setting, usual if setting != usual else None

    def question_4(self) -> Iterator[Line]:
        for system in self.fusing():
            for m in (0, 1, 2) if system.promptnet is None else (0, 1):
                sampling = Sampling(num_fusion_steps=m)
                against = self.foil(system)
                reference = self.setting(against, sampling) if against else None
                yield system.name, f"m = {m}", self.setting(system, sampling), reference
        for system in (system for system in self.main() if system.learns):
            for label, sampling in self.usual(system):
                alone, augmented = (self.setting(system, sampling, pool_size=size) for size in (1, POOL_SIZE))
                yield f"{label}, learnt from", "the photo alone", alone, None
                if self.captioned:
                    without = self.setting(system, sampling, captioned=False)
                    yield f"{label}, learnt from", "the photo without its caption", without, alone
                yield f"{label}, learnt from", "augmentations", augmented, alone

    def question_5(self) -> Iterator[Line]:
        rivals = [system for system in self.systems.values() if not isinstance(system, ProFusion) and system.learns]
        for system in (*self.ours(), *rivals[:1]):
            for label, sampling in self.usual(system):
                first = None
                for scheduler, steps in SCHEDULES:
                    chosen = replace(sampling, scheduler=scheduler, num_inference_steps=steps)
                    setting = self.setting(system, chosen, equal_rows=False)
                    yield label, f"{scheduler}, {steps} steps", setting, first
                    first = first or setting
