import numpy as np
import pytest
import torch
from PIL import Image

from profusion_pipeline.method.shared_models import in_use
from profusion_pipeline.notebook.explain import attention_to_tokens, data_image, explain, nearest_words

PHOTO = Image.new("RGB", (16, 16), "orange")
PROMPT = "a photo of S* on the beach"


def test_the_picture_is_that_of_the_call_and_the_models_are_as_before(pipe):
    before = [len(module._forward_hooks) for model in (pipe.unet, pipe.promptnet) for module in model.modules()]
    seen = explain(pipe, PHOTO, PROMPT, seed=3, num_inference_steps=3)
    call = dict(image=PHOTO, num_inference_steps=3, num_fusion_steps=0, generator=torch.Generator().manual_seed(3))
    assert seen.picture.tobytes() == pipe(PROMPT, **call).images[0].tobytes()
    assert before == [len(module._forward_hooks) for model in (pipe.unet, pipe.promptnet) for module in model.modules()]
    assert seen.timesteps == [int(t) for t in pipe.scheduler.timesteps]
    assert list(seen.maps) == ["S*", "photo", "the", "beach"]


def test_words_and_norms_are_those_of_promptnet(pipe):
    words = []
    hook = pipe.promptnet.register_forward_hook(lambda module, args, output: words.append(output[0]))
    seen = explain(pipe, PHOTO, PROMPT, num_inference_steps=2)
    hook.remove()
    assert seen.norms == pytest.approx([float(one[0].norm(dim=-1).mean()) for one in words])


def test_maps_are_what_diffusers_computes(pipe):
    """Against the attention scores of diffusers' own processor, in the row of S*."""
    scores = []

    class Processor:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            probabilities = attn.get_attention_scores(query, key)  # [rows x heads, N, T]
            scores.append(probabilities.unflatten(0, (len(hidden_states), -1))[-1].mean(0))
            value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
            return attn.to_out[0](attn.batch_to_head_dim(probabilities @ value))

    seen = explain(pipe, PHOTO, PROMPT, num_inference_steps=1)
    own = pipe.unet.attn_processors
    pipe.unet.set_attn_processor({name: Processor() if "attn2" in name else one for name, one in own.items()})
    call = dict(image=PHOTO, num_inference_steps=1, num_fusion_steps=0, generator=torch.Generator().manual_seed(0))
    pipe(PROMPT, **call)
    at = 4  # begin, a, photo, of, S*
    grids = [one[:, at].reshape(1, 1, int(len(one) ** 0.5), -1) for one in scores]
    large = [torch.nn.functional.interpolate(one, (8, 8), mode="bilinear", align_corners=False) for one in grids]
    torch.testing.assert_close(torch.tensor(seen.maps["S*"]), torch.cat(large).mean(0)[0], rtol=1e-4, atol=1e-6)


def test_shares_sum_to_one():
    query, key = torch.randn(6, 8), torch.randn(5, 8)
    shares = attention_to_tokens(query, key, 2, 0.5)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    by_hand = (0.5 * query[:, :4] @ key[:, :4].T).softmax(1) / 2 + (0.5 * query[:, 4:] @ key[:, 4:].T).softmax(1) / 2
    torch.testing.assert_close(shares, by_hand)


def test_a_word_is_nearest_to_itself(pipe):
    table = pipe.text_encoder.get_input_embeddings().weight
    (token,) = pipe.tokenizer("beach", add_special_tokens=False).input_ids
    words = nearest_words(3 * table[token], table, pipe.tokenizer)
    assert words[0] == ("beach", pytest.approx(1.0))
    assert len(words) == 5 and sorted((cosine for _, cosine in words), reverse=True) == [c for _, c in words]


def test_what_a_notebook_shows(pipe):
    seen = explain(pipe, PHOTO, "a photo of S*, <blue>", num_inference_steps=2)
    assert len(repr(seen)) <= 300
    assert seen._repr_html_().startswith(data_image(seen._repr_png_()))
    assert "<table>" in seen._repr_html_()
    assert seen.overlays.columns == ["the picture", "S*", "photo", "blue"]
    dark, bright = (np.asarray(seen.overlays.pictures[0][column]).mean() for column in (1, 0))
    assert dark < bright


def test_a_subject_in_place_of_a_photo(pipe):
    subject = pipe.encode_subject([PHOTO, Image.new("RGB", (16, 16), "navy")])
    assert explain(pipe, None, PROMPT, subject=subject, num_inference_steps=1).norms


@pytest.mark.parametrize("call", [dict(num_fusion_steps=1), dict(guidance_scale=0)])
def test_what_hides_the_subject_is_refused(pipe, call):
    with pytest.raises(ValueError, match="`num_fusion_steps` must be 0 and `guidance_scale` above 0"):
        explain(pipe, PHOTO, PROMPT, **call)


@pytest.mark.parametrize(
    ("prompt", "seed", "error", "match"),
    [
        (PROMPT, 2**64, ValueError, "`seed` must be at most 18446744073709551615"),
        (PROMPT, 0.5, TypeError, "`seed` must be a whole number, got 0.5"),
        ([PROMPT], 0, TypeError, "`prompt` must be one text, got "),
    ],
)
def test_seeds_and_prompts_that_are_none(pipe, prompt, seed, error, match):
    with pytest.raises(error, match=match):
        explain(pipe, PHOTO, prompt, seed=seed)


def test_a_prompt_without_placeholder(pipe):
    with pytest.raises(ValueError, match="must hold the placeholder"):
        explain(pipe, PHOTO, "a photo")


def test_two_at_a_time_are_refused(pipe):
    with (
        in_use([pipe.unet], to_change=True, advice="wait"),
        pytest.raises(RuntimeError, match="explain while no other"),
    ):
        explain(pipe, PHOTO, PROMPT)
