import inspect
import os
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from profusion_pipeline.method.modeling_promptnet import PromptNet
from tiny import make_unet

GOLDENS = Path(os.environ.get("PROFUSION_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))


def demo_sized_unet(**overrides):
    return make_unet(
        in_channels=32,
        out_channels=32,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        **overrides,
    )


def inputs(promptnet, side, batch=2):
    channels, width = promptnet.config.in_channels, promptnet.config.image_embed_dim
    return dict(
        sample=torch.randn(batch, channels, side, side),
        timestep=torch.tensor([3, 700])[:batch],
        encoder_hidden_states=torch.randn(batch, 5, width),
        promptnet_cond=torch.randn(batch, channels, side, side),
    )


@pytest.mark.parametrize(
    ("blocks", "strides", "stride"),
    [(1, [8], 8), (2, [4, 4], 8), (3, [4, 2, 2], 8), (4, [4, 2, 1, 1], 8), (5, [8, 4, 2, 1, 1], 16)],
)
def test_every_tap_lands_on_the_same_grid(blocks, strides, stride):
    promptnet = PromptNet(
        down_block_types=("CrossAttnDownBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        image_embed_dim=6,
        text_embed_dim=10,
        region_kernel_size=1,
        region_proj_channel=4,
        layers_per_block=1,
    )
    assert [tap.stride[0] for tap in promptnet.down_prompt_projections] == strides
    assert promptnet.grid_stride == promptnet.first_prompt_projection.stride[0] == stride
    prompt_embeds = promptnet(**inputs(promptnet, 2 * stride)).prompt_embeds
    assert prompt_embeds.shape == (2, 4, 10)
    assert promptnet.num_subject_tokens(2 * stride, 2 * stride) == 4


def test_starts_from_the_encoder_of_its_unet():
    unet = demo_sized_unet()
    promptnet = PromptNet.from_unet(unet, image_embed_dim=6)
    states, unet_states = promptnet.state_dict(), unet.state_dict()
    shared = {name for name in states if name in unet_states}
    assert shared == {
        name for name in unet_states if name.startswith(("conv_in.", "time_embedding.", "down_blocks.", "mid_block."))
    }
    for name in shared:
        assert torch.equal(states[name], unet_states[name]), name
    assert promptnet.config.text_embed_dim == unet.config.cross_attention_dim
    assert promptnet.num_subject_tokens(unet.config.sample_size, unet.config.sample_size) == 1
    assert promptnet(**inputs(promptnet, 8)).prompt_embeds.shape == (2, 1, 32)


def test_hidden_states_are_those_of_the_unets_encoder():
    """With E = 0 and the same context, what PromptNet taps is what the UNet's own mid block gives."""
    unet = make_unet()
    promptnet = PromptNet.from_unet(unet, image_embed_dim=32).eval()
    torch.nn.init.zeros_(promptnet.promptnet_cond_embedding.conv_out.weight)
    torch.nn.init.zeros_(promptnet.promptnet_cond_embedding.conv_out.bias)
    torch.nn.init.eye_(promptnet.vision_embedding.weight)
    torch.nn.init.zeros_(promptnet.vision_embedding.bias)
    seen = []
    for model in (unet, promptnet):
        model.mid_block.register_forward_hook(lambda module, args, output: seen.append(output))
    batch = inputs(promptnet, 8)
    promptnet(**batch)
    unet(batch["sample"], batch["timestep"], batch["encoder_hidden_states"])
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_words_follow_the_rows_of_the_grid():
    promptnet = PromptNet.from_unet(make_unet(), image_embed_dim=6, region_kernel_size=1).eval()
    # Only h_0's tap is left: it alone is local.
    for module in (promptnet.down_prompt_projections, promptnet.mid_prompt_projection):
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
    batch = inputs(promptnet, 16, batch=1)
    before = promptnet(**batch).prompt_embeds
    batch["promptnet_cond"][..., 2:6, 10:14] += 1  # inside the right upper cell
    changed = (promptnet(**batch).prompt_embeds - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False, True, False, False]


def test_gradient_checkpointing_changes_no_gradient():
    promptnet = PromptNet.from_unet(make_unet(), image_embed_dim=6).train()
    batch = inputs(promptnet, 8)
    gradients = []
    for checkpointing in (False, True):
        (promptnet.enable_gradient_checkpointing if checkpointing else promptnet.disable_gradient_checkpointing)()
        promptnet.zero_grad()
        promptnet(**batch).prompt_embeds.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in promptnet.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], msg=name)


def test_saves_and_loads_in_every_precision(tmp_path):
    promptnet = PromptNet.from_unet(demo_sized_unet(), image_embed_dim=6).eval()
    batch = inputs(promptnet, 8)
    promptnet.save_pretrained(tmp_path)
    assert torch.equal(PromptNet.from_pretrained(tmp_path)(**batch)[0], promptnet(**batch, return_dict=False)[0])
    half = PromptNet.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    batch = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    assert half(**batch).prompt_embeds.dtype == torch.bfloat16


def test_what_it_saves_does_not_say_where_it_was_loaded_from(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    PromptNet.from_unet(make_unet(), image_embed_dim=6).save_pretrained(first)
    loaded = PromptNet.from_pretrained(first)
    assert Path(loaded.config["_name_or_path"]) == first
    loaded.save_pretrained(second)
    assert (second / "config.json").read_bytes() == (first / "config.json").read_bytes()


def test_from_unet_keeps_dtype():
    assert PromptNet.from_unet(make_unet().to(torch.bfloat16), image_embed_dim=6).dtype == torch.bfloat16


@pytest.mark.parametrize("weights", ["original_layout/promptnet", "promptnet_64"])
def test_weights_of_the_authors_release_load_by_name(weights):
    folder = GOLDENS / weights
    if not folder.is_dir():
        pytest.skip(f"there are no goldens in {GOLDENS}: set PROFUSION_GOLDENS")
    promptnet = PromptNet(
        block_out_channels=(16, 32, 32, 32),
        attention_head_dim=(2, 4, 4, 4),
        norm_num_groups=8,
        cross_attention_dim=32,
        text_embed_dim=32,
        image_embed_dim=1280,
        region_kernel_size=2 if weights != "promptnet_64" else 8,
        region_proj_channel=128 if weights != "promptnet_64" else 16,
    ).eval()
    states = torch.load(folder / "diffusion_pytorch_model.bin", weights_only=True)
    missing, dropped = promptnet.load_state_dict(states, strict=False)
    assert missing == []
    assert {name.split(".")[0] for name in dropped} == {
        "residual_projections",
        "residual_projections_2",
        "mid_residual_projection",
        "mid_residual_projection_2",
    }
    recorded = load_file(GOLDENS / "g1_promptnet.safetensors")
    case = "s64_k8_b2" if weights == "promptnet_64" else "s16x32_L2"
    names = ("sample", "timestep", "encoder_hidden_states", "promptnet_cond")
    with torch.no_grad():
        prompt = promptnet(**{name: recorded[f"{case}/{name}"] for name in names}).prompt_embeds
    expected = recorded[f"{case}/prompt"]
    assert (prompt - expected).abs().max() / expected.abs().max() < 1e-5


def test_refuses_settings_it_does_not_know():
    with pytest.raises(ValueError, match="no setting `use_res`, `with_noise`.*profusion convert"):
        PromptNet.from_config({"with_noise": True, "use_res": True, "in_channels": 4})


def test_refuses_blocks_that_disagree():
    with pytest.raises(ValueError, match="`down_block_types` names 4 blocks, but `block_out_channels` has 2"):
        PromptNet(block_out_channels=(8, 16))
    with pytest.raises(ValueError, match="`attention_head_dim` has 3 entries, but there are 4 blocks"):
        PromptNet(attention_head_dim=(1, 2, 3))
    with pytest.raises(ValueError, match="`transformer_layers_per_block` has 2 entries, but there are 4 blocks"):
        PromptNet(transformer_layers_per_block=(1, 2))


def test_blocks_may_be_of_several_depths():
    """As Stable Diffusion XL's are."""
    unet = make_unet(transformer_layers_per_block=(1, 2))
    promptnet = PromptNet.from_unet(unet, image_embed_dim=24, region_proj_channel=8)
    assert len(promptnet.mid_block.attentions[0].transformer_blocks) == 2
    assert len(promptnet.down_blocks[0].attentions[0].transformer_blocks) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(center_input_sample=True), "`center_input_sample` is True; only False works"),
        (dict(class_embed_type="timestep"), "`class_embed_type` is 'timestep'; only None works"),
        (dict(layers_per_block=(1, 2)), r"`layers_per_block` is \(1, 2\), only one value"),
    ],
)
def test_refuses_a_unet_it_has_no_counterpart_of(overrides, message):
    with pytest.raises(ValueError, match=message):
        PromptNet.from_unet(make_unet(**overrides), image_embed_dim=6)


