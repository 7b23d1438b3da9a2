import itertools
import sys
from types import ModuleType

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from profusion_pipeline.notebook.preview import LatentColours, likely_latents, live_preview

PHOTO = Image.new("RGB", (16, 16), (200, 100, 50))


def test_latents_that_are_a_linear_map_of_colours():

    mixing = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
    colours = torch.rand(50, 3) * 2 - 1
    map_ = LatentColours(torch.linalg.pinv(mixing), torch.zeros(3))
    latents = (colours @ mixing.T).T.reshape(1, 4, 10, 5)
    (picture,) = map_.pictures(latents)
    expected = ((colours + 1) * 127.5).round().reshape(10, 5, 3)
    assert torch.equal(torch.tensor(list(picture.tobytes())).reshape(10, 5, 3).float(), expected)


def test_a_fitted_map_is_right_on_average(pipe):
    """What a line with a bias leaves over sums to nothing."""
    colours, bands = LatentColours.fit(pipe, PHOTO), PHOTO.split()
    photos = [Image.merge("RGB", order) for order in itertools.permutations(bands)]
    latents = torch.cat([pipe.encode_subject(photo).latents for photo in photos])
    cells = torch.einsum("oc,bchw->bohw", colours.weight, latents).mean((0, 2, 3)) + colours.bias
    mean = torch.tensor(PHOTO.getpixel((0, 0))).float().mean() / 127.5 - 1
    torch.testing.assert_close(cells, mean.expand(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["photo", "decoder"])
def test_the_last_step_shows_the_picture(pipe, way):
    seen = []
    watch = live_preview(pipe, every=2, side=16, show=seen.append, **{way: {"photo": PHOTO, "decoder": pipe.vae}[way]})
    call = dict(num_inference_steps=5, num_images_per_prompt=2, generator=torch.Generator().manual_seed(0))
    images = pipe("a photo of S*", image=PHOTO, callback_on_step_end=watch, **call).images
    assert [picture.size for picture in seen] == [(32, 16)] * 3  # after 2, 4 and 5 steps
    if way == "decoder":
        assert seen[-1].crop((16, 0, 32, 16)).tobytes() == images[1].tobytes()


def test_a_preview_changes_no_picture(pipe):
    watch = live_preview(pipe, PHOTO, show=lambda picture: None)
    plain, watched = (
        pipe("a photo of S*", image=PHOTO, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **call)
        for call in ({}, {"callback_on_step_end": watch})
    )
    assert plain.images[0].tobytes() == watched.images[0].tobytes()


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_noise_fades_as_its_share_does(pipe, kind):
    """sqrt(ᾱ) of a state that is sqrt(ᾱ) x_0 + sqrt(1-ᾱ) ε, in either scale: what is left of x_0 is ᾱ."""
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(4)
    pipe._num_timesteps, one = 4, torch.ones(1, 1, 1, 1)
    for index in range(3):
        alpha_bar = float(pipe.scheduler.alphas_cumprod[int(pipe.scheduler.timesteps[index + 1])])
        signal = one if kind is EulerDiscreteScheduler else alpha_bar**0.5 * one
        assert float(likely_latents(pipe, index, signal)) == pytest.approx(alpha_bar)
    assert float(likely_latents(pipe, 3, one)) == 1


def test_in_a_notebook_one_picture_takes_the_place_of_the_other(pipe, monkeypatch):
    shown = []

    class Handle:
        def update(self, picture):
            shown[-1] = picture

    notebook = ModuleType("IPython.display")
    notebook.display = lambda picture, display_id: shown.append(picture) or Handle()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    pipe("a photo of S*", image=PHOTO, num_inference_steps=3, callback_on_step_end=live_preview(pipe, PHOTO))
    assert len(shown) == 1


def test_what_is_refused(pipe):
    with pytest.raises(ValueError, match="One of `photo` and `decoder` must say how latents are shown"):
        live_preview(pipe)
    with pytest.raises(ValueError, match="`every` must be at least 1"):
        live_preview(pipe, PHOTO, every=0)
    with pytest.raises(TypeError, match="`side` must be a whole number"):
        live_preview(pipe, PHOTO, side=1.5)
