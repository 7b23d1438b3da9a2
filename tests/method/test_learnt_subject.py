"""Words that others have taught a model, in place of S*: against diffusers, and against formulas by hand."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import profusion_pipeline
from calls import CLOSE, build, count_work, latents_of, picture, relative, seeded
from profusion_pipeline.method import learnt_subject
from profusion_pipeline.method.learnt_subject import LearntSubject
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from tiny import TEXT_WIDTH

pytestmark = pytest.mark.numeric
PROMPT = "a photo of S* on the beach"
HAT = LearntSubject("sks hat", class_noun="hat")
ALONE = dict(guidance_scale=5.0, class_guidance_scale=0.0, num_fusion_steps=0)  # the subject's row and nothing else


@pytest.fixture(scope="module")
def plain():
    """Stable Diffusion's parts alone; tests leave it as it is."""
    return build(promptnet=None)


def word(seed: int, vectors: int = 1) -> torch.Tensor:
    return torch.randn(vectors, TEXT_WIDTH, generator=seeded(seed)).squeeze(0)


def diffusers_of(pipe) -> StableDiffusionPipeline:
    base = StableDiffusionPipeline.from_pipe(pipe)
    base.set_progress_bar_config(disable=True)
    return base


def diffusers_latents(pipe, prompt, **settings):
    defaults = dict(num_inference_steps=3, output_type="latent", generator=seeded(), guidance_scale=5.0)
    return diffusers_of(pipe)(prompt, **defaults | settings).images


def test_the_public_name():
    assert profusion_pipeline.LearntSubject is LearntSubject is ProFusionPipeline.LearntSubject


@pytest.mark.parametrize("prompts", [PROMPT, [PROMPT, "S*s in red"]])
def test_alone_the_words_are_diffusers_prompt_to_the_bit(plain, prompts):
    texts = [text.replace("S*", "sks hat") for text in ([prompts] if isinstance(prompts, str) else prompts)]
    assert torch.equal(latents_of(plain, prompts, subject=HAT, **ALONE), diffusers_latents(plain, texts))


def test_without_weight_it_is_diffusers_class_prompt_to_the_bit(plain):
    settings = dict(guidance_scale=0.0, class_guidance_scale=5.0, num_fusion_steps=0)
    ours = latents_of(plain, PROMPT, subject=HAT, **settings)  # the subject's own class noun, not the call's
    assert torch.equal(ours, diffusers_latents(plain, "a photo of hat on the beach"))


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_textual_inversion(vectors):
    pipe = build(promptnet=None)
    pipe.load_textual_inversion({"<toy>": word(1, vectors)}, token="<toy>")
    toy = LearntSubject("<toy>", class_noun="hat")
    assert torch.equal(
        latents_of(pipe, PROMPT, subject=toy, **ALONE), diffusers_latents(pipe, "a photo of <toy> on the beach")
    )
    (learnt,) = pipe._learnt_prompts([PROMPT], [toy], False)
    assert learnt.tokens == range(3, 3 + vectors)
    pipe.unload_textual_inversion()
    assert learnt_subject.is_learnt(toy) and len(pipe._learnt_prompts([PROMPT], [toy], False)) == 1


def test_guidance_is_the_formula(plain):
    """One step of DDIM is affine in the prediction: every row's share can be had alone."""
    size = dict(num_inference_steps=1, num_fusion_steps=0)
    null = diffusers_latents(plain, "", num_inference_steps=1, guidance_scale=1.0)
    of_class = diffusers_latents(plain, "a photo of hat on the beach", num_inference_steps=1, guidance_scale=1.0)
    of_words = diffusers_latents(plain, "a photo of sks hat on the beach", num_inference_steps=1, guidance_scale=1.0)
    ours = latents_of(plain, PROMPT, subject=HAT, guidance_scale=3.0, class_guidance_scale=2.0, **size)
    expected = null + 3 * (of_words - null) + 2 * (of_class - null)
    assert relative(ours, expected) < 10 * CLOSE


def test_the_words_are_scaled_in_the_fusion_stage_only(plain, monkeypatch):
    seen = []
    original = plain.unet.forward
    monkeypatch.setattr(
        plain.unet,
        "forward",
        lambda *a, encoder_hidden_states, **k: (
            seen.append(encoder_hidden_states) or original(*a, encoder_hidden_states=encoder_hidden_states, **k)
        ),
    )
    latents_of(plain, PROMPT, subject=HAT, num_inference_steps=1, fusion_subject_scale=0.25, class_guidance_scale=2.0)
    fusion, refinement = seen
    (learnt,) = plain._learnt_prompts([PROMPT], [HAT], False)
    states = plain._encode_texts([learnt.text], 1.0).states[0]
    assert torch.equal(refinement[2], states)
    positions = [token + 1 for token in learnt.tokens]
    assert torch.equal(fusion[1][positions], 0.25 * states[positions])
    others = [i for i in range(77) if i not in positions]
    assert torch.equal(fusion[1][others], states[others])


