"""Which texts a call reads: those that its guidance has a weight for, or may get one for."""

import pytest
import torch

from calls import PROMPT
from profusion_pipeline.method.guidance_scales import Guidance
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline


def chosen(pipe, prompts=(PROMPT, "S* on the moon"), scales=(), **given):
    nothing = dict.fromkeys(("class_prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"))
    settings = nothing | dict(class_noun="dog", long_prompts=False, may_change=False) | given
    guidance = Guidance.from_call(ProFusionPipeline.__call__, **dict(scales))
    return pipe._choose_texts(list(prompts), [], guidance, (8, 8), **settings)


def test_both_null_and_class_texts_of_each_prompt(pipe):
    texts = chosen(pipe)
    assert texts.null == ["", ""]
    assert texts.class_prompts == [PROMPT.replace("S*", "dog"), "dog on the moon"]
    assert texts.tokens.input_ids.shape[0] == 2 and texts.learnt == [] and texts.align_with is None


def test_a_class_prompt_without_weight_is_not_read_unless_a_callback_may_give_it_one(pipe):
    no_weight = dict(class_guidance_scale=0.0)
    assert chosen(pipe, scales=no_weight).class_prompts is None
    assert chosen(pipe, scales=no_weight, may_change=True).class_prompts == chosen(pipe).class_prompts
    assert chosen(pipe, scales=no_weight, may_change=True, class_noun=None).class_prompts is None


def test_given_states_take_the_place_of_texts(pipe):
    states = torch.zeros(2, pipe.tokenizer.model_max_length, pipe.text_encoder.config.hidden_size)
    texts = chosen(pipe, prompt_embeds=states, negative_prompt_embeds=states)
    assert texts.null is None and texts.class_prompts is None
    assert texts.embeds == {"prompt_embeds": states, "negative_prompt_embeds": states}
    with pytest.raises(ValueError, match="`class_prompt`.*`prompt_embeds`"):
        chosen(pipe, prompt_embeds=states, class_prompt="a dog")


def test_mixed_text_needs_the_class_prompt_whatever_its_weight(pipe):
    texts = chosen(pipe, scales=dict(class_guidance_scale=0.0, fusion_text="mixed"))
    assert texts.align_with == texts.class_prompts == chosen(pipe).class_prompts
    assert texts.tokens.partners.shape == texts.tokens.input_ids.shape
