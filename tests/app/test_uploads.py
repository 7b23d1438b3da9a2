import pytest
from PIL import Image

from concepts import learn
from profusion_pipeline.app.uploads import Limits, public_sentence, read_concept, read_photos

SMALL = Limits(upload_bytes=5000, pixels=1_000_000, photos=2)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (20, 16), "orange").save(tmp_path / "me.png")
    return tmp_path / "me.png"


def test_photos(photo):
    assert [picture.size for picture in read_photos([photo, str(photo)], SMALL)] == [(20, 16)] * 2


def test_a_photo_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    file = tmp_path / "large.png"
    Image.new("1", (1100, 1000)).save(file)
    file.write_bytes(file.read_bytes()[:60])  # its pixels are not there at all
    with pytest.raises(ValueError, match="A photo may have at most 1 million pixels, got 1100 x 1000"):
        read_photos([file], SMALL)


def test_uploads_that_are_refused(photo, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "large.png").write_bytes(bytes(5001))
    for files, sentence in (
        ([], "There is no photo yet"),
        ([photo] * 3, "There may be at most 2 photos of a person, got 3"),
        ([tmp_path / "text.png"], "`photo` must be an image file that Pillow can read, 'text.png' is not one"),
        ([tmp_path / "large.png"], "A file may have at most 0 MB, got 0.0 MB"),
    ):
        with pytest.raises(ValueError) as caught:
            read_photos(files, SMALL)
        assert sentence in public_sentence(caught.value)


def test_a_concept(tmp_path):
    learn()["ada"].save_pretrained(tmp_path)
    assert read_concept(tmp_path / "concept.safetensors", Limits()).class_noun == "man"


def test_concepts_that_are_refused(photo, tmp_path):
    with pytest.raises(ValueError, match="There is no concept yet"):
        read_concept(None, SMALL)
    with pytest.raises(ValueError) as caught:
        read_concept(photo, SMALL)
    assert public_sentence(caught.value).startswith("'me.png' isn't a whole safetensors file")


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("no picture: '/var/up/7/me.png'.", "no picture: 'me.png'."),
        ("no picture: '/var/my files/me you.png'.", "no picture: 'me you.png'."),
        (r"no picture: 'C:\files\me.png'.", "no picture: 'me.png'."),
        ("2/3 of it, S* and/or you", "2/3 of it, S* and/or you"),
    ],
)
def test_places_stay_here(said, public):
    try:
        raise ValueError(said)
    except ValueError as error:
        assert public_sentence(error) == public
