"""What users of diffusers put together with a pipeline: each thing changes what it says and nothing else.

Off-loading hooks fire on a module's `forward`. S* is put in by a hook on the text encoder's embeddings, so the tests
of off-loading ask for the same picture while parameters are on the meta device or on disk between calls.
"""

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import is_xformers_available
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from calls import CLOSE, PROMPT, build, freeze, latents_of, needs_group_offloading, picture, relative, rounding, seeded
from profusion_pipeline.method.modeling_promptnet import PromptNet
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.subject_embedding import SubjectEmbedding
from profusion_pipeline.method.subject_prompt import scaled_lora
from tiny import PICTURE_SIDE, make_components

pytestmark = pytest.mark.numeric
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MODELS = ("vae", "text_encoder", "unet", "promptnet", "image_encoder")


def pictures_of(pipe, **settings):
    """Two pictures of two people as arrays: every model of the pipeline is in it."""
    defaults = dict(image=[picture(1), picture(2)], num_inference_steps=2, generator=seeded(), output_type="np")
    return pipe(["a photo of S*", "S* with a red hat"], class_noun="person", **defaults | settings).images


# ---------------------------------------------------------------------------------------- adapters

TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "v_proj"],
    "promptnet": ["to_q", "to_v"],
}


@pytest.fixture
def lora_file(tmp_path):
    """A LoRA of some of a pipeline's models, with random numbers in it, as a training would leave it."""
    peft = pytest.importorskip("peft")

    def save(seed, *names):
        models = make_components()
        layers = {}
        for name in names:
            torch.manual_seed(seed)
            config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[name], init_lora_weights=False)
            models[name].add_adapter(config)
            layers[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(models[name])
        ProFusionPipeline.save_lora_weights(tmp_path / str(seed), **layers)
        return tmp_path / str(seed)

    return save


@pytest.mark.parametrize("names", [("unet",), ("text_encoder",), ("unet", "text_encoder")], ids="-".join)
def test_lora_comes_and_goes(pipe, lora_file, names):
    freeze(pipe)
    without = latents_of(pipe, image=picture())
    pipe.load_lora_weights(lora_file(1, *names), adapter_name="style")
    assert pipe.get_list_adapters() == {name: ["style"] for name in names}
    full = latents_of(pipe, image=picture())
    assert relative(full, without) > 1e-3
    pipe.set_adapters("style", 0.0)
    assert torch.equal(latents_of(pipe, image=picture()), without)
    pipe.set_adapters("style", 1.0)
    pipe.fuse_lora(components=list(names))  # the adapter written into the weights: no adapter runs any more
    assert relative(latents_of(pipe, image=picture()), full) < 1e-4
    pipe.unfuse_lora(components=list(names))
    pipe.unload_lora_weights()
    assert relative(latents_of(pipe, image=picture()), without) < 1e-4


def test_a_lora_is_saved_once_it_is_in_the_weights(pipe, lora_file, tmp_path):
    """As the error says of a pipeline whose LoRA is still an adapter: its folder would not load anywhere else."""
    freeze(pipe)
    without = latents_of(pipe, image=picture())
    pipe.load_lora_weights(lora_file(1, "unet", "text_encoder"), adapter_name="style")
    styled = latents_of(pipe, image=picture())
    with pytest.raises(ValueError, match=r"adapters in text_encoder and unet: .* after `fuse_lora\(\)`"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    loaded = ProFusionPipeline.from_pretrained(tmp_path / "saved")
    assert relative(latents_of(loaded, image=picture()), styled) < 1e-4
    assert relative(styled, without) > 1e-3


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_two_loras_at_once(pipe, lora_file):
    freeze(pipe)
    pipe.load_lora_weights(lora_file(1, "unet"), adapter_name="style")
    style = latents_of(pipe, image=picture())
    pipe.load_lora_weights(lora_file(2, "unet", "text_encoder"), adapter_name="place")
    pipe.set_adapters(["style", "place"], [1.0, 0.0])
    assert torch.equal(latents_of(pipe, image=picture()), style)
    pipe.set_adapters(["style", "place"], [0.5, 0.5])
    assert relative(latents_of(pipe, image=picture()), style) > 1e-3


def test_lora_scale_of_one_call(pipe, lora_file):
    """It weighs the LoRA of UNet and text encoder, wherever the text encoder runs, and is forgotten afterwards."""
    pipe.load_lora_weights(lora_file(1, "unet", "text_encoder"), adapter_name="style")
    full = latents_of(pipe, image=picture())
    half = latents_of(pipe, image=picture(), cross_attention_kwargs={"scale": 0.5})
    assert torch.equal(latents_of(pipe, image=picture()), full)
    states, negative_states = pipe.encode_prompt("a photo of person on the beach", lora_scale=0.5)
    pipe.set_adapters("style", 0.5)
    assert relative(latents_of(pipe, image=picture()), half) < CLOSE < relative(half, full)
    expected = pipe.encode_prompt("a photo of person on the beach")
    assert relative(states, expected[0]) < CLOSE and relative(negative_states, expected[1]) < CLOSE


def test_lora_scale_is_put_back_after_an_error(pipe, lora_file):
    pipe.load_lora_weights(lora_file(1, "text_encoder"))
    expected = pipe.encode_prompt("a dog")[0]
    with pytest.raises(KeyError), scaled_lora(pipe.text_encoder, 0.25):
        raise KeyError
    assert torch.equal(pipe.encode_prompt("a dog")[0], expected)


def test_lora_on_promptnet(pipe, tmp_path):
    peft = pytest.importorskip("peft")
    freeze(pipe)
    without = latents_of(pipe, image=picture())
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS["promptnet"], init_lora_weights=False)
    pipe.promptnet.add_adapter(config, adapter_name="face")
    full = latents_of(pipe, image=picture())
    assert relative(full, without) > 1e-4
    pipe.promptnet.save_lora_adapter(tmp_path, adapter_name="face")
    assert all("lora" in name for name in load_file(tmp_path / "pytorch_lora_weights.safetensors"))

    fresh = build()
    freeze(fresh)
    file = dict(weight_name="pytorch_lora_weights.safetensors", prefix=None)
    fresh.promptnet.load_lora_adapter(tmp_path, adapter_name="face", **file)
    assert torch.equal(latents_of(fresh, image=picture()), full)
    fresh.promptnet.set_adapters("face", 0.0)
    assert torch.equal(latents_of(fresh, image=picture()), without)
    fresh.promptnet.delete_adapters("face")
    assert torch.equal(latents_of(fresh, image=picture()), without)


@pytest.mark.parametrize(
    ("words", "token"), [("hat", "<thing>"), ("red hat", "<thing>")], ids=["one vector", "two vectors"]
)
def test_textual_inversion_beside_s(pipe, words, token):
    """A token with the vectors of known words is those words, before S*, after it and in the other prompts."""
    known = pipe.tokenizer(words, add_special_tokens=False).input_ids
    text_model = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    vectors = text_model.embeddings.token_embedding.weight[known].detach().clone()
    prompts = ["a {} on S*", "S* with a {}"]
    settings = dict(image=picture(), class_noun=["dog", "{}"], negative_prompt="blue {}")

    def fill(value, thing):
        return [fill(v, thing) for v in value] if isinstance(value, list) else value.format(thing)

    def draw(thing):
        texts = {name: fill(settings[name], thing) for name in ("class_noun", "negative_prompt")}
        return latents_of(pipe, fill(prompts, thing), **settings | texts)

    expected = draw(words)
    pipe.load_textual_inversion(vectors, token=token)
    assert relative(draw(token), expected) < CLOSE
    assert relative(draw("blue dog"), expected) > 1e-4


# ---------------------------------------------------------------------------------------- attention, memory, precision


def test_freeu(pipe):
    without = latents_of(pipe, image=picture())
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert relative(latents_of(pipe, image=picture()), without) > 1e-3
    pipe.disable_freeu()
    assert torch.equal(latents_of(pipe, image=picture()), without)


def test_fused_qkv(pipe):
    without = pictures_of(pipe)
    pipe.fuse_qkv_projections()
    pipe.promptnet.fuse_qkv_projections()
    for model in (pipe.unet, pipe.promptnet):
        assert {type(processor).__name__ for processor in model.attn_processors.values()} == {"FusedAttnProcessor2_0"}
    np.testing.assert_allclose(pictures_of(pipe), without, atol=1e-5)
    pipe.unfuse_qkv_projections()
    pipe.promptnet.unfuse_qkv_projections()
    assert np.array_equal(pictures_of(pipe), without)


def test_attention_slicing(pipe):
    without = pictures_of(pipe)
    pipe.enable_attention_slicing(1)
    for model in (pipe.unet, pipe.promptnet):
        assert {type(processor).__name__ for processor in model.attn_processors.values()} == {"SlicedAttnProcessor"}
    np.testing.assert_allclose(pictures_of(pipe), without, atol=1e-5)
    pipe.disable_attention_slicing()
    np.testing.assert_allclose(pictures_of(pipe), without, atol=1e-5)


def test_vae_slicing(pipe):
    without = pictures_of(pipe, num_images_per_prompt=2)
    pipe.vae.enable_slicing()
    rows = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    np.testing.assert_allclose(pictures_of(pipe, num_images_per_prompt=2), without, atol=1e-5)
    assert rows == [1, 1, 1, 1]


def test_vae_tiling(pipe):
    small, large = pictures_of(pipe), pictures_of(pipe, height=64, width=64)
    pipe.vae.enable_tiling()
    assert np.array_equal(pictures_of(pipe), small)  # one tile
    sides = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: sides.append(max(args[0].shape[-2:])))
    tiled = pictures_of(pipe, height=64, width=64)
    assert max(sides) == 8 < 32
    # Every tile has its own statistics in the group norms, as in diffusers: alike, not equal.
    assert np.abs(tiled - large).mean() < 0.1


