"""Stable Diffusion 2 as one file in the original layout, read by diffusers' `from_single_file`: a part, or all of it.

The file is written here, with a table of names of its own; configurations are folders, so nothing is asked of the Hub.
"""

import re

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

import hub_checks
from profusion_pipeline import ProFusionPipeline
from tiny import make_components

# Names of diffusers and transformers -> those of the original files, for the tiny models: two blocks of one layer. The
# rules apply in order. The UNet's original blocks are numbered through, a change of resolution among them.
UNET = {
    r"(resnets\.\d)\.norm1": r"\1.in_layers.0",
    r"(resnets\.\d)\.conv1": r"\1.in_layers.2",
    r"(resnets\.\d)\.time_emb_proj": r"\1.emb_layers.1",
    r"(resnets\.\d)\.norm2": r"\1.out_layers.0",
    r"(resnets\.\d)\.conv2": r"\1.out_layers.3",
    r"(resnets\.\d)\.conv_shortcut": r"\1.skip_connection",
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_in": "input_blocks.0.0",
    r"^down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"^down_blocks\.0\.attentions\.0": "input_blocks.1.1",
    r"^down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"^down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
    r"^up_blocks\.0\.resnets\.0": "output_blocks.0.0",
    r"^up_blocks\.0\.resnets\.1": "output_blocks.1.0",
    r"^up_blocks\.0\.upsamplers\.0": "output_blocks.1.1",
    r"^up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"^up_blocks\.1\.attentions\.0": "output_blocks.2.1",
    r"^up_blocks\.1\.resnets\.1": "output_blocks.3.0",
    r"^up_blocks\.1\.attentions\.1": "output_blocks.3.1",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^": "model.diffusion_model.",
}
VAE = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"group_norm": "norm",
    r"to_([qkv])": r"\1",
    r"to_out\.0": "proj_out",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
    r"down_blocks\.(\d)\.resnets": r"down.\1.block",
    r"down_blocks\.0\.downsamplers\.0": "down.0.downsample",
    r"up_blocks\.0\.resnets": "up.1.block",  # the decoder counts from its end
    r"up_blocks\.1\.resnets": "up.0.block",
    r"up_blocks\.0\.upsamplers\.0": "up.1.upsample",
    r"^": "first_stage_model.",
}
TEXT_ENCODER = {
    r"^text_model\.": "",  # as transformers before 5.6 has it
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^encoder\.layers": "transformer.resblocks",
    r"^final_layer_norm": "ln_final",
    r"layer_norm": "ln_",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"self_attn": "attn",
    r"^": "cond_stage_model.model.",
}


def original(model: torch.nn.Module, rules: dict[str, str]) -> dict[str, torch.Tensor]:
    """A model's weights under the original names."""
    state = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state


def write_original(components: dict, file) -> None:
    unet, vae, text_encoder = (
        original(components[name], rules)
        for name, rules in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT_ENCODER))
    )
    for name in vae:  # the autoencoder's attention is made of convolutions
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            vae[name] = vae[name][:, :, None, None]
    for name in [name for name in text_encoder if ".q_proj." in name]:  # queries, keys and values are one matrix
        parts = [text_encoder.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        text_encoder[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    save_file({name: tensor.contiguous() for name, tensor in (unet | vae | text_encoder).items()}, file)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A single file, the folder of such a Stable Diffusion without its weights, and a pipeline's folder."""
    work = tmp_path_factory.mktemp("single_file")
    write_original(make_components(), work / "sd2.safetensors")
    other = ProFusionPipeline(**make_components(seed=1))
    other.save_pretrained(work / "pipeline")
    sd = StableDiffusionPipeline.from_pipe(other, image_encoder=None, feature_extractor=None)
    sd.save_pretrained(work / "configuration")
    for path in [*(work / "configuration").rglob("*.safetensors")]:
        path.unlink()
    return work


def assert_weights_of_the_file(pipe, names) -> None:
    components = make_components()
    for name in names:
        wanted, loaded = components[name].state_dict(), getattr(pipe, name).state_dict()
        assert wanted.keys() == loaded.keys()
        for key, value in wanted.items():
            assert torch.equal(loaded[key], value), (name, key)


@pytest.mark.parametrize(("name", "cls"), [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)])
def test_a_part(there, name, cls):
    configuration = dict(config=str(there / "configuration"), subfolder=name, local_files_only=True)
    part = cls.from_single_file(str(there / "sd2.safetensors"), **configuration)
    pipe = ProFusionPipeline.from_pretrained(there / "pipeline", **{name: part})
    assert pipe.components[name] is part
    assert_weights_of_the_file(pipe, [name])


def test_all_of_a_stable_diffusion(there):
    """And it draws what it draws as a folder."""
    file, configuration = str(there / "sd2.safetensors"), str(there / "configuration")
    sd = StableDiffusionPipeline.from_single_file(file, config=configuration, local_files_only=True)
    components = make_components()
    extra = {name: components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    pipe = ProFusionPipeline.from_pipe(sd, **extra)
    assert all(pipe.components[name] is sd.components[name] for name in ("unet", "vae", "text_encoder", "tokenizer"))
    assert_weights_of_the_file(pipe, ("unet", "vae", "text_encoder"))
    wanted = hub_checks.latents(ProFusionPipeline(**components))
    torch.testing.assert_close(hub_checks.latents(pipe), wanted, rtol=0, atol=0)
