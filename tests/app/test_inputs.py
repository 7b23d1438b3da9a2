"""What the page's widgets say, read without a page."""

import pytest
from PIL import Image

from app_server import values
from concepts import learn
from profusion_pipeline.app.inputs import CONCEPT, PHOTOS, read_axes, read_inputs
from profusion_pipeline.app.studio import Studio
from profusion_pipeline.demo import demo_portraits


@pytest.fixture
def studio(pipe):
    return Studio(pipe)


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
    Image.new("RGB", (16, 16), "orange").save(tmp_path / "a.png")
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