def tiny_autoencoder():
    widths = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    return AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


def asymmetric_autoencoder():
    down = dict(down_block_types=("DownEncoderBlock2D",) * 2, down_block_out_channels=(8, 16))
    up = dict(up_block_types=("UpDecoderBlock2D",) * 2, up_block_out_channels=(8, 16))
    return AsymmetricAutoencoderKL(**down, **up, norm_num_groups=4)


@pytest.mark.parametrize("make", [tiny_autoencoder, asymmetric_autoencoder])
def test_other_autoencoders(pipe, make):
    """The reference goes in as that autoencoder has it, without drawing, and the picture comes out of it."""
    pipe.vae = make().eval()
    pictures = pictures_of(pipe)
    assert pictures.shape == (2, PICTURE_SIDE, PICTURE_SIDE, 3) and np.isfinite(pictures).all()
    subjects = [pipe.encode_subject(picture(1)) for _ in range(2)]
    assert torch.equal(subjects[0].latents, subjects[1].latents)


@pytest.mark.skipif(is_xformers_available(), reason="xFormers is installed")
def test_xformers_is_named_where_it_is_missing(pipe):
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        pipe.enable_xformers_memory_efficient_attention()


@on_gpu
@pytest.mark.skipif(not is_xformers_available(), reason="needs xFormers: pip install .[xformers]")
def test_xformers_on_a_gpu(pipe):
    pipe.to("cuda")
    without = pictures_of(pipe)
    pipe.enable_xformers_memory_efficient_attention()
    names = {type(processor).__name__ for processor in pipe.promptnet.attn_processors.values()}
    assert names == {"XFormersAttnProcessor"}
    np.testing.assert_allclose(pictures_of(pipe), without, atol=1e-3)


