import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from concepts import photo
from profusion_pipeline.customization.augmentation import paint_colour
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.customization.subject_pool import (
    augmented_pictures,
    cut_to_faces,
    encode_pictures,
    read_mask,
    read_photo,
    read_photos,
)
from profusion_pipeline.method.faces import crop_face


def pictures(picture: Image.Image, *, mask=None, paint=None, side: int = 16, **settings) -> list[np.ndarray]:
    config = CustomizeConfig(**{"pool_size": 4} | settings)
    made = augmented_pictures(picture, config, side=side, mask=mask, paint=paint)
    return [np.asarray(one) for one in made]


def test_the_photo_itself_comes_first_scaled_to_the_latents_pictures():
    made = pictures(photo(20).resize((20, 30)), side=16)
    assert [one.shape for one in made] == [(24, 16, 3)] * 4
    theirs = np.asarray(photo(20).resize((20, 30)).resize((16, 24), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(made[0], theirs)
    assert all((one != made[0]).any() for one in made[1:])


def test_one_picture_means_no_augmentation():
    assert len(pictures(photo(), pool_size=1)) == 1


def test_they_depend_on_the_seed_alone():
    first, again, other = pictures(photo()), pictures(photo()), pictures(photo(), seed=1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[1] != other[1]).any()


def test_kept_background_and_no_movement_leave_the_photo():
    made = pictures(photo(), rotation=0.0, translation=0.0, zoom=0.0, background="keep")
    assert all(abs(one.astype(int) - made[0]).max() <= 1 for one in made)


STILL = dict(rotation=0.0, translation=0.0, zoom=0.0)


@pytest.mark.parametrize("background", ["noise", "blur", "colour", "mixed"])
def test_the_background_outside_a_given_mask_is_painted(background):
    mask = Image.new("L", (20, 20))
    mask.paste(255, (0, 0, 10, 20))  # the subject is the left half
    for one in pictures(photo(), mask=mask, background=background, side=20, **STILL)[1:]:
        before = np.asarray(photo())
        assert abs(one[:, :7].astype(int) - before[:, :7]).max() <= 1
        assert abs(one[:, 13:].astype(int) - before[:, 13:]).mean() > 10


def test_without_mask_the_subject_is_an_ellipse_in_the_middle():
    one = pictures(photo(32), background="colour", ellipse=0.5, side=32, **STILL)[1].astype(int)
    assert abs(one[14:18, 14:18] - np.asarray(photo(32))[14:18, 14:18]).max() <= 1
    assert np.ptp(one[:4, :4], axis=(0, 1)).max() == 0  # one colour in the corner


def test_a_painter_of_the_caller_goes_before_the_setting():
    mark = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    painted = pictures(photo(32), background="noise", side=32, paint=lambda p, m, g: mark.expand_as(p), **STILL)[1]
    assert painted[0, 0].tolist() == [255, 0, 0]
    assert paint_colour is not None


@torch.no_grad()
def test_encoded_as_the_pipeline_encodes_a_reference(pipe):
    some = [photo(20), photo(24).resize((30, 24)), photo(16)]
    pool, subject = encode_pictures(pipe, some * 4, 16, 16), pipe.encode_subject(some * 4)
    torch.testing.assert_close(pool.mean, subject.latents)
    torch.testing.assert_close(pool.image_states, subject.image_states)
    pixels = pipe.image_processor.preprocess(some[:1], 16, 16, resize_mode="crop")
    std = pipe.vae.encode(pixels).latent_dist.std * pipe.vae.config.scaling_factor
    torch.testing.assert_close(pool.std[:1], std)


def test_photos_that_can_not_be_used(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="`photo` must be an image file that Pillow can read"):
        read_photo(tmp_path / "text.png")
    with pytest.raises(ValueError, match="`photo` must be a file that exists"):
        read_photo(tmp_path / "nobody.png")
    with pytest.raises(ValueError, match="`photo` must be at least 16 pixels on each side, got 200 x 15"):
        read_photo(Image.new("RGB", (200, 15)))
    with pytest.raises(TypeError, match="`photo` must be a PIL image, a numpy array, a torch tensor or a path"):
        read_photo([photo()])


def test_masks_that_can_not_be_used():
    with pytest.raises(ValueError, match="`mask` must have the photo's size, 20 x 30, got 30 x 20"):
        read_mask(Image.new("L", (30, 20), 255), (20, 30))
    with pytest.raises(ValueError, match="`mask` must be light where the subject is, got one that is dark everywhere"):
        read_mask(Image.new("L", (20, 30), 100), (20, 30))


def test_masks_of_several_dark_labels_are_not_guessed():
    with pytest.raises(ValueError, match="`mask` must be light where the subject is"):
        read_mask((np.arange(20) % 3).repeat(30).reshape(20, 30).T.astype(np.uint8), (20, 30))


def test_masks_of_nothing_and_of_no_number():
    with pytest.raises(ValueError, match="dark everywhere, counting what is transparent"):
        read_mask(Image.new("RGBA", (20, 30), (255, 255, 255, 0)), (20, 30))
    with pytest.raises(ValueError, match="`mask` must have values in 0..1"):
        read_mask(np.full((30, 20), np.nan), (20, 30))


def test_of_a_strip_the_middle_is_augmented():
    strip = Image.new("RGB", (20, 20_001))
    strip.paste((255, 0, 0), (0, 9_900, 20, 10_100))
    mask = Image.new("L", strip.size, 255)
    made = pictures(strip, mask=mask, side=16, pool_size=2)
    assert [one.shape for one in made] == [(129, 16, 3)] * 2
    assert (made[0][30:100, :, 0] > 250).all()


def test_photos_and_masks_are_cut_to_the_face():
    """Of NASA's portrait of Eileen Collins, in scikit-image's wheel; the mask is the photo's own left half."""
    astronaut, said = Image.fromarray(data.astronaut()), []
    mask = Image.new("L", astronaut.size)
    mask.paste(255, (0, 0, 224, 512))  # of her face about one half
    nobody, no_mask = Image.new("RGB", (64, 80)), None
    photos, masks = cut_to_faces([astronaut, nobody], [mask, no_mask], said.append)
    assert np.array_equal(photos[0], crop_face(astronaut)) and photos[1] is nobody
    assert masks[0].size == photos[0].size and masks[1] is None
    columns = np.asarray(masks[0])[masks[0].height // 2]
    assert columns[0] == 255 and columns[-1] == 0 and (columns > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert len(said) == 1 and "No face was found" in said[0]
    beyond = astronaut.crop((150, 20, 300, 240))  # her head reaches the edge: the mask doesn't go on there
    (_,), (mask,) = cut_to_faces([beyond], [Image.new("L", beyond.size, 255)], said.append)
    assert mask.getextrema() == (0, 255)
    with pytest.raises(ValueError, match="`mask` must be light on the subject, it is dark all over the square"):
        cut_to_faces([astronaut], [Image.new("L", astronaut.size)])


def test_of_several_the_place_is_named():
    with pytest.raises(ValueError, match=r"`photo\[1\]` must be at least 16 pixels on each side, got 4 x 4"):
        read_photos([photo(), Image.new("RGB", (4, 4))], None)
    with pytest.raises(ValueError, match=r"`mask\[1\]` must have the photo's size"):
        read_photos([photo(), photo()], [None, Image.new("L", (4, 4), 255)])
