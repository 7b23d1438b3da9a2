import base64
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from app_server import needs_gradio, pictures_of, serving, values
from concepts import tiny_pipeline
from profusion_pipeline.app import page
from profusion_pipeline.app.inputs import CONCEPT, PHOTOS, PORTRAIT
from profusion_pipeline.app.studio import Studio
from profusion_pipeline.app.uploads import Limits
from profusion_pipeline.demo import demo_portraits

pytestmark = pytest.mark.filterwarnings("default")  # of Gradio and what it brings
PICTURE = Image.new("RGB", (16, 16), "orange")
LIMITS = Limits(upload_bytes=2**20, learning_steps=20)


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
    call = dict(guidance_scale=5.0, class_guidance_scale=3.75, num_fusion_steps=0, num_inference_steps=2)
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


@pytest.fixture
def studio(pipe):
    return Studio(pipe, limits=LIMITS)


def test_without_gradio_one_sentence_says_so(studio, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match='The app needs Gradio: `pip install "profusion-pipeline\\[app\\]"`'):
        page.build_page(studio)


def test_the_first_answer_is_the_demo():
    assert values()[0] == PORTRAIT
