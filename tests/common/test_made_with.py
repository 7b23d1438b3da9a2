import dataclasses
import io
import json

import pytest
import torch
from PIL import Image

from concepts import learn
from profusion_pipeline.common.made_with import (
    DIGITAL_SOURCE,
    differences,
    read_record,
    record_of,
    save_options,
    versions,
)

PICTURE = Image.new("RGB", (8, 8), "orange")


@pytest.fixture
def record(pipe):
    photo = ("/srv/ada/secret/me.png", Image.new("RGB", (4, 4)))
    return record_of(pipe, model="/srv/ada/models/x", prompt="S* à la plage", seed=7, settings={}, references=[photo])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".avif"])
def test_a_picture_says_how_it_was_made(record, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    PICTURE.save(path, **save_options(suffix, record))
    assert read_record(path) == json.loads(json.dumps(record))
    assert read_record(path.read_bytes()) == read_record(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_no_path_and_no_name(record, suffix):
    file = io.BytesIO()
    PICTURE.save(file, Image.registered_extensions()[suffix], **save_options(suffix, record))
    assert not [word for word in (b"ada", b"srv", b"secret", b"models") if word in file.getvalue()]
    assert record["model"]["source"] == "local" and record["references"][0]["source"] == "local"


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".unknown"])
def test_formats_that_hold_nothing_are_left_without(record, suffix):
    assert save_options(suffix, record, mark=True) == {}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
def test_the_mark_of_the_iptc(suffix):
    file = io.BytesIO()
    PICTURE.save(file, Image.registered_extensions()[suffix], **save_options(suffix, None, mark=True))
    assert DIGITAL_SOURCE.encode() in file.getvalue()
    with Image.open(file) as again:
        again.load()
        assert "DigitalSourceType" in str(again.info.get("xmp", again.info.get("XML:com.adobe.xmp")))


def test_every_setting_of_the_call_is_there(pipe):
    record = record_of(pipe, model="me/model", prompt="S*", seed=1, settings={"guidance_scale": 3})
    assert record["settings"]["guidance_scale"] == 3
    assert record["settings"]["num_inference_steps"] == 50 and record["settings"]["class_noun"] == "person"
    assert record["model"]["source"] == "me/model" and record["versions"] == versions()
    with pytest.raises(ValueError, match="`settings` must be settings of the call .* got 'guidence_scale'"):
        record_of(pipe, model="demo", prompt="S*", seed=1, settings={"guidence_scale": 3})


def test_the_hash_of_a_concept_is_that_of_its_tensors(pipe):
    def hash_of(concept):
        return record_of(pipe, model="demo", prompt="S*", seed=1, settings={}, concept=("x", concept))["concept"][
            "hash"
        ]

    ada, bob = learn()["ada"], learn()["bob"]
    assert hash_of(ada) == hash_of(dataclasses.replace(ada, loss=9.0)) != hash_of(bob)
    name = next(iter(ada.changes))
    assert hash_of(dataclasses.replace(ada, changes=ada.changes | {name: ada.changes[name] + 1})) != hash_of(ada)


def test_what_differs_is_said(pipe, record):
    other = record_of(pipe, model="demo", prompt="S*", seed=7, settings={}, concept=("x", learn()["ada"]))
    assert differences(record, other) == ["another concept", "another photo"]
    with torch.no_grad():
        pipe.unet.conv_in.weight.neg_()
    other = record_of(pipe.to(torch.bfloat16), model="demo", prompt="S*", seed=7, settings={})
    assert differences(record, other) == ["another model", "another photo", "dtype bfloat16 in place of float32"]
    other["versions"]["torch"] = "9"
    assert differences(record, other)[-1] == f"torch 9 in place of {torch.__version__}"


def test_a_prompt_that_exif_can_not_hold(record, caplog):
    long = record | {"prompt": "x" * 70_000}
    assert save_options(".jpg", long) == {} and "too long for a picture's EXIF" in caplog.text
    PICTURE.save(file := io.BytesIO(), "PNG", **save_options(".png", long))
    assert read_record(file)["prompt"] == long["prompt"]


def test_a_picture_that_says_nothing(tmp_path):
    for name in ("a.png", "a.jpg"):
        PICTURE.save(tmp_path / name)
        with pytest.raises(ValueError, match="`--from` must be a picture that says how it was made"):
            read_record(tmp_path / name, name="--from")


def changed(record, **parts):
    return json.loads(json.dumps(record)) | parts


@pytest.mark.parametrize(
    "parts, message",
    [
        (dict(prompt=3), "`prompt` must be there and of str"),
        (dict(seed=-1), "`seed` must be in 0..2[*][*]63 - 1, got -1"),
        (dict(settings=[]), "`settings` must be there and of dict"),
        (dict(batch={"prompts": 10**9}), "`batch` must number one of at most 1024 pictures"),
        (dict(batch={"number": 1}), "`batch` must number one of at most 1024 pictures"),
        (dict(references=[3]), "`references`, `concept` and `learnt` must be objects, got 3"),
        (dict(learnt=3), "`references`, `concept` and `learnt` must be objects, got 3"),
        (dict(learnt={"loras": {"source": "x"}}), "`references`, `concept` and `learnt` must be objects, got None"),
        (dict(concept="x"), "`references`, `concept` and `learnt` must be objects, got 'x'"),
    ],
)
def test_what_strangers_write(record, parts, message):
    PICTURE.save(file := io.BytesIO(), "PNG", **save_options(".png", changed(record, **parts)))
    with pytest.raises(ValueError, match=f"must hold a record of `profusion generate`.*{message}"):
        read_record(file)


def test_a_torn_picture(record):
    PICTURE.save(file := io.BytesIO(), "PNG", **save_options(".png", record))
    with pytest.raises(ValueError, match="`picture` must be a whole image"):
        read_record(file.getvalue()[:-60])
