import base64
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from app_server import needs_gradio, pictures_of, serving, values
from concepts import learn, tiny_pipeline
from profusion_pipeline.app import page
from profusion_pipeline.app.page import CONCEPT, PHOTOS, PORTRAIT, Turns, read_axes, read_inputs
from profusion_pipeline.app.studio import Customised, Drawn, Step, Studio
from profusion_pipeline.app.uploads import Limits
from profusion_pipeline.common.picture_grid import PictureGrid
from profusion_pipeline.demo import demo_portraits

pytestmark = pytest.mark.filterwarnings("default")  # of Gradio and what it brings
PICTURE = Image.new("RGB", (16, 16), "orange")
LIMITS = Limits(upload_bytes=2**20, learning_steps=20)


# Without Gradio


def test_a_visitor_stops_their_own_work_only():
    turns = Turns()
    mine, yours = turns.begin("me"), turns.begin("you")
    assert turns.stop("me") and mine.is_set() and not yours.is_set()
    turns.end("me")
    assert not turns.stop("me") and not turns.begin("me").is_set()


@pytest.fixture
def studio(pipe):
    return Studio(pipe, limits=LIMITS)


def read(studio, learnt=None, **changed):
    return read_inputs(studio, *values(**changed), learnt)


def test_inputs(studio, tmp_path):
    who, prompts, settings = read(studio, portrait="2", noun=" ", m=1.0)
    assert who.photos[0].tobytes() == demo_portraits()[1].tobytes()
    assert (who.class_noun, prompts) == ("person", "S*")
    assert settings.call()["guidance_scale"] == 2.5 and settings.num_fusion_steps == 1
    assert settings.seed == 7 and settings.side is None
    assert read(studio, seed=-1, side=0)[2].seed is None and read(studio, side=128)[2].side == 128
    assert read(studio, by_hand=True, guidance_scale=1.5)[2].call()["guidance_scale"] == 1.5
    PICTURE.save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    assert len(read(studio, source=PHOTOS, photos=[file], webcam=file)[0].photos) == 2
    concept = learn()["ada"]
    assert read(studio, concept, source=CONCEPT)[0].concept is concept


def test_inputs_that_lack_somebody(studio):
    with pytest.raises(ValueError, match="There is no photo yet"):
        read(studio, source=PHOTOS)
    with pytest.raises(ValueError, match="There is no concept yet"):
        read(studio, source=CONCEPT)


def test_axes():
    assert read_axes(("guidance_scale", "1, 2.5"), ("num_fusion_steps", " ")) == {"guidance_scale": [1.0, 2.5]}
    with pytest.raises(ValueError, match="`guidance_scale` must have numbers with commas between them, got '1; 2'"):
        read_axes(("guidance_scale", "1; 2"))
    with pytest.raises(ValueError, match="needs one setting, or two different ones"):
        read_axes(("guidance_scale", "1"), ("guidance_scale", "2"))
    with pytest.raises(ValueError, match="needs one setting, or two different ones"):
        read_axes(("guidance_scale", ""))


def test_what_is_shown():
    bar, pictures = page.show_drawing(Drawn([PICTURE], ["S*"], ["seed 1"], [{}], True))
    assert "unfinished" in bar and "seed 1" in pictures and pictures_of(pictures) == [PICTURE.tobytes()]
    grid = PictureGrid([[PICTURE]], [""], ["S*"])
    assert page.show_comparison(grid)[1].startswith("<img")
    words, curve, pictures, link, concept = page.show_customising(Customised(learn()["ada"], [0.5, 0.4], grid))
    assert words == repr(learn()["ada"]) and "<svg" in curve and "<img" in pictures and concept is learn()["ada"]
    assert len(base64.b64decode(re.search(r"base64,([\w+/=]+)", link)[1])) == len(learn()["ada"].to_bytes())
    assert page.show_customising(Step(1, 2, "learning", losses=(0.5,)))[1].startswith("<svg")


def test_without_gradio_one_sentence_says_so(studio, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match='The app needs Gradio: `pip install "profusion-pipeline\\[app\\]"`'):
        page.build_page(studio)
    with pytest.raises(ImportError, match="The app needs Gradio"):
        page.open_app()


@needs_gradio
@pytest.mark.parametrize(("allow_remote", "name"), [(False, "127.0.0.1"), (True, "0.0.0.0")])
def test_other_machines_are_let_in_on_demand_only(monkeypatch, allow_remote, name):
    import os

    import gradio

    started = {}

    def launch(self, **settings):
        started.update(settings, folder=os.environ["GRADIO_TEMP_DIR"])
        assert os.path.isdir(started["folder"])

    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(page, "load_pipeline", lambda *args, **settings: tiny_pipeline())
    page.open_app("demo", port=7999, allow_remote=allow_remote)
    assert (started["server_name"], started["server_port"], started["share"]) == (name, 7999, False)
    assert started["max_file_size"] == Limits().upload_bytes and not started["show_error"]
    assert not os.path.exists(started["folder"])


