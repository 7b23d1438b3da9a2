"""The benchmark of Stable Diffusion XL's size: its shapes are XL's, and all of it runs at tiny size."""

import pytest
import torch

pytest.importorskip("accelerate")

import xl_size  # noqa: E402


def test_it_has_the_size_of_stable_diffusion_xl():
    """Parameters in millions, as published: 2567 of the UNet, 123 and 695 of the text encoders, 84 of the VAE."""
    from unittest import mock

    with mock.patch.object(xl_size, "fill", lambda model, **how: None):
        pipe = xl_size.build_pipeline("xl", dtype=torch.bfloat16, device="cpu")
    found = {name: getattr(pipe, name).num_parameters() / 1e6 for name in ("unet", "text_encoder", "text_encoder_2")}
    assert found["unet"] == pytest.approx(2567.5, abs=0.1)
    assert found["text_encoder"] == pytest.approx(123.1, abs=0.1)
    assert found["text_encoder_2"] == pytest.approx(694.7, abs=0.1)
    assert pipe.promptnet.config.text_embed_dim == 2048


def test_it_runs_at_tiny_size():
    found = xl_size.measure("tiny", torch.bfloat16, "cpu")
    assert 0 < found["weights_gib"] <= found["picture_gib"] <= found["learning_gib"]
    assert found["picture_seconds"] > 0 and found["learning_seconds"] > 0
