"""The page: Gradio's widgets, and who is asked when one of them is touched. What is done lies in `studio.py`."""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from threading import Event
from typing import Any

from . import markup
from .following import Turns
from .inputs import CONCEPT, PHOTOS, PORTRAIT, read_axes, read_inputs, suggest_caption
from .studio import AXES, Settings, Studio, Who
from .uploads import public_sentence, read_concept

PROMPTS = "a portrait of S*, at the beach\na portrait of S*, wearing a blue top hat"
CAPTION_HELP = "What is in the photo and is not the person: clothes, place, expression. S* need not carry it then."
CROP_HELP = "For models that learnt from portraits: finds the face, and says if there is none."
HINT = "Press Draw: a few seconds on the bundled model. S* in a prompt stands for the person on the left."
LEARNING = (
    "Learns the photo: a hundred steps bring S* nearer to one person. The curve is its loss; the pictures are your "
    "prompts before and after."
)
FUSION = "m num_fusion_steps: for photos; with a concept 0 is better"
RESPONSIBLE = (
    "Ask people before you make pictures of them. What you upload is kept for an hour at most, and what is drawn for "
    "you is kept on this page alone."
)
WAITING = 64  # calls in the queue; a visitor beyond is told so
KEPT_SECONDS = 3600  # uploads and concepts