@pytest.mark.parametrize("sample_size", [None, 12])
def test_needs_the_region_where_the_unet_has_none(sample_size):
    unet = make_unet(sample_size=sample_size)
    with pytest.raises(ValueError, match=f"`region_kernel_size` must be given: .* {sample_size}, not one"):
        PromptNet.from_unet(unet, image_embed_dim=6)
    assert PromptNet.from_unet(unet, image_embed_dim=6, region_kernel_size=1).config.region_kernel_size == 1


@pytest.mark.parametrize(("side", "kernel"), [(12, 1), (8, 2)])
def test_refuses_latents_that_do_not_fit_the_grid(side, kernel):
    promptnet = PromptNet.from_unet(make_unet(), image_embed_dim=6, region_kernel_size=kernel)
    with pytest.raises(ValueError, match=f"multiples of 8 and at least {8 * kernel}, not {side} x {side}"):
        promptnet(**inputs(promptnet, side))


def test_refuses_latents_of_different_sizes():
    promptnet = PromptNet.from_unet(make_unet(), image_embed_dim=6)
    batch = inputs(promptnet, 8) | {"promptnet_cond": torch.randn(2, 4, 16, 16)}
    with pytest.raises(ValueError, match=r"shape of `sample`, \(2, 4, 8, 8\), not \(2, 4, 16, 16\)"):
        promptnet(**batch)


def test_the_unets_settings_are_all_sorted():
    """A setting that a future UNet2DConditionModel loses would be read in vain."""
    from profusion_pipeline.method.modeling_promptnet import FOREIGN_SETTINGS, UNIFORM_SETTINGS

    ours = {name for name in inspect.signature(PromptNet.__init__).parameters if name != "self"}
    own = {"image_embed_dim", "text_embed_dim", "region_kernel_size", "region_proj_channel"}
    theirs = set(inspect.signature(UNet2DConditionModel.__init__).parameters)
    assert {*(ours - own), *FOREIGN_SETTINGS, *UNIFORM_SETTINGS} <= theirs
