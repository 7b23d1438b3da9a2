"""Rows of two texts that belong together: by hand, and in the fusion stage of a call."""

import pytest
import torch

from calls import CLOSE, PROMPT, latents_of, picture, relative, seeded
from profusion_pipeline.method import text_alignment
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.prompt_pieces import SubjectTokens, split_prompts, split_text
from profusion_pipeline.method.subject_prompt import token_ids, tokenize_subject_prompts

pytestmark = pytest.mark.numeric

S, NO_MIX = "S*", dict(fusion_text="scaled")


@pytest.mark.parametrize(
    ("tokens", "others", "partners"),
    [
        (["a", S, "b"], ["a", "x", "b"], [0, 1, 2]),
        (["a", S, "b"], ["a", "x", "y", "z", "b"], [0, 3, 4]),
        (["a", S, S, S, "b"], ["a", "x", "y", "b"], [0, 1, 2, 2, 3]),
        ([S, "b"], ["b"], [-1, 0]),
        (["a", S], ["a"], [0, 0]),
        (["a", S, "a"], ["a", "a"], [0, 0, 1]),
        ([S], ["x"], [0]),
        (["p", "q", S, "b"], ["r", "s", "t", "b"], [0, 1, 2, 3]),
        ([S], [], [-1]),
    ],
)
def test_partners_of_tokens(tokens, others, partners):
    assert text_alignment.match_tokens(tokens, others) == partners


def tokens_and_class(pipe, prompt, noun, *, long, count=1):
    """Tokens of a prompt, and of its class prompt as it is encoded, in as many pieces."""
    words = dict(placeholder=S, num_subject_tokens=count)
    text = prompt.replace(S, noun)
    if long:
        tokens = split_prompts(pipe.tokenizer, [prompt], **words, at_least=len(split_text(pipe.tokenizer, text)))
    else:
        tokens = SubjectTokens(*tokenize_subject_prompts(pipe.tokenizer, [prompt], **words, name_what_is_cut=False))
    return tokens, text, text_alignment.align_prompts(pipe.tokenizer, [prompt], [text], tokens, **words)[0].tolist()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("noun", ["dog", "red hat", "a smiling person in blue"])
def test_equal_tokens_are_partners_and_so_is_what_frames_them(pipe, noun, count):
    tokens, text, partners = tokens_and_class(pipe, PROMPT, noun, long=False, count=count)
    ids = [pipe.tokenizer.bos_token_id, *token_ids(pipe.tokenizer, text), pipe.tokenizer.eos_token_id]
    own, place = tokens.input_ids[0].tolist(), tokens.positions.item()
    end = own.index(pipe.tokenizer.eos_token_id)
    for here in [*range(place), *range(place + count, end + 1)]:
        assert own[here] == ids[partners[here]]
    nouns = len(token_ids(pipe.tokenizer, noun))
    expected = [place + nouns - count + i if nouns >= count else place + min(i, nouns - 1) for i in range(count)]
    assert partners[place : place + count] == expected
    assert partners[end:] == [min(len(ids) - 1 + i, 76) for i in range(77 - end)]


@pytest.mark.parametrize("long", [False, True])
def test_partners_in_prompts_that_are_cut_or_in_pieces(pipe, long):
    """A noun of three tokens pushes some beyond the end of the piece; without pieces they are left out."""
    numbers = " ".join(str(i % 10) for i in range(100))
    tokens, text, partners = tokens_and_class(pipe, f"S* {numbers}", "dog and man", long=long)
    ids = token_ids(pipe.tokenizer, text)
    own = tokens.input_ids if tokens.pieces is None else tokens.pieces[0]
    assert len(partners) == own.numel() == (154 if long else 77)
    if long:
        assert partners[1] == 3 and partners[2:73] == list(range(4, 75))
        assert partners[74:76] == [78, 79]  # the last of the first piece are in the second one there
    else:
        assert partners[1] == 3 and partners[2:75] == [*range(4, 76), 76]
        assert partners[75:] == [76, 76]
    assert len(ids) == 103


