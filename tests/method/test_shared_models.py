"""Several threads around the same models: each draws what it draws alone, or is told before any work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from calls import latents_of, picture, seeded
from concepts import PROMPTS, QUICK, learn, photo, sample, tiny_pipeline
from profusion_pipeline.customization.customize import customize, customizing
from profusion_pipeline.method import subject_prompt
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.shared_models import in_use

ADVICE = "wait"


def at_once(*functions):
    """What each gives; all begin together."""
    together = threading.Barrier(len(functions))

    def begin(function):
        together.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(begin, function) for function in functions]]


def fails(function) -> str:
    with pytest.raises(RuntimeError) as raised:
        function()
    return str(raised.value)


def test_who_may_meet_whom():
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)

    def enter(to_change, part=model):
        with in_use([part], to_change=to_change, advice=ADVICE):
            return True

    with ThreadPoolExecutor(1) as another:
        with in_use([model], to_change=False, advice=ADVICE):
            assert another.submit(enter, False).result() and another.submit(enter, True, other).result()
            assert (
                "The Linear is in use by another call or thread: wait."
                in another.submit(fails, lambda: enter(True)).result()
            )
            assert enter(True)  # what it computes with itself
        with in_use([model], to_change=True, advice=ADVICE):
            assert "in use" in another.submit(fails, lambda: enter(False)).result()
            assert enter(False)
            assert "in use" in fails(lambda: enter(True))
        assert another.submit(enter, True).result()


def test_clones_draw_at_the_same_time_what_each_draws_alone(pipe):
    pipes = [pipe, pipe.clone(), pipe.clone()]
    subjects = [pipe.encode_subject(picture(number)) for number in range(3)]
    prompts = ["a photo of S* on the beach", "S* and the dog", "a photo of S* on the beach"]

    def draw(number):
        settings = dict(subject=subjects[number], num_inference_steps=4, generator=seeded(number))
        return latents_of(pipes[number], prompts[number], **settings)

    alone = [draw(number) for number in range(3)]
    for _ in range(3):
        for found, expected in zip(at_once(*(lambda n=n: draw(n) for n in range(3))), alone, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("who", [("ada", "bob"), ("ada", "full"), ("full", None)])
def test_concepts_of_one_thread_are_not_seen_by_another(who):
    """Around the same UNet and PromptNet, one with a concept and one with another or a photo."""
    learnt, base = learn(), tiny_pipeline()
    pipes = [base.clone(), base.clone()]
    for pipe, name in zip(pipes, who, strict=True):
        if name:
            pipe.load_concept(learnt[name], name=name)

    def draw(number):
        return sample(pipes[number], **(dict(concept=who[number]) if who[number] else dict(image=photo())))

    alone = [draw(0), draw(1)]
    assert not torch.equal(*alone)
    for _ in range(3):
        found = at_once(lambda: draw(0), lambda: draw(1))
        assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])


def test_a_clone_has_the_concepts_at_their_scales():
    pipe = tiny_pipeline()
    pipe.load_concept(learn()["ada"], name="ada")
    pipe.set_concept_scale(0.3)
    other = pipe.clone()
    assert torch.equal(sample(other), sample(pipe))
    other.unload_concept()
    assert "ada" in pipe.concepts and len(sample(pipe)) == len(PROMPTS)


def test_one_pipeline_draws_one_call_at_a_time(pipe):
    """From a callback, from another thread, and with a scheduler that two pipelines share."""
    heard = []

    def again(pipe, i, t, tensors):
        heard.append(fails(lambda: latents_of(pipe, image=picture())))
        with ThreadPoolExecutor(1) as another:
            sharing = ProFusionPipeline.from_pipe(pipe)
            for one in (pipe, sharing):
                heard.append(another.submit(fails, lambda one=one: latents_of(one, image=picture())).result())
            heard.append(another.submit(fails, lambda: pipe.unload_concept()).result())

    latents_of(pipe, image=picture(), callback_on_step_end=again, num_inference_steps=1)
    assert all("is in use by another call or thread" in sentence for sentence in heard) and len(heard) == 4
    assert "DDIMScheduler" in heard[0] and "`pipe.clone()`" in heard[0] and "load and unload concepts" in heard[3]
    assert torch.isfinite(latents_of(pipe, image=picture())).all()  # an error leaves nothing behind


def test_a_text_without_s_is_not_changed_by_a_thread_that_has_one(pipe):
    """A plain Stable Diffusion around the same text encoder, while S* is on its way through it."""
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    ids, positions = subject_prompt.tokenize_subject_prompts(
        tokenizer, ["a photo of S*"], placeholder="S*", num_subject_tokens=1
    )
    words = torch.randn(1, 1, encoder.config.hidden_size)

    def with_subject():
        with torch.no_grad():
            return subject_prompt.encode_subject_prompts(encoder, ids, positions, words)

    def plain():
        with torch.no_grad():
            return subject_prompt.encode_texts(encoder, tokenizer, ["a photo of a dog"], device="cpu")

    alone = [with_subject(), plain()]
    for _ in range(20):
        found = at_once(with_subject, plain)
        assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])


def test_customising_and_drawing_keep_apart():
    """The thread that customises may draw, to see how it goes; others may not, and it can't begin while they do."""
    pipe = tiny_pipeline()
    other = pipe.clone()
    with ThreadPoolExecutor(1) as another:
        with customizing(pipe, photo(), QUICK):
            assert (
                "UNet2DConditionModel is in use" in another.submit(fails, lambda: sample(other, image=photo())).result()
            )
            assert len(sample(pipe, image=photo())) == len(PROMPTS)

        def customise_meanwhile(pipe, i, t, tensors):
            heard.append(another.submit(fails, lambda: customize(other, photo(), QUICK)).result())

        heard = []
        sample(pipe, image=photo(), callback_on_step_end=customise_meanwhile)
    assert all("customise while no other thread draws" in sentence for sentence in heard) and heard