def test_layerwise_casting(pipe):
    """Stored in 8 bits, computed in 32: as if the same weights had been rounded to 8 bits beforehand."""
    rounded = build()
    for name in ("unet", "promptnet"):
        model = getattr(pipe, name)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        small = {key for key, weight in model.state_dict().items() if weight.dtype == torch.float8_e4m3fn}
        weights = getattr(rounded, name).state_dict()
        assert sum(weights[key].numel() for key in small) > 0.8 * sum(weight.numel() for weight in weights.values())
        for key in small:
            weights[key].copy_(weights[key].to(torch.float8_e4m3fn))
    assert np.array_equal(pictures_of(pipe), pictures_of(rounded))
    assert not np.array_equal(pictures_of(pipe), pictures_of(build()))


def test_channels_last(pipe):
    without = pictures_of(pipe)
    for name in ("unet", "vae", "promptnet"):
        getattr(pipe, name).to(memory_format=torch.channels_last)
    assert pipe.promptnet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(pictures_of(pipe), without, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(pipe, dtype):
    expected = latents_of(pipe, image=picture(), num_inference_steps=1)
    pipe.to(dtype)
    latents = latents_of(pipe, image=picture(), num_inference_steps=1)
    assert latents.dtype == dtype
    # The initial noise is drawn in the pipeline's dtype, so it agrees to that dtype's precision.
    assert relative(latents.float(), expected) < rounding(dtype)
    assert np.isfinite(pictures_of(pipe)).all()


# ---------------------------------------------------------------------------------------- off-loading


def test_model_offload_moves_no_model_back_and_forth(pipe):
    """Its hooks, with the CPU as the accelerator: from the first step to the last the UNet is not asked to leave."""
    pytest.importorskip("accelerate")
    without = pictures_of(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    in_sequence = {"encoder": pipe.vae.encoder, "image_encoder": pipe.image_encoder, "unet": pipe.unet}
    runs = []

    def record(name):
        return lambda module, args: runs.append(name) if runs[-1:] != [name] else None

    for name, model in {**in_sequence, "decoder": pipe.vae.decoder}.items():
        model.register_forward_pre_hook(record(name))
    for _ in range(2):  # the hooks are put back after a call
        assert all(hasattr(getattr(pipe, name), "_hf_hook") for name in MODELS)
        assert np.array_equal(pictures_of(pipe), without)
        assert runs == ["encoder", "image_encoder"] * 2 + ["unet", "decoder"]
        runs.clear()


def test_sequential_offload_to_the_bit(pipe):
    accelerate = pytest.importorskip("accelerate")
    without = pictures_of(pipe)
    for name in MODELS:  # what `enable_sequential_cpu_offload` does, which insists on an accelerator
        accelerate.cpu_offload(getattr(pipe, name), torch.device("cpu"), offload_buffers=True)
    for _ in range(2):  # also when a call has been before
        assert {getattr(pipe, name).device.type for name in MODELS} == {"meta"}
        assert np.array_equal(pictures_of(pipe), without)
    subject = pipe.encode_subject(picture(1))
    prompt_embeds, _ = pipe.encode_prompt("a person")
    assert subject.latents.device.type == prompt_embeds.device.type == "cpu"
    pipe.remove_all_hooks()
    assert pipe.text_encoder.device.type == "cpu"
    assert np.array_equal(pictures_of(pipe), without)


@needs_group_offloading
@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offload(pipe, offload_type, tmp_path):
    """On disk between uses: what is not fetched is empty. Where it lies in memory then can change the last bits."""
    without = pictures_of(pipe)
    for name in MODELS:
        apply_group_offloading(
            getattr(pipe, name),
            onload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path / name),
        )
        assert list((tmp_path / name).glob("*.safetensors"))
    for _ in range(2):
        np.testing.assert_allclose(pictures_of(pipe), without, atol=CLOSE)


@on_gpu
@pytest.mark.parametrize("mode", ["model", "sequential", "group"])
def test_offload_on_a_gpu(pipe, mode):
    pytest.importorskip("accelerate")
    pipe.to("cuda")
    without = pictures_of(pipe)
    pipe.to("cpu")
    if mode == "model":
        pipe.enable_model_cpu_offload()
    elif mode == "sequential":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.enable_group_offload(onload_device=torch.device("cuda"), offload_type="leaf_level")
    for _ in range(2):
        np.testing.assert_allclose(pictures_of(pipe), without, atol=1e-4)
    assert {next(getattr(pipe, name).parameters()).device.type for name in MODELS} <= {"cpu", "meta"}


# ---------------------------------------------------------------------------------------- compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_compiled_without_breaks_and_without_recompiling(pipe):
    """One graph for each model, in which nothing breaks; after a first call nothing is compiled again."""
    torch.compiler.reset()
    settings = dict(image=picture(), generator=None, latents=torch.zeros(1, 4, 8, 8), output_type="np")
    expected = latents_of(pipe, num_fusion_steps=0, **settings)
    pipe.unet.compile(backend="eager", fullgraph=True)
    pipe.promptnet.compile(backend="eager", fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager", fullgraph=True)
    pipe.vae.encode = torch.compile(pipe.vae.encode, backend="eager", fullgraph=True)
    latents_of(pipe, num_inference_steps=1, **settings)  # both stages: two and three rows
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = latents_of(pipe, num_fusion_steps=0, **settings)
        latents_of(pipe, num_inference_steps=4, num_fusion_steps=2, **settings)
    np.testing.assert_allclose(compiled, expected, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]


# ---------------------------------------------------------------------------------------- parts given or left out


def test_texts_encoded_beforehand(pipe):
    """`encode_prompt` needs the text encoder and nothing else; what it gives is what the call makes itself."""
    components = pipe.components
    alone = dict.fromkeys(components) | {name: components[name] for name in ("tokenizer", "text_encoder")}
    texts = dict(prompt=["a dog", "a red hat"], negative_prompt="blue")
    prompt_embeds, negative_prompt_embeds = ProFusionPipeline(**alone).encode_prompt(**texts)
    assert np.array_equal(
        pictures_of(pipe, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds),
        pictures_of(pipe, class_prompt=texts["prompt"], negative_prompt="blue"),
    )
    with pytest.raises(ValueError, match=r"`prompt` must not hold the placeholder 'S\*', got 'a S\*'"):
        pipe.encode_prompt(["a dog", "a S*"])


def test_a_saved_subject_needs_no_image_encoder(pipe, tmp_path):
    expected = latents_of(pipe, image=picture(1))
    pipe.encode_subject(picture(1)).save(tmp_path / "ada.safetensors")
    without = build(image_encoder=None, feature_extractor=None)
    assert torch.equal(latents_of(without, subject=SubjectEmbedding.load(tmp_path / "ada.safetensors")), expected)


def test_optional_parts_stay_away_when_loaded(tmp_path):
    without = build(image_encoder=None, feature_extractor=None)
    without.save_pretrained(tmp_path)
    loaded = ProFusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.image_encoder, loaded.feature_extractor, loaded.safety_checker) == (None, None, None)
    subject = build().encode_subject(picture())
    assert torch.equal(latents_of(loaded, subject=subject), latents_of(without, subject=subject))


def safety_checker(strictness):
    """The checker of Stable Diffusion with one bad concept, whose score is the strictness."""
    small = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **small).to_dict()  # transformers 4 takes dictionaries only
    config = CLIPConfig(text_config=CLIPTextConfig(**small).to_dict(), vision_config=vision, projection_dim=24)
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.zeros_(checker.concept_embeds)
    torch.nn.init.zeros_(checker.special_care_embeds)
    torch.nn.init.constant_(checker.concept_embeds_weights, -strictness)
    return checker.eval()


