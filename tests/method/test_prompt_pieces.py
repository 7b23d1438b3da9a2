"""Long prompts in pieces: each is encoded as a whole prompt is, and their states stand side by side."""

import pytest
import torch

from calls import count_work, latents_of, picture, relative
from profusion_pipeline.method.prompt_pieces import pad_pieces, put_piece, split, split_prompts, split_text
from profusion_pipeline.method.subject_prompt import encode_subject_prompts, encode_texts
from tiny import TEXT_WIDTH, make_tokenizer

pytestmark = pytest.mark.numeric

DOGS = " ".join(["dog"] * 75)


@pytest.mark.parametrize(
    ("count", "together", "lengths"),
    [(0, range(0), [0]), (5, range(0), [5]), (6, range(0), [6]), (7, range(0), [6, 1]), (13, range(5, 8), [5, 6, 2])],
)
def test_pieces_are_full_but_where_s_would_be_parted(count, together, lengths):
    pieces = split(range(count), 6, together)
    assert [len(piece) for piece in pieces] == lengths
    assert [token for piece in pieces for token in piece] == list(range(count))


def test_s_is_found_in_its_piece():
    tokenizer = make_tokenizer()
    prompts = ["a photo of S*", f"{DOGS} S* and the dog", f"{DOGS} {DOGS} S*"]
    tokens = split_prompts(tokenizer, prompts, placeholder="S*", num_subject_tokens=2)
    assert tokens.pieces.shape == (3, 3, 77) and tokens.piece.tolist() == [0, 1, 2]
    assert tokens.positions.tolist() == [4, 1, 1]
    assert torch.equal(tokens.input_ids, tokens.pieces[torch.arange(3), tokens.piece])
    ids = tokenizer("and the dog").input_ids
    assert tokens.input_ids[1, 3 : 2 + len(ids)].tolist() == ids[1:]  # behind begin and the two places
    assert (
        split_prompts(tokenizer, prompts[:1], placeholder="S*", num_subject_tokens=1, at_least=2).pieces.shape[1] == 2
    )


def test_a_piece_is_put_in_its_place():
    around, states = torch.randn(2, 3, 5, 4), torch.randn(2, 5, 4)
    whole = put_piece(around, torch.tensor([2, 0]), states)
    assert torch.equal(whole[0], torch.cat([around[0, 0], around[0, 1], states[0]]))
    assert torch.equal(whole[1], torch.cat([states[1], around[1, 1], around[1, 2]]))


@torch.no_grad()
def test_the_states_of_a_long_prompt_are_those_of_its_pieces(pipe):
    """What compel gives: each piece encoded as a prompt of its own."""
    pieces = [f"{DOGS}", "a red hat"]
    prompt_embeds, negative_prompt_embeds = pipe.encode_prompt(" ".join(pieces), "blue", long_prompts=True)
    alone = encode_texts(pipe.text_encoder, pipe.tokenizer, pieces, device="cpu")  # [2, T, D]
    assert relative(prompt_embeds[0], alone.flatten(0, 1)) < 1e-5
    short = encode_texts(pipe.text_encoder, pipe.tokenizer, ["blue", ""], device="cpu")
    assert relative(negative_prompt_embeds[0], short.flatten(0, 1)) < 1e-5


@torch.no_grad()
def test_s_in_the_second_piece(pipe):
    """One step of S* alone, written out."""
    prompt, x = f"{DOGS} S* on the beach", torch.randn(1, 4, 8, 8)
    subject = pipe.encode_subject(picture())
    pipe.scheduler.set_timesteps(1)
    t = pipe.scheduler.timesteps[0]
    words = pipe.promptnet(subject.latents, t, subject.image_states, x).prompt_embeds
    first = encode_texts(pipe.text_encoder, pipe.tokenizer, [DOGS], device="cpu")
    ids = pad_pieces(pipe.tokenizer, [[pipe.tokenizer.bos_token_id, *split_text(pipe.tokenizer, "on the beach")[0]]], 1)
    second = encode_subject_prompts(pipe.text_encoder, ids, torch.tensor([1]), words)
    output = pipe.unet(x, t, torch.cat([first, second], dim=1)).sample
    expected = pipe.scheduler.step(output, t, x).prev_sample
    alone = dict(guidance_scale=1.0, class_guidance_scale=0.0, num_fusion_steps=0, num_inference_steps=1)
    found = latents_of(pipe, prompt, subject=subject, latents=x, long_prompts=True, **alone)
    assert relative(found, expected) < 1e-5


def test_words_at_the_end_count_where_they_are_read(pipe):
    def draw(end, **settings):
        return latents_of(pipe, f"S*, {DOGS}, {end}", image=picture(), num_inference_steps=2, **settings)

    assert torch.equal(draw("on the beach"), draw("in a red hat"))
    assert not torch.equal(draw("on the beach", long_prompts=True), draw("in a red hat", long_prompts=True))


def test_short_prompts_are_read_as_without(pipe):
    settings = dict(image=picture(), negative_prompt="blue", num_inference_steps=2)
    assert relative(latents_of(pipe, long_prompts=True, **settings), latents_of(pipe, **settings)) < 1e-5


def test_a_batch_of_long_and_short_prompts(pipe):
    """Several pictures and references; what doesn't change is encoded once."""
    counts, prompts = count_work(pipe), [f"{DOGS} S*", "S* on the beach"]
    settings = dict(long_prompts=True, num_images_per_prompt=2, num_inference_steps=2, num_fusion_steps=0)
    both = latents_of(pipe, prompts, image=[picture(), [picture(), picture(1)]], **settings)
    assert both.shape[0] == 4 and torch.isfinite(both).all()
    pieces, references, steps = 2, 2 * 1 + 2 * 2, 2
    assert counts["text_sequences"] == 3 * 2 * pieces + references * steps  # S*, C and ∅ of two prompts; then S* alone


def test_given_states_say_how_many_pieces_there_are(pipe):
    embeds = pipe.encode_prompt(f"{DOGS} a dog", "blue", long_prompts=True)
    given = dict(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], image=picture(), num_inference_steps=2)
    assert torch.isfinite(latents_of(pipe, "S*", long_prompts=True, **given)).all()
    with pytest.raises(ValueError, match=rf"`prompt_embeds` must have the shape \(1, 77, {TEXT_WIDTH}\), got \(1, 154"):
        latents_of(pipe, "S*", **given)
