import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline.method.reference_images import load_reference_image, load_reference_images

HEIGHT, WIDTH = 6, 9
RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def photo() -> Image.Image:
    """Random pixels, so that a turn, a swap of channels or a scale shows."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_rgb_image_keeps_its_pixels_and_is_a_copy(photo):
    loaded = load_reference_image(photo)
    assert (pixels(loaded) == pixels(photo)).all()
    loaded.putpixel((0, 0), RED)
    assert photo.getpixel((0, 0)) != RED


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_path_or_string(photo, tmp_path, as_type):
    photo.save(tmp_path / "photo.png")
    assert (pixels(load_reference_image(as_type(tmp_path / "photo.png"))) == pixels(photo)).all()


def test_array_and_tensor_round_to_the_same_picture(photo):
    unit = np.asarray(photo) / 255
    assert (pixels(load_reference_image(np.asarray(photo))) == pixels(photo)).all()
    assert (pixels(load_reference_image(unit)) == pixels(photo)).all()
    tensor = torch.from_numpy(unit).permute(2, 0, 1).requires_grad_()
    assert (pixels(load_reference_image(tensor)) == pixels(photo)).all()
    assert np.abs(pixels(load_reference_image(tensor.bfloat16())) - pixels(photo)).max() <= 1


def test_grey_has_three_equal_channels(photo):
    grey = photo.convert("L")
    assert (pixels(load_reference_image(grey)) == np.asarray(grey)[..., None]).all()


def test_cmyk(photo, tmp_path):
    photo.convert("CMYK").save(tmp_path / "print.tif")
    assert np.abs(pixels(load_reference_image(tmp_path / "print.tif")) - pixels(photo)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode):
    black = Image.new(mode, (3, 1))  # fully transparent black
    black.putpixel((1, 0), (0, 0, 0, 128)[-len(mode) :])
    black.putpixel((2, 0), (0, 0, 0, 255)[-len(mode) :])
    assert pixels(load_reference_image(black))[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["index", "table"])
def test_palette_with_transparency(tmp_path, transparency):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "logo.png", transparency=transparency)
    with Image.open(tmp_path / "logo.png") as saved:
        assert saved.mode == "P"
    assert pixels(load_reference_image(tmp_path / "logo.png"))[0].tolist() == [list(WHITE), list(RED)]


@pytest.mark.parametrize("mode, dtype", [("I;16", np.uint16), ("I;16B", ">u2"), ("I", np.int32)])
def test_16_bit_is_scaled_not_clipped(mode, dtype):
    deep = np.array([[0, 257, 1000, 32768, 65535]], dtype=dtype)
    image = Image.frombytes(mode, (5, 1), deep.tobytes())
    assert pixels(load_reference_image(image))[0, :, 0].tolist() == [0, 1, 4, 128, 255]


def test_16_bit_file(tmp_path):
    ramp = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    assert np.abs(pixels(load_reference_image(tmp_path / "scan.png"))[..., 1] - ramp / 257).max() <= 0.5


def test_float_image_and_its_range():
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert pixels(load_reference_image(unit))[0, :, 2].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match=r"`depth` must have values in 0\.\.1 .*, got 0 to 7\."):
        load_reference_image(Image.fromarray(np.array([[0, 7]], dtype=np.float32)), name="depth")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    frames[0].save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if suffix == "webp" else {}),
    )
    assert (pixels(load_reference_image(tmp_path / f"a.{suffix}")) == RED).all()


@pytest.mark.parametrize(
    "orientation, turn",
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (2, Image.Transpose.FLIP_LEFT_RIGHT)],
)
def test_exif_orientation_is_applied(photo, tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "phone.png", exif=exif)
    assert (pixels(load_reference_image(tmp_path / "phone.png")) == pixels(photo.transpose(turn))).all()


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nobody.png", tmp_path):
        with pytest.raises(
            ValueError, match=rf"`face` must be a file that exists, got (the folder )?'.*{path.name[-25:]}'"
        ):
            load_reference_image(path, name="face")


def test_file_that_is_no_image(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(
        ValueError, match=r"`image` must be an image file that Pillow can read, '.*notes\.png' is not one"
    ):
        load_reference_image(tmp_path / "notes.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_truncated_file_is_refused_not_half_read(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"(must be a whole image, cannot read|must be an image file)"):
        load_reference_image(cut)


def test_truncated_image_that_the_caller_opened(photo, tmp_path):
    photo.resize((90, 60)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(ValueError, match="`image` must be a whole image"):
        load_reference_image(opened)


@pytest.mark.parametrize("empty", [Image.new("RGB", (0, 5)), np.zeros((5, 0, 3), dtype=np.uint8), torch.zeros(3, 5, 0)])
def test_no_pixels(empty):
    with pytest.raises(ValueError, match=r"`image` must have pixels, got a picture of 0 x 5\."):
        load_reference_image(empty)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4,), (4, 5, 2), (1, 4, 5, 3)])
def test_array_shape(shape):
    sentence = r"`image` as an array must have the shape \[H, W\] or \[H, W, 1 \| 3 \| 4\], got \["
    with pytest.raises(ValueError, match=sentence):
        load_reference_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(5, 4, 3), (4,), (1, 3, 4, 5)])
def test_tensor_shape(shape):
    sentence = r"`image` as a tensor must have the shape \[H, W\] or \[1 \| 3 \| 4, H, W\], got \["
    with pytest.raises(ValueError, match=sentence):
        load_reference_image(torch.zeros(shape))


@pytest.mark.parametrize("zeros", [np.zeros((4, 5, 3), dtype=np.int64), torch.zeros(3, 4, 5).long()])
def test_array_and_tensor_dtype(zeros):
    with pytest.raises(TypeError, match=r"must be of uint8, uint16, bool or of floats in 0\.\.1, got int64"):
        load_reference_image(zeros)


def test_grey_arrays_and_tensors(photo):
    grey = np.asarray(photo.convert("L"))
    expected = pixels(photo.convert("L").convert("RGB"))
    for array in (grey, grey[..., None], grey / 255, (grey / 255)[..., None], grey.astype(np.uint16) * 257):
        assert (pixels(load_reference_image(array)) == expected).all()
    for tensor in (torch.from_numpy(grey.copy()), torch.from_numpy(grey / 255)):
        assert (pixels(load_reference_image(tensor)) == expected).all()
        assert (pixels(load_reference_image(tensor[None])) == expected).all()
    assert pixels(load_reference_image(np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]


def test_arrays_and_tensors_with_alpha(photo):
    with_alpha = photo.copy()
    with_alpha.putalpha(Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 4))
    expected = pixels(load_reference_image(with_alpha))
    array = np.asarray(with_alpha)
    assert (pixels(load_reference_image(array)) == expected).all()
    assert (pixels(load_reference_image(torch.from_numpy(array / 255).permute(2, 0, 1))) == expected).all()


@pytest.mark.parametrize(
    "value, shown", [(-1.0, "-1 to 0"), (255.0, "0 to 255"), (1.002, "0 to 1.002"), (float("nan"), "nan to nan")]
)
def test_values_out_of_range(value, shown):
    tensor = torch.zeros(3, 4, 5)
    tensor[0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"`image` must have values in 0\.\.1 .*, got {shown}"):
        load_reference_image(tensor)


def test_values_out_of_range_by_rounding_alone():
    white = torch.nn.functional.interpolate(torch.ones(1, 3, 64, 64), size=(50, 50), mode="bilinear", antialias=True)[0]
    for tensor in (white, torch.full((3, 4, 5), 1 + 2e-7), torch.full((3, 4, 5), 1.0005)):
        assert (pixels(load_reference_image(tensor)) == 255).all()
    assert (pixels(load_reference_image(torch.full((3, 4, 5), -1e-7))) == 0).all()


@pytest.mark.parametrize("tensor", [torch.zeros(4, 5).to_sparse(), torch.zeros(3, 4, 5, device="meta")])
def test_tensors_without_numbers(tensor):
    with pytest.raises(ValueError, match="`image` as a tensor must be dense and hold its numbers"):
        load_reference_image(tensor)


@pytest.mark.parametrize("thing", [None, 3, ("a.png",), {"path": "a.png"}])
def test_neither_image_nor_path(thing):
    with pytest.raises(TypeError, match="`image` must be a PIL image, a numpy array, .* got (NoneType|int|tuple|dict)"):
        load_reference_image(thing)


def test_mode_i_with_8_bit_values_is_as_bright_as_before(photo):
    grey = photo.convert("L")
    assert (pixels(load_reference_image(grey.convert("I"))) == np.asarray(grey)[..., None]).all()


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "1", "YCbCr", "HSV", "RGBX"])
def test_other_modes(photo, mode):
    of_mode = photo.convert({"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode, mode)).convert(mode)
    expected = photo.convert("1" if mode == "1" else "L" if mode == "La" else "P" if mode == "PA" else "RGB").convert(
        "RGB"
    )
    assert np.abs(pixels(load_reference_image(of_mode)) - pixels(expected)).max() <= 6


def test_transparency_of_16_bit_grey(tmp_path):
    try:
        Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=0)
    except OSError:
        pytest.skip("this Pillow can't write such a file")
    assert pixels(load_reference_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 255]


def test_an_image_whose_file_is_closed(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as left:
        pass
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    for image in (left, closed):
        with pytest.raises(ValueError, match=r"`image` must be a whole image, .*; call its `load\(\)` before"):
            load_reference_image(image)


def test_exif_that_nobody_can_read_is_no_fault_of_the_picture(photo, tmp_path):
    photo.save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*" + b"\xff" * 30)
    assert (pixels(load_reference_image(tmp_path / "a.png")) == pixels(photo)).all()


def test_photos_of_the_largest_phones_are_halved(tmp_path):
    """12000 x 9000; Pillow warns of them, and warnings are errors here."""
    large = Image.new("L", (12000, 9000), 200)
    large.paste(50, (0, 0, 6000, 9000))
    large.save(tmp_path / "phone.jpg")
    with open(tmp_path / "phone.jpg", "rb") as file:
        for source in (tmp_path / "phone.jpg", file, large):
            loaded = load_reference_image(source)
            assert loaded.size == (6000, 4500)
            assert loaded.getpixel((1000, 1000)) == (50, 50, 50) and loaded.getpixel((5000, 1000)) == (200, 200, 200)


def test_of_several_the_place_is_named():
    one = Image.new("RGB", (4, 4))
    for images, name in (([one, 3], r"image\[1\]"), ([3], "image"), (3, "image")):
        with pytest.raises(TypeError, match=f"`{name}` must be a PIL image"):
            load_reference_images(images)