def test_nothing_constant_is_in_the_loop():
    pipe = build(promptnet=None)
    counts = count_work(pipe)
    for steps in (1, 4):
        counts.update(dict.fromkeys(counts, 0))
        latents_of(pipe, [PROMPT] * 2, subject=HAT, num_inference_steps=steps, num_fusion_steps=1)
        assert counts["unet_rows"] == 2 * 5 * steps and counts["unet_calls"] == 2 * steps
        assert counts["text_sequences"] == 2 * 3


def test_two_kinds_of_subject_in_a_batch():
    pipe = build()
    pipe.load_textual_inversion({"<toy>": word(1)}, token="<toy>")
    subjects = [LearntSubject("<toy>", class_noun="hat"), pipe.encode_subject(picture()), HAT]
    prompts = [PROMPT, "S* in red", "a S*"]
    settings = dict(num_images_per_prompt=2, num_fusion_steps=1, class_noun="dog")
    counts = count_work(pipe)
    together = latents_of(pipe, prompts, subject=subjects, generator=[seeded(i) for i in range(6)], **settings)
    assert counts["promptnet_rows"] == 2 * 6 and counts["unet_calls"] == 6 and counts["unet_rows"] == 6 * 5 * 3
    for number, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
        generators = [seeded(2 * number + i) for i in range(2)]
        alone = latents_of(pipe, prompt, subject=subject, generator=generators, **settings)
        assert relative(together[2 * number : 2 * number + 2], alone) < 10 * CLOSE


def test_long_prompts(plain):
    """Pieces of the whole text with the words in it; beyond the first piece they are scaled all the same."""
    prompt = "a red hat " * 30 + "S*"
    ours = latents_of(plain, prompt, subject=HAT, long_prompts=True, **ALONE)
    embeds, negative = plain.encode_prompt(prompt.replace("S*", "sks hat"), long_prompts=True)
    theirs = diffusers_latents(plain, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert relative(ours, theirs) < CLOSE
    learnt = plain._learnt_prompts([prompt], [HAT], True)
    rows = plain._word_rows(learnt, 2, 1.0, 1)
    first, last = learnt[0].tokens.start, learnt[0].tokens.stop - 1
    assert rows.of_words.nonzero()[:, 1].tolist() == [77 + place - 75 + 1 for place in range(first, last + 1)]
    with pytest.raises(
        ValueError, match=r"`prompt` must hold the placeholder 'S\*' nearer .*, got 'sks hat' at tokens"
    ):
        latents_of(plain, prompt, subject=HAT, **ALONE)


def test_a_callback_may_wake_the_subject(plain):
    def wake(pipe, index, timestep, tensors):
        pipe._guidance_scale = 5.0

    settings = dict(guidance_scale=0.0, class_guidance_scale=2.0, num_fusion_steps=0)
    woken = latents_of(plain, PROMPT, subject=HAT, callback_on_step_end=wake, **settings)
    assert not torch.equal(woken, latents_of(plain, PROMPT, subject=HAT, **settings))


def test_an_image_encoder_of_words_is_never_asked(plain):
    assert np.isfinite(plain(PROMPT, subject=HAT, num_inference_steps=1, output_type="np").images).all()


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (dict(words=3, class_noun="dog"), TypeError, "`words` of a LearntSubject must be a text, got 3"),
        (dict(words="sks dog", class_noun=None), TypeError, "`class_noun` of a LearntSubject must be a text, got None"),
        (
            dict(words=" ", class_noun="dog"),
            ValueError,
            "`words` of a LearntSubject must have at least one sign, got ' '",
        ),
        (dict(words="sks", class_noun="\ud800"), ValueError, "`class_noun` must be a text without lone surrogates"),
        (dict(words="sks dog"), TypeError, "class_noun"),
    ],
)
def test_what_is_no_learnt_subject(given, error, sentence):
    with pytest.raises(error, match=sentence):
        LearntSubject(**given)


def test_words_that_hold_the_placeholder(plain):
    with pytest.raises(ValueError, match=r"`words` must not hold the placeholder 'S\*'"):
        latents_of(plain, PROMPT, subject=LearntSubject("S* dog", class_noun="dog"))


def test_a_word_that_nobody_loaded_is_named(plain, caplog):
    pipe = build(promptnet=None)
    pipe.load_textual_inversion({"<toy>": word(1)}, token="<toy>")
    for words, named in (("<cat>", True), ("<toy>", False), ("a < b", False)):
        caplog.clear()
        latents_of(pipe, [PROMPT] * 2, subject=LearntSubject(words, class_noun="cat"), num_inference_steps=1)
        records = [record.message for record in caplog.records if "no embedding of its own" in record.message]
        assert len(records) == named
        assert all("'<cat>'" in record and "Loaded: '<toy>'" in record for record in records)


def test_what_words_can_not_do(plain):
    with pytest.raises(ValueError, match="`strength` below 1 starts from a picture .*: give `init_image` or `latents`"):
        latents_of(plain, PROMPT, subject=HAT, strength=0.5)
    with pytest.raises(TypeError, match="`subject` must be a SubjectEmbedding or a LearntSubject, got int"):
        latents_of(plain, PROMPT, subject=3)
    with pytest.raises(ValueError, match="`image`"):
        latents_of(plain, PROMPT, subject=HAT, image=picture())
