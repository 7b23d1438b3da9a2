"""The page: Gradio's widgets, and who is asked when one of them is touched. What is done lies in `studio.py`."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from threading import Event
from typing import Any

import torch

from ..common.open_pipeline import DEMO, load_pipeline
from ..method.concept_file import Concept
from ..notebook.explain import data_image
from . import markup
from .studio import AXES, Customised, Drawn, Settings, Step, Studio, Who
from .uploads import Limits, public_sentence, read_concept, read_photos

PORTRAIT, PHOTOS, CONCEPT = "A portrait of the demo", "My photos", "A concept"
PROMPTS = "a portrait of S*, at the beach\na portrait of S*, wearing a blue top hat"
CAPTION_HELP = "What is in the photo and is not the person: clothes, place, expression. S* need not carry it then."
RESPONSIBLE = (
    "Ask people before you make pictures of them. What you upload is kept for an hour at most, and what is drawn for "
    "you is kept on this page alone."
)
WAITING = 64  # calls in the queue; a visitor beyond is told so
KEPT_SECONDS = 3600  # uploads and concepts


def _gradio() -> Any:
    if find_spec("gradio") is None:
        raise ImportError('The app needs Gradio: `pip install "profusion-pipeline[app]"`.')
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return import_module("gradio")


def open_app(
    model: str = DEMO,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    share: bool = False,
    port: int | None = None,
    allow_remote: bool = False,
) -> None:
    """Serve the page until Ctrl-C; uploads lie in a folder of their own, which is gone afterwards.

    Args:
        model: Folder or Hub id of a ProFusion pipeline, or "demo".
        dtype: Of its weights.
        device: Where it computes.
        share: Whether Gradio makes a public address for it.
        port: Where it listens; the first free one from 7860 if None.
        allow_remote: Whether other machines may open the page.

    Raises:
        ImportError: Gradio isn't installed.
        OSError: There is no pipeline, or the port is taken.

    Example:
        >>> open_app("demo", port=7860)  # doctest: +SKIP
    """
    _gradio()
    with tempfile.TemporaryDirectory(prefix="profusion-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        studio = Studio(load_pipeline(model, dtype=dtype, device=device), model=model)
        page = build_page(studio)
        page.launch(
            **launch_settings(studio.limits),
            share=share,
            server_port=port,
            server_name="0.0.0.0" if allow_remote else "127.0.0.1",
        )


def launch_settings(limits: Limits) -> dict[str, Any]:
    """What every server of the page is started with: no errors but ours, no larger uploads, fonts of the visitor.

    Args:
        limits: That hold.

    Returns:
        Arguments of Gradio's `launch`.

    Example:
        >>> launch_settings(Limits())["max_file_size"]
        20971520
    """
    fonts = ["system-ui", "sans-serif"]
    settings = {"show_error": False, "max_file_size": limits.upload_bytes, "state_session_capacity": 200}
    if find_spec("gradio") is not None:
        settings["theme"] = _gradio().themes.Default(font=fonts, font_mono=["monospace"])
    return settings


class Turns:
    """Whose work may be stopped: one event for each visitor whose call runs.

    Example:
        >>> turns = Turns()
        >>> mine = turns.begin("me")
        >>> turns.stop("me"), turns.stop("somebody else"), mine.is_set()
        (True, False, True)
    """

    def __init__(self):
        self._running: dict[str, Event] = {}

    def begin(self, visitor: str) -> Event:
        """A visitor's work begins.

        Args:
            visitor: Who.

        Returns:
            What is set when it shall stop.
        """
        return self._running.setdefault(visitor, Event())

    def end(self, visitor: str) -> None:
        """A visitor's work is done.

        Args:
            visitor: Who.
        """
        self._running.pop(visitor, None)

    def stop(self, visitor: str) -> bool:
        """Stop a visitor's work.

        Args:
            visitor: Who.

        Returns:
            Whether there was any.
        """
        if visitor in self._running:
            self._running[visitor].set()
        return visitor in self._running


def build_page(studio: Studio, *, on_gpu: Callable[[Callable], Callable] = lambda call: call) -> Any:
    """The page around a studio.

    Args:
        studio: Who does the work.
        on_gpu: Wraps what needs the GPU, such as `spaces.GPU`.

    Returns:
        Gradio's Blocks, with a queue that lets one call at a time to the model.

    Raises:
        ImportError: Gradio isn't installed.

    Example:
        >>> build_page(studio).launch()  # doctest: +SKIP
    """
    gr = _gradio()
    turns = Turns()

    def told(visitor: str, work: Callable[[Event], Iterator], show: Callable[[Any], Sequence]) -> Iterator[Sequence]:
        stop = turns.begin(visitor)
        try:
            for one in work(stop):
                yield show(one)
        except Exception as error:
            raise gr.Error(public_sentence(error), print_exception=False) from None
        finally:
            turns.end(visitor)

    def asked(values: Sequence) -> tuple[Who, str, Settings]:
        try:
            return read_inputs(studio, *values)
        except Exception as error:
            raise gr.Error(public_sentence(error), print_exception=False) from None

    @on_gpu
    def draw(request: gr.Request, *values):
        who, text, settings = asked(values)
        yield from told(request.session_hash, lambda stop: studio.draw(who, text, settings, stop), show_drawing)

    @on_gpu
    def customise(request: gr.Request, caption, steps, keep_thumbnail, *values):
        who, text, settings = asked(values)
        learning = dict(caption=caption, steps=steps, keep_thumbnail=keep_thumbnail)
        work = lambda stop: studio.customise(who, text, settings, stop, **learning)  # noqa: E731
        for shown in told(request.session_hash, work, show_customising):
            *shown, concept = shown
            yield (*shown, concept or gr.skip(), CONCEPT if concept else gr.skip())

    @on_gpu
    def compare(request: gr.Request, down, down_values, across, across_values, *values):
        who, text, settings = asked(values)
        work = lambda stop: studio.compare(  # noqa: E731
            who, text, settings, read_axes((down, down_values), (across, across_values)), stop
        )
        yield from told(request.session_hash, work, show_comparison)

    def stop(request: gr.Request):
        return "Stopping after this step." if turns.stop(request.session_hash) else "Nothing is running."

    def take_concept(file):
        try:
            concept = read_concept(file, studio.limits)
        except Exception as error:
            raise gr.Error(public_sentence(error), print_exception=False) from None
        return concept, CONCEPT, concept._repr_html_()

    with gr.Blocks(title="ProFusion", delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# ProFusion\nOne portrait and a prompt in, pictures of that person out. {RESPONSIBLE}")
        learnt = gr.State(time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=2):
                inputs, concept_file, concept_shown = _inputs(gr, studio)
            with gr.Column(scale=3):
                with gr.Tab("Draw"):
                    with gr.Row():
                        draw_button = gr.Button("Draw", variant="primary", elem_id="draw")
                        stop_button = gr.Button("Stop", elem_id="stop")
                    drawing = [gr.HTML(elem_id="progress"), gr.HTML(elem_id="pictures")]
                with gr.Tab("Customise"):
                    gr.Markdown("Learns the photos: about a hundred steps bring S* nearer to one person.")
                    learning = [
                        gr.Textbox("", label="Caption of the photo", info=CAPTION_HELP, elem_id="caption"),
                        gr.Number(100, label="Steps", precision=0, elem_id="learning-steps"),
                        gr.Checkbox(False, label="Keep a small picture of the photo in the concept's file"),
                    ]
                    customise_button = gr.Button("Customise", variant="primary", elem_id="customise")
                    names = ("customise-progress", "curve", "before-after", "download")
                    customising = [gr.HTML(elem_id=name) for name in names]
                with gr.Tab("Compare"):
                    gr.Markdown("The first prompt with every combination of two settings, from the same noise.")
                    axes = [
                        gr.Dropdown(AXES, value="guidance_scale", label="Down"),
                        gr.Textbox("2.5, 5", label="Its values", elem_id="down"),
                        gr.Dropdown(AXES, value="num_fusion_steps", label="Across"),
                        gr.Textbox("0, 1", label="Its values", elem_id="across"),
                    ]
                    compare_button = gr.Button("Compare", variant="primary", elem_id="compare")
                    comparison = [gr.HTML(elem_id="compare-progress"), gr.HTML(elem_id="grid")]
        everything = [*inputs, learnt]
        alone = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
        draw_button.click(draw, everything, drawing, api_name="draw", **alone)
        customised = [*customising, learnt, inputs[0]]
        customise_button.click(customise, [*learning, *everything], customised, api_name="customise", **alone)
        compare_button.click(compare, [*axes, *everything], comparison, api_name="compare", **alone)
        stop_button.click(stop, None, drawing[0], queue=False, api_name="stop")
        taken = [learnt, inputs[0], concept_shown]
        concept_file.upload(take_concept, concept_file, taken, api_name="take_concept")
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def _inputs(gr: Any, studio: Studio) -> tuple[list, Any, Any]:
    """The widgets of the left column, in the order of [`read_inputs`]; that of a concept's file, and its picture."""
    limits = studio.limits
    faces = [str(number) for number in range(1, len(studio.portraits) + 1)]
    source = gr.Radio([PORTRAIT, PHOTOS, CONCEPT], value=PORTRAIT, label="Who is S*?", elem_id="source")
    strip = "".join(markup.image(portrait, 72) for portrait in studio.portraits)
    gr.HTML(f'<div style="display:flex;gap:8px">{strip}</div>')
    portrait = gr.Radio(faces, value=faces[0], label="Portrait", elem_id="portrait")
    with gr.Accordion("My photos, or a concept", open=False):
        photos = gr.File(label=f"Up to {limits.photos} photos of one person", file_count="multiple", elem_id="photos")
        webcam = gr.Image(label="Webcam", sources=["webcam"], type="filepath", height=200)
        noun = gr.Textbox(studio.class_noun, label="What S* is", info="woman, man, a person, dog ...")
        concept = gr.File(label="A concept's file", file_types=[".safetensors"], elem_id="concept-file")
        shown = gr.HTML(elem_id="concept-shown")
    prompts = gr.Textbox(PROMPTS, label="Prompts, one a line", lines=3, elem_id="prompts")
    position = gr.Slider(
        0, 1, value=0.5, step=0.05, label="More of the prompt  ↔  more of the person", elem_id="position"
    )
    with gr.Accordion("Advanced", open=False):
        by_hand = gr.Checkbox(False, label="Set the two scales by hand rather than by the slider", elem_id="by-hand")
        scales = [
            gr.Number(2.5, label="ω₁ guidance_scale: the person", elem_id="guidance_scale"),
            gr.Number(5.0, label="ω₂ class_guidance_scale: the prompt"),
        ]
        fusion = [
            gr.Slider(0, limits.fusion_steps, value=0, step=1, label="m num_fusion_steps", elem_id="m"),
            gr.Number(studio.settings.get("fusion_guidance_scale", 7.0), label="ω_f fusion_guidance_scale"),
            gr.Number(studio.settings.get("fusion_subject_scale", 0.6), label="γ fusion_subject_scale"),
        ]
        steps = gr.Slider(1, limits.inference_steps, value=15, step=1, label="Denoising steps", elem_id="steps")
        seed = gr.Number(-1, label="Seed; -1 for any", precision=0, elem_id="seed")
        side = gr.Number(0, label="Side of the pictures; 0 for the model's own", precision=0)
    inputs = [source, portrait, photos, webcam, noun, prompts, position, by_hand, *scales, *fusion, steps, seed, side]
    return inputs, concept, shown


