"""What the page's widgets say, read without a page."""

import pytest
from PIL import Image
from skimage import data

from app_server import values
from concepts import learn
from profusion_pipeline.app import inputs
from profusion_pipeline.app.inputs import CONCEPT, PHOTOS, read_axes, read_inputs, suggest_caption
from profusion_pipeline.app.studio import Studio, Who
from profusion_pipeline.demo import DEMO_CAPTIONS, demo_portraits
from profusion_pipeline.method.faces import crop_face


@pytest.fixture
def studio(pipe):
    return Studio(pipe)


def read(studio, learnt=None, **changed):
    return read_inputs(studio, *values(**changed), learnt)


def test_inputs(studio, tmp_path):
    who, prompts, settings = read(studio, portrait="2", noun=" ", m=1.0)
    assert who.photos[0].tobytes() == demo_portraits()[1].tobytes()
    assert (who.class_noun, prompts) == ("person", "S*")
    assert settings.call()["class_guidance_scale"] == 3.75 and settings.num_fusion_steps == 1
    assert settings.seed == 7 and settings.side is None
    assert read(studio, seed=-1, side=0)[2].seed is None and read(studio, side=128)[2].side == 128
    assert read(studio, by_hand=True, guidance_scale=1.5)[2].call()["guidance_scale"] == 1.5
    Image.new("RGB", (16, 16), "orange").save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    assert len(read(studio, source=PHOTOS, photos=[file], webcam=file)[0].photos) == 2
    concept = learn()["ada"]
    assert read(studio, concept, source=CONCEPT)[0].concept is concept


def test_photos_are_cut_to_their_faces(studio, tmp_path):
    said = []
    photo = Image.fromarray(data.astronaut())
    photo.save(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "nobody.png")
    files = [str(tmp_path / name) for name in ("a.png", "nobody.png")]
    who, *_ = read_inputs(studio, *values(source=PHOTOS, photos=files, crop_face=True), None, warn=said.append)
    assert [one.size for one in who.photos] == [(512, 512), (64, 64)]
    assert who.seen[0].tobytes() == crop_face(photo).tobytes() and who.seen[1].size == (64, 64)
    assert len(said) == 1 and "No face was found" in said[0]


def test_a_caption_is_suggested(studio, monkeypatch):
    assert suggest_caption(read(studio, portrait="2")[0]) == DEMO_CAPTIONS[1]
    seen = []
    monkeypatch.setattr(inputs, "describe_photo", lambda photo, captioner, device: seen.append(photo) or "in a hat")
    photo = Image.new("RGB", (16, 16), "orange")
    assert suggest_caption(Who(photos=[photo])) == "in a hat" and seen == [photo]
    with pytest.raises(ValueError, match="A caption is of a photo: choose a portrait or upload one"):
        suggest_caption(Who(concept=learn()["ada"]))


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
