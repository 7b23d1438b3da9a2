import pytest
import torch

from profusion_pipeline.method.subject_prompt import (
    encode_subject_prompts,
    find_placeholder,
    scale_subject_rows,
    tokenize_subject_prompts,
)
from tiny import TEXT_WIDTH, make_components

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def text():
    components = make_components()
    return components["tokenizer"], components["text_encoder"].requires_grad_(False)


def tokenize(tokenizer, *prompts, num_subject_tokens=1, **settings):
    return tokenize_subject_prompts(
        tokenizer, list(prompts), placeholder="S*", num_subject_tokens=num_subject_tokens, **settings
    )


def embeddings_of(text_encoder):
    return getattr(text_encoder, "text_model", text_encoder).embeddings


def test_find_placeholder():
    assert find_placeholder("a photo of S*, smiling", "S*") == ("a photo of ", ", smiling")


@pytest.mark.parametrize(("prompt", "count"), [("a photo of s*", 0), ("", 0), ("S* and S*", 2)])
def test_placeholder_stands_once(prompt, count):
    with pytest.raises(ValueError, match=rf"must hold the placeholder 'S\*' exactly once.*, got it {count} times"):
        find_placeholder(prompt, "S*")


@pytest.mark.parametrize("prompt", ["a photo of {}", "{} on the beach", "a hat, {} in the style of a dog!"])
def test_one_place_is_one_ordinary_word(text, prompt):
    """Apart from the reserved place the ids are those of the prompt with a one-token word in place of S*."""
    tokenizer, _ = text
    ids, positions = tokenize(tokenizer, prompt.format("S*"))
    ordinary = tokenizer(
        prompt.format("person"), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    person = tokenizer("person", add_special_tokens=False).input_ids
    assert ordinary[0, positions[0]] == person[0]
    ids[0, positions[0]] = person[0]
    assert torch.equal(ids, ordinary)


def test_several_places_push_the_rest_back(text):
    tokenizer, _ = text
    one, positions = tokenize(tokenizer, "a photo of S* on the beach")
    four, same_positions = tokenize(tokenizer, "a photo of S* on the beach", num_subject_tokens=4)
    assert positions.tolist() == same_positions.tolist() == [4]
    assert torch.equal(four[:, 4 + 4 :], one[:, 4 + 1 : 77 - 3])


def test_without_padding_nothing_follows_the_end(text):
    tokenizer, _ = text
    ids, _ = tokenize(tokenizer, "a photo of S*", pad=False)
    assert ids.shape == (1, 6) and ids[0, -1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"Prompts of \[6, 7\] tokens"):
        tokenize(tokenizer, "a photo of S*", "a photo of S* smiling", pad=False)


def test_a_long_suffix_is_cut_before_the_end_token(text):
    tokenizer, _ = text
    ids, _ = tokenize(tokenizer, "S* " + "dog " * 100)
    assert ids.shape == (1, 77) and ids[0, -1] == tokenizer.eos_token_id


@pytest.mark.parametrize(("words", "num_subject_tokens"), [(75, 1), (72, 4), (100, 1)])
def test_placeholder_beyond_the_last_position(text, words, num_subject_tokens):
    tokenizer, _ = text
    with pytest.raises(ValueError, match=rf"at token {words + 1} with {num_subject_tokens} positions"):
        tokenize(tokenizer, "dog " * words + "S*", num_subject_tokens=num_subject_tokens)
    if words < 77:
        ids, positions = tokenize(tokenizer, "dog " * (words - 1) + "S*", num_subject_tokens=num_subject_tokens)
        assert positions[0] + num_subject_tokens == 76 and ids[0, 76] == tokenizer.eos_token_id


def test_subject_equal_to_a_word_gives_the_words_states(text):
    """S* = token + position embedding of a word makes the states of the prompt with that word."""
    tokenizer, text_encoder = text
    ids, positions = tokenize(tokenizer, "a photo of S* on the beach", "S* smiling")
    person = tokenizer("person", add_special_tokens=False).input_ids[0]
    embeddings = embeddings_of(text_encoder)
    rows = embeddings.token_embedding.weight[person] + embeddings.position_embedding.weight[positions]
    states = encode_subject_prompts(text_encoder, ids, positions, rows[:, None])
    ids[torch.arange(2), positions] = person
    torch.testing.assert_close(states, text_encoder(ids).last_hidden_state, rtol=0, atol=0)


def test_encoding_leaves_no_trace_in_the_text_encoder(text):
    tokenizer, text_encoder = text
    ids, positions = tokenize(tokenizer, "a photo of S*")
    before = text_encoder(ids).last_hidden_state
    encode_subject_prompts(text_encoder, ids, positions, torch.randn(1, 1, TEXT_WIDTH))
    assert torch.equal(text_encoder(ids).last_hidden_state, before)
    with pytest.raises(RuntimeError):
        encode_subject_prompts(text_encoder, ids, positions, torch.randn(1, 78, TEXT_WIDTH))
    assert torch.equal(text_encoder(ids).last_hidden_state, before)


def test_gradients_reach_the_subject_and_causality_holds(text):
    tokenizer, text_encoder = text
    ids, positions = tokenize(tokenizer, "a photo of S* on the beach", num_subject_tokens=2)
    subject = torch.randn(1, 2, TEXT_WIDTH, requires_grad=True)
    states = encode_subject_prompts(text_encoder, ids, positions, subject)
    (gradient,) = torch.autograd.grad(states[0, 4].square().sum(), subject, retain_graph=True)
    assert gradient[0, 0].abs().max() > 0 and gradient[0, 1].abs().max() == 0
    (gradient,) = torch.autograd.grad(states[0, :4].sum(), subject, allow_unused=True)
    assert gradient is None or gradient.abs().max() == 0


def test_subject_of_another_width(text):
    tokenizer, text_encoder = text
    ids, positions = tokenize(tokenizer, "a photo of S*")
    with pytest.raises(ValueError, match="are 7 wide, but the text encoder has a width of 32"):
        encode_subject_prompts(text_encoder, ids, positions, torch.randn(1, 1, 7))


def test_scale_touches_the_rows_of_the_subject_only():
    states, positions = torch.randn(2, 9, 5), torch.tensor([1, 4])
    scaled = scale_subject_rows(states, positions, 3, 0.6)
    expected = states.clone()
    expected[0, 1:4] *= 0.6
    expected[1, 4:7] *= 0.6
    assert torch.equal(scaled, expected)