def test_mixing_is_exact_at_both_ends():
    states, class_states = torch.randn(2, 2, 6, 4)
    partners = torch.tensor([[0, 2, 2, 3, 5, 5]] * 2)
    assert torch.equal(text_alignment.mix(states, class_states, partners, 1.0), states)
    assert torch.equal(text_alignment.mix(states, class_states, partners, 0.0), class_states[:, partners[0]])
    between = text_alignment.mix(states, class_states, partners, 0.3)
    torch.testing.assert_close(between, 0.7 * class_states[:, partners[0]] + 0.3 * states)


def test_at_full_strength_both_texts_are_the_same(pipe):
    settings = dict(image=picture(), fusion_subject_scale=1.0)
    assert torch.equal(latents_of(pipe, **settings, fusion_text="mixed"), latents_of(pipe, **settings))


def test_at_no_strength_fusion_hears_the_class_prompt_alone(pipe):
    """With a noun of one token, as S* is: the fusion stage is that of \u03b5_C, whoever S* is."""
    settings = dict(fusion_text="mixed", fusion_subject_scale=0.0, guidance_scale=0.0, class_noun="dog")
    first = latents_of(pipe, image=picture(), **settings)
    assert torch.equal(first, latents_of(pipe, image=picture(5), **settings))
    assert relative(first, latents_of(pipe, image=picture(), **settings | dict(class_noun="woman"))) > 1e-4
    louder = settings | dict(fusion_subject_scale=0.5)
    assert relative(latents_of(pipe, image=picture(), **louder), latents_of(pipe, image=picture(5), **louder)) > 1e-5


def test_a_batch_with_references_and_long_prompts_is_its_pictures_one_by_one(pipe):
    settings = dict(fusion_text="mixed", long_prompts=True, num_inference_steps=2)
    prompts, nouns = ["a photo of S*", "hat " * 80 + "S* on the beach"], ["a red dog", "man"]
    images = [[picture(1), picture(2)], picture(3)]
    generators = [seeded(i) for i in range(4)]
    batch = latents_of(
        pipe, prompts, image=images, class_noun=nouns, num_images_per_prompt=2, generator=generators, **settings
    )
    alone = latents_of(pipe, prompts[1], image=images[1], class_noun=nouns[1], generator=seeded(3), **settings)
    assert relative(batch[3:], alone) < CLOSE


def test_a_callback_that_changes_the_class_prompt_changes_the_mixture(pipe):
    dog, _ = pipe.encode_prompt("a photo of dog on the beach")

    def swap(pipe, i, t, tensors):
        return dict(prompt_embeds=dog)

    settings = dict(image=picture(), fusion_text="mixed", class_guidance_scale=0.0, num_inference_steps=2)
    changed = latents_of(pipe, **settings, callback_on_step_end=swap)
    assert relative(changed, latents_of(pipe, **settings)) > 1e-6


def test_learnt_words_are_mixed_too(pipe):
    """At \u03b3 = 0 the fusion stage hears the class prompt, whatever the words; at 1 the words, as ever."""
    settings = dict(fusion_text="mixed", guidance_scale=0.0, num_inference_steps=2)
    dog, man = (LearntSubject(words, class_noun="person") for words in ("red dog", "smiling man"))
    none = [latents_of(pipe, subject=who, **settings, fusion_subject_scale=0.0) for who in (dog, man)]
    assert torch.equal(*none)
    full = dict(subject=dog, fusion_subject_scale=1.0)
    assert torch.equal(latents_of(pipe, **full, **settings), latents_of(pipe, **full, **settings | NO_MIX))
    half = [latents_of(pipe, subject=who, **settings, fusion_subject_scale=0.5) for who in (dog, man)]
    assert relative(*half) > 1e-4