def test_safety_checker_is_optional_and_heard(components):
    pipe = ProFusionPipeline(**components)
    output = pipe(PROMPT, image=picture(), num_inference_steps=1, generator=seeded())
    assert output.nsfw_content_detected is None
    for strictness, flagged in ((-1.0, False), (1.0, True)):
        components["safety_checker"] = safety_checker(strictness)
        strict = ProFusionPipeline(**components, requires_safety_checker=True)
        checked = strict(PROMPT, image=picture(), num_inference_steps=1, generator=seeded())
        assert checked.nsfw_content_detected == [flagged]
        expected = np.zeros_like(output.images[0]) if flagged else np.asarray(output.images[0])
        assert np.array_equal(np.asarray(checked.images[0]), expected)


def test_from_a_stable_diffusion_pipeline_and_back(components):
    """`from_pipe` shares the models, also those of a pipeline that was loaded with `safety_checker=None` alone."""
    base = StableDiffusionPipeline(
        **{name: components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        safety_checker=None,
        feature_extractor=None,
    )
    ours = {name: components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
    pipe = ProFusionPipeline.from_pipe(base, **ours)
    assert pipe.unet is base.unet and pipe.promptnet is components["promptnet"]
    assert torch.equal(latents_of(pipe, image=picture()), latents_of(build(), image=picture()))
    back = StableDiffusionPipeline.from_pipe(pipe, feature_extractor=None, image_encoder=None)
    assert back.unet is base.unet
    assert isinstance(pipe.promptnet, PromptNet)
