"""Pictures and ControlNets that a command is given beside the reference."""

import pytest
import torch
from PIL import Image

from calls import build, picture
from profusion_pipeline.common import layout
from tiny import make_controlnet


def test_pictures_are_read_by_their_flags(tmp_path):
    picture().save(tmp_path / "a.png")
    Image.new("RGBA", (30, 20), (255, 0, 0, 255)).save(tmp_path / "mask.png")
    read = layout.read_pictures({"init_image": [str(tmp_path / "a.png")], "mask_image": [str(tmp_path / "mask.png")]})
    assert read["init_image"][0][1].mode == "RGB" and read["mask_image"][0][1].mode == "L"
    with pytest.raises(ValueError, match="`--init-image` must be a file that exists"):
        layout.read_pictures({"init_image": ["nowhere.png"]})
    with pytest.raises(ValueError, match="--controlnet and --control-image must be given together"):
        layout.read_pictures({"controlnet": ["me/canny"]})


def test_controlnets_come_in_the_dtype_of_the_pipeline(tmp_path):
    make_controlnet(build().unet).save_pretrained(tmp_path / "canny")
    nets = layout.load_controlnets([str(tmp_path / "canny")] * 2, dtype=torch.bfloat16, device="cpu")
    assert [net.dtype for net in nets] == [torch.bfloat16] * 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty"):
        layout.load_controlnets([str(tmp_path / "empty")], dtype=torch.float32, device="cpu")


def test_each_prompt_has_its_own_picture_and_all_controlnets():
    read = {"init_image": [("a", 1), ("b", 2)], "control_image": [("c", 3), ("d", 4)]}
    assert layout.of_prompt(read, 1) == {"init_image": [("b", 2)], "control_image": [("d", 4)]}
    several = read | {"controlnet": [("e", 5), ("f", 6)], "mask_image": []}
    assert layout.of_prompt(several, 0)["control_image"] == [("c", 3), ("d", 4)]
    assert layout.of_prompt(several, 0)["controlnet"] == [("e", 5), ("f", 6)]
    assert layout.arguments(read)["init_image"] == [1, 2]