def read_inputs(
    studio: Studio,
    source: str,
    portrait: str,
    photos: Sequence[str] | None,
    webcam: str | None,
    class_noun: str,
    prompts: str,
    position: float,
    by_hand: bool,
    guidance_scale: float,
    class_guidance_scale: float,
    num_fusion_steps: int,
    fusion_guidance_scale: float,
    fusion_subject_scale: float,
    num_inference_steps: int,
    seed: int | None,
    side: int | None,
    learnt: Concept | None,
) -> tuple[Who, str, Settings]:
    """What the widgets of the left column say.

    Args:
        studio: Whose limits and portraits they are.
        source: Which answer to "Who is S*?" counts.
        portrait: The number of one, from 1.
        photos: Uploaded files.
        webcam: File of a webcam's picture.
        class_noun: What the person is.
        prompts: One a line.
        position: Of the slider.
        by_hand: Whether the next two scales count in its place.
        guidance_scale: ω_1.
        class_guidance_scale: ω_2.
        num_fusion_steps: m.
        fusion_guidance_scale: ω_f.
        fusion_subject_scale: γ.
        num_inference_steps: Denoising steps.
        seed: -1, or None, for any.
        side: Of the pictures; 0, or None, for the model's own.
        learnt: The visitor's concept.

    Returns:
        Whom, which prompts, and how.

    Raises:
        ValueError: A photo or concept is asked for that is not there or can't be read.

    Example:
        >>> read_inputs(studio, *values)  # doctest: +SKIP
    """
    who = {"class_noun": class_noun.strip() or studio.class_noun}
    if source == CONCEPT:
        if learnt is None:
            read_concept(None, studio.limits)  # says so
        who["concept"] = learnt
    elif source == PHOTOS:
        who["photos"] = read_photos([*(photos or ()), *([webcam] if webcam else ())], studio.limits)
    else:
        who |= {"photos": [studio.portraits[int(portrait) - 1]], "source": f"{DEMO}:{int(portrait)}"}
    scales = {"guidance_scale": guidance_scale, "class_guidance_scale": class_guidance_scale} if by_hand else {}
    scales |= {"fusion_guidance_scale": fusion_guidance_scale, "fusion_subject_scale": fusion_subject_scale}
    whole = {"num_fusion_steps": int(num_fusion_steps), "num_inference_steps": int(num_inference_steps)}
    seed = None if seed is None or seed < 0 else seed
    settings = Settings(position=position, scales=scales, seed=seed, side=side or None, **whole)
    return Who(**who), prompts, settings