# With a client


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    uploads = tmp_path_factory.mktemp("uploads")
    studio = Studio(tiny_pipeline(), limits=LIMITS)
    with serving(studio, uploads) as address:
        yield address, studio, uploads


def client_of(served):
    from gradio_client import Client

    return Client(served[0], verbose=False)


def expected(seed: int, portrait: int = 0) -> bytes:
    call = dict(guidance_scale=2.5, class_guidance_scale=5.0, num_fusion_steps=0, num_inference_steps=2)
    who = dict(image=demo_portraits()[portrait], class_noun="man")
    return tiny_pipeline()("S*", generator=torch.Generator().manual_seed(seed), **call, **who).images[0].tobytes()


@needs_gradio
def test_draw(served):
    bar, pictures = client_of(served).predict(*values(portrait="2"), api_name="/draw")
    assert pictures_of(pictures) == [expected(7, portrait=1)]


@needs_gradio
def test_upload_customise_and_draw_the_concept(served, tmp_path):
    from gradio_client import handle_file

    client = client_of(served)
    PICTURE.save(tmp_path / "me.png")
    photo = values(source=PHOTOS, photos=[handle_file(str(tmp_path / "me.png"))])
    words, curve, grid, link, source = client.predict("smiling", 2, False, *photo, api_name="/customise")
    assert source == CONCEPT and "2 steps" in words
    (drawn,) = pictures_of(client.predict(*values(source=CONCEPT), api_name="/draw")[1])
    # Another visitor has no concept until they upload the file.
    (tmp_path / "concept.safetensors").write_bytes(base64.b64decode(re.search(r"base64,([\w+/=]+)", link)[1]))
    other = client_of(served)
    with pytest.raises(Exception, match="There is no concept yet"):
        other.predict(*values(source=CONCEPT), api_name="/draw")
    source, shown = other.predict(handle_file(str(tmp_path / "concept.safetensors")), api_name="/take_concept")
    assert source == CONCEPT and "2 steps" in shown
    assert pictures_of(other.predict(*values(source=CONCEPT), api_name="/draw")[1]) == [drawn]
    assert str(served[2]) not in words + curve + grid + link + shown


@needs_gradio
def test_bad_uploads_are_told_in_one_sentence_without_places(served, tmp_path):
    from gradio_client import handle_file

    client = client_of(served)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.safetensors").write_text("no concept")
    photo = values(source=PHOTOS, photos=[handle_file(str(tmp_path / "text.png"))])
    concept = handle_file(str(tmp_path / "text.safetensors"))
    for arguments, name, sentence in (
        (photo, "/draw", "Pillow can read, 'text.png' is not one"),
        (["", 2, False, *photo], "/customise", "Pillow can read, 'text.png' is not one"),
        ([concept], "/take_concept", "'text.safetensors' isn't a whole safetensors file"),
        (values(prompts="nobody"), "/draw", "must hold the placeholder 'S*' exactly once"),
        (values(steps=1e9), "/draw", ""),
    ):
        with pytest.raises(Exception) as caught:
            client.predict(*arguments, api_name=name)
        assert sentence in str(caught.value) and str(served[2]) not in str(caught.value)
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    with pytest.raises(Exception, match="413|exceeds|too large|large|Request Entity"):
        client.predict(*values(source=PHOTOS, photos=[handle_file(str(tmp_path / "large.png"))]), api_name="/draw")


@needs_gradio
def test_compare_and_stop(served):
    client = client_of(served)
    axes = ["guidance_scale", "2, 3", "num_fusion_steps", "0"]
    assert len(pictures_of(client.predict(*axes, *values(), api_name="/compare")[1])) == 1
    assert client.predict(api_name="/stop") == "Nothing is running."
    job = client.submit(*values(steps=100, prompts="S*"), api_name="/draw")
    for _ in range(200):
        if client.predict(api_name="/stop") != "Nothing is running.":
            break
        threading.Event().wait(0.05)
    assert "unfinished" in job.result()[0]


@needs_gradio
@pytest.mark.slow
def test_fifty_visitors_get_each_their_own_picture(served):
    """Fifty requests of four clients in one queue; memory stays where it was after the first five."""
    import psutil

    process = psutil.Process()

    def ask(client, seed):
        return seed, pictures_of(client.predict(*values(seed=seed), api_name="/draw")[1])

    clients = [client_of(served) for _ in range(4)]
    first = [ask(clients[seed % 4], seed) for seed in range(5)]
    before = process.memory_info().rss
    with ThreadPoolExecutor(16) as pool:
        rest = list(pool.map(lambda seed: ask(clients[seed % 4], seed), range(5, 50)))
    after = process.memory_info().rss
    assert after <= 1.1 * before
    for seed, pictures in first + rest:
        assert pictures == [expected(seed)]
    assert len({pictures[0] for _, pictures in first + rest}) == 50


def test_the_first_answer_is_the_demo():
    assert values()[0] == PORTRAIT
