import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from app_server import pictures_of
from concepts import learn
from profusion_pipeline.app import markup
from profusion_pipeline.app.studio import Customised, Drawn, Step
from profusion_pipeline.common.made_with import read_record
from profusion_pipeline.common.picture_grid import PictureGrid

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def pictures_in(html: str) -> list[Image.Image]:
    found = re.findall(r"data:image/\w+;base64,([\w+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_a_picture_arrives_as_it_is():
    (shown,) = pictures_in(markup.image(NOISE, 64))
    assert shown.tobytes() == NOISE.tobytes()
    (quick,) = pictures_in(markup.image(NOISE, kind="jpeg"))
    assert quick.format == "JPEG"


def test_a_gallery_carries_captions_and_settings():
    record = {"prompt": "S*", "seed": 1, "settings": {}, "model": {}, "batch": {}, "versions": {}}
    html = markup.gallery([NOISE, NOISE], ["S* <b>", "S*"], ["seed 1", "seed 2"], [record, None])
    first, second = re.findall(r"base64,([\w+/=]+)", html)
    assert read_record(base64.b64decode(first)) == record
    assert b"trainedAlgorithmicMedia" in base64.b64decode(second)
    assert "S* &lt;b&gt;" in html and "<b>" not in html and "seed 2" in html


def test_progress():
    assert len(pictures_in(markup.progress(1, 4, "step 1 of 4", NOISE))) == 1
    assert 'value="1.5" max="4"' in markup.progress(1.5, 4, "<step>") and "<step>" not in markup.progress(
        1, 4, "<step>"
    )


@pytest.mark.parametrize("losses", [[0.5], [1.0, 0.5, 0.25], list(np.linspace(2, 1, 40)), [0.0, 0.0]])
def test_a_curve_has_a_point_for_each_step(losses):
    svg = markup.loss_curve(losses).split("<br>")[0]
    each, mean = ElementTree.fromstring(svg)
    points = np.array([point.split(",") for point in each.get("points").split()], dtype=float)
    assert len(points) == len(losses) == len(mean.get("points").split())
    assert ((points >= 0) & (points <= [400, 100])).all()
    assert np.argmin(points[:, 1]) == np.argmax(losses)  # y runs down


def test_a_download_is_the_file():
    html = markup.download(b"content", 'a"b.bin', "Save <it>")
    assert base64.b64decode(re.search(r"base64,([\w+/=]+)", html)[1]) == b"content"
    assert 'download="a&quot;b.bin"' in html and "Save &lt;it&gt;" in html


def test_what_is_shown():
    bar, pictures = markup.show_drawing(Drawn([NOISE], ["S*"], ["seed 1"], [{}], True))
    assert "unfinished" in bar and "seed 1" in pictures and pictures_of(pictures) == [NOISE.tobytes()]
    grid = PictureGrid([[NOISE]], [""], ["S*"])
    assert markup.show_comparison(grid)[1].startswith("<img")
    words, curve, pictures, link, concept = markup.show_customising(Customised(learn()["ada"], [0.5, 0.4], grid))
    assert (
        words.startswith("Learnt: 3 steps, loss ")
        and "<svg" in curve
        and "<img" in pictures
        and concept is learn()["ada"]
    )
    assert len(base64.b64decode(re.search(r"base64,([\w+/=]+)", link)[1])) == len(learn()["ada"].to_bytes())
    assert markup.show_customising(Step(1, 2, "learning", losses=(0.5,)))[1].startswith("<svg")