def read_axes(*given: tuple[str, str]) -> dict[str, list[float]]:
    """Axes of a grid as typed.

    Args:
        *given: Name and values of each, the values with commas between them; one without values is left out.

    Returns:
        Name -> values.

    Raises:
        ValueError: Something is no number, an axis comes twice, or there is none.

    Example:
        >>> read_axes(("guidance_scale", "2.5, 5"), ("num_fusion_steps", "0, 1"))
        {'guidance_scale': [2.5, 5.0], 'num_fusion_steps': [0, 1]}
    """
    axes = {}
    for name, text in given:
        if not text.strip():
            continue
        try:
            axes[name] = [(int if name == "num_fusion_steps" else float)(one) for one in text.split(",")]
        except ValueError:
            raise ValueError(f"`{name}` must have numbers with commas between them, got {text[:40]!r}.") from None
    if not axes or len(axes) < sum(bool(text.strip()) for _, text in given):
        raise ValueError("A comparison needs one setting, or two different ones, with values.")
    return axes


def show_drawing(one: Step | Drawn) -> tuple[str, str]:
    """What the tab Draw shows: bar with preview, and pictures.

    Args:
        one: What the studio says.

    Returns:
        HTML of both.

    Example:
        >>> show_drawing(Step(1, 2, "step 1 of 2"))[1]
        ''
    """
    if isinstance(one, Step):
        return markup.progress(one.done, one.total, one.text, one.preview), ""
    said = "Stopped: these are unfinished." if one.stopped else ""
    return said, markup.gallery(one.pictures, one.prompts, one.settings, one.records)


def show_customising(one: Step | Customised) -> tuple[str, str, str, str, Concept | None]:
    """What the tab Customise shows: bar with preview, curve, pictures before and after, and a link to the file.

    Args:
        one: What the studio says.

    Returns:
        HTML of the four, and the concept once it is there.

    Example:
        >>> show_customising(Step(1, 2, "learning"))[1:]
        ('', '', '', None)
    """
    if isinstance(one, Step):
        curve = markup.loss_curve(one.losses) if one.losses else ""
        return markup.progress(one.done, one.total, one.text, one.preview), curve, "", "", None
    link = markup.download(one.concept.to_bytes(), "concept.safetensors", "Save the concept's file")
    pictures = data_image(one.grid._repr_png_())
    return repr(one.concept), markup.loss_curve(one.losses), pictures, link, one.concept


def show_comparison(one: Any) -> tuple[str, str]:
    """What the tab Compare shows: bar, and grid.

    Args:
        one: What the studio says.

    Returns:
        HTML of both.

    Example:
        >>> show_comparison(Step(1, 2, "picture 1 of 2"))[1]
        ''
    """
    if isinstance(one, Step):
        return markup.progress(one.done, one.total, one.text), ""
    return "", data_image(one._repr_png_())