def gradio() -> Any:
    """The library of the page, which asks nobody at home.

    Returns:
        The module.

    Raises:
        ImportError: It isn't installed.

    Example:
        >>> gradio().__name__  # doctest: +SKIP
        'gradio'
    """
    if find_spec("gradio") is None:
        raise ImportError('The app needs Gradio: `pip install "profusion-pipeline[app]"`.')
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return import_module("gradio")


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
    gr = gradio()
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
            return read_inputs(studio, *values, warn=gr.Warning)
        except Exception as error:
            raise gr.Error(public_sentence(error), print_exception=False) from None

    @on_gpu
    def draw(request: gr.Request, *values):
        who, text, settings = asked(values)
        yield from told(request.session_hash, lambda stop: studio.draw(who, text, settings, stop), markup.show_drawing)

    @on_gpu
    def customise(request: gr.Request, caption, steps, keep_thumbnail, *values):
        who, text, settings = asked(values)
        learning = dict(caption=caption, steps=steps, keep_thumbnail=keep_thumbnail)
        work = lambda stop: studio.customise(who, text, settings, stop, **learning)  # noqa: E731
        for shown in told(request.session_hash, work, markup.show_customising):
            *shown, concept = shown
            yield (*shown, concept or gr.skip(), CONCEPT if concept else gr.skip())

    @on_gpu
    def compare(request: gr.Request, down, down_values, across, across_values, *values):
        who, text, settings = asked(values)
        work = lambda stop: studio.compare(  # noqa: E731
            who, text, settings, read_axes((down, down_values), (across, across_values)), stop
        )
        yield from told(request.session_hash, work, markup.show_comparison)

    def stop(request: gr.Request):
        return "Stopping after this step." if turns.stop(request.session_hash) else "Nothing is running."

    def take_concept(file):
        try:
            concept = read_concept(file, studio.limits)
        except Exception as error:
            raise gr.Error(public_sentence(error), print_exception=False) from None
        return concept, CONCEPT, concept._repr_html_()

    @on_gpu
    def describe(*values):
        try:
            return suggest_caption(read_inputs(studio, *values)[0], studio.pipe.device)
        except Exception as error:
            raise gr.Error(public_sentence(error), print_exception=False) from None

    def chosen(source):
        groups = [gr.update(visible=source == one) for one in (PORTRAIT, PHOTOS, CONCEPT)]
        return [*groups, 0 if source == CONCEPT else 1]

    with gr.Blocks(title="ProFusion", delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# ProFusion\nOne portrait and a prompt in, pictures of that person out. {RESPONSIBLE}")
        learnt = gr.State(time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=2):
                inputs, of_source, concept_file, concept_shown = _inputs(gr, studio)
            with gr.Column(scale=3):
                with gr.Tab("Draw"):
                    draw_button, *stops = _buttons(gr, "Draw")
                    drawing = [gr.HTML(HINT, elem_id="progress"), gr.HTML(elem_id="pictures")]
                with gr.Tab("Customise"):
                    gr.Markdown(LEARNING)
                    caption = gr.Textbox("", label="Caption of the photo", info=CAPTION_HELP, elem_id="caption")
                    describe_button = gr.Button("Suggest a caption, to be mended", size="sm", elem_id="describe")
                    learning = [
                        caption,
                        gr.Number(100, label="Steps", precision=0, elem_id="learning-steps"),
                        gr.Checkbox(False, label="Keep a small picture of the photo in the concept's file"),
                    ]
                    customise_button, stop_button = _buttons(gr, "Customise")
                    stops.append(stop_button)
                    names = ("customise-progress", "curve", "before-after", "download")
                    customising = [gr.HTML(elem_id=name) for name in names]
                with gr.Tab("Compare"):
                    gr.Markdown("The first prompt with every combination of two settings, from the same noise.")
                    with gr.Row():
                        down = gr.Dropdown(AXES, value="guidance_scale", label="Down")
                        down_values = gr.Textbox("2.5, 5", label="Its values", elem_id="down")
                    with gr.Row():
                        across = gr.Dropdown(AXES, value="num_fusion_steps", label="Across")
                        across_values = gr.Textbox("0, 1", label="Its values", elem_id="across")
                    axes = [down, down_values, across, across_values]
                    compare_button, stop_button = _buttons(gr, "Compare")
                    stops.append(stop_button)
                    comparison = [gr.HTML(elem_id="compare-progress"), gr.HTML(elem_id="grid")]
        everything, source = [*inputs, learnt], inputs[0]
        alone = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
        draw_button.click(draw, everything, drawing, api_name="draw", **alone)
        customised = [*customising, learnt, source]
        customise_button.click(customise, [*learning, *everything], customised, api_name="customise", **alone)
        compare_button.click(compare, [*axes, *everything], comparison, api_name="compare", **alone)
        describe_button.click(describe, everything, caption, api_name="describe", **alone)
        source.change(chosen, source, of_source, queue=False, show_progress="hidden", api_name=False)
        for button, told_in in zip(stops, (drawing, customising, comparison), strict=True):
            name = "stop" if told_in is drawing else False
            button.click(stop, None, told_in[0], queue=False, api_name=name)
        taken = [learnt, source, concept_shown]
        concept_file.upload(take_concept, concept_file, taken, api_name="take_concept")
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def _buttons(gr: Any, name: str) -> tuple[Any, Any]:
    with gr.Row():
        start = gr.Button(name, variant="primary", elem_id=name.lower(), scale=3)
        return start, gr.Button("Stop", elem_id="stop" if name == "Draw" else f"stop-{name.lower()}", scale=1)


def _inputs(gr: Any, studio: Studio) -> tuple[list, list, Any, Any]:
    """The left column: what [`read_inputs`] takes, in its order; what changes with who S* is; a concept's widgets."""
    limits = studio.limits
    faces = [str(number) for number in range(1, len(studio.portraits) + 1)]
    source = gr.Radio([PORTRAIT, PHOTOS, CONCEPT], value=PORTRAIT, label="Who is S*?", elem_id="source")
    with gr.Column() as of_portrait:
        strip = "".join(markup.image(portrait, 72) for portrait in studio.portraits)
        gr.HTML(f'<div style="display:flex;gap:8px">{strip}</div>')
        portrait = gr.Radio(faces, value=faces[0], label="Portrait", elem_id="portrait")
    with gr.Column(visible=False) as of_photos:
        label = f"Up to {limits.photos} photos of one person"
        photos = gr.File(label=label, file_count="multiple", height=140, elem_id="photos")
        webcam = gr.Image(label="Webcam", sources=["webcam"], type="filepath", height=220)
        crop = gr.Checkbox(False, label="Cut photos to the face", info=CROP_HELP, elem_id="crop-face")
        noun = gr.Textbox(studio.class_noun, label="What S* is", info="woman, man, a person, dog ...")
    with gr.Column(visible=False) as of_concept:
        concept = gr.File(label="A concept's file", file_types=[".safetensors"], height=140, elem_id="concept-file")
        shown = gr.HTML("Or make one under Customise.", elem_id="concept-shown")
    prompts = gr.Textbox(PROMPTS, label="Prompts, one a line", lines=3, elem_id="prompts")
    label = "More of the prompt  ↔  more of the person"
    position = gr.Slider(0, 1, value=0.5, step=0.05, label=label, elem_id="position")
    with gr.Accordion("Advanced", open=False):
        by_hand = gr.Checkbox(False, label="Set the two scales by hand rather than by the slider", elem_id="by-hand")
        with gr.Row():
            scales = [
                gr.Number(5.0, label="ω₁ guidance_scale: the person", elem_id="guidance_scale"),
                gr.Number(3.75, label="ω₂ class_guidance_scale: the prompt"),
            ]
        m = gr.Slider(0, limits.fusion_steps, value=1, step=1, label=FUSION, elem_id="m")
        with gr.Row():
            fusion = [
                gr.Number(studio.settings.get("fusion_guidance_scale", 7.0), label="ω_f fusion_guidance_scale"),
                gr.Number(studio.settings.get("fusion_subject_scale", 0.6), label="γ fusion_subject_scale"),
            ]
        steps = gr.Slider(1, limits.inference_steps, value=15, step=1, label="Denoising steps", elem_id="steps")
        with gr.Row():
            seed = gr.Number(-1, label="Seed; -1 for any", precision=0, elem_id="seed")
            side = gr.Number(0, label="Side in pixels; 0: the model's", precision=0)
    whom = [source, portrait, photos, webcam, crop, noun]
    inputs = [*whom, prompts, position, by_hand, *scales, m, *fusion, steps, seed, side]
    return inputs, [of_portrait, of_photos, of_concept, m], concept, shown
