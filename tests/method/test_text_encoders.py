import pytest
import torch

from profusion_pipeline.method import subject_prompt, text_encoders
from profusion_pipeline.method.prompt_pieces import SubjectTokens
from tiny import TEXT_WIDTH


def test_one_encoder_is_read_as_it_is(pipe):
    ids = subject_prompt.tokenize_texts(pipe.tokenizer, ["a dog", ""])
    states, pooled = text_encoders.encode_ids([pipe.text_encoder], ids)
    assert torch.equal(states, pipe.text_encoder(ids).last_hidden_state) and pooled is None


def test_with_a_subject_in_it(pipe):
    tokens = subject_prompt.tokenize_subject_prompts(pipe.tokenizer, ["S*"], placeholder="S*", num_subject_tokens=1)
    embeds = torch.randn(1, 1, TEXT_WIDTH)
    expected = subject_prompt.encode_subject_prompts(pipe.text_encoder, *tokens, embeds)
    output = text_encoders.encode_ids([pipe.text_encoder], tokens[0], positions=tokens[1], subject_embeds=embeds)
    assert torch.equal(output.states, expected)


def test_a_subject_of_another_width(pipe):
    with pytest.raises(ValueError, match="S\\* must be as wide as the text encoders together, 32, got 7"):
        text_encoders.encode_ids(
            [pipe.text_encoder],
            torch.zeros(1, 77).long(),
            positions=torch.tensor([1]),
            subject_embeds=torch.zeros(1, 1, 7),
        )


def test_tokenizers_must_put_the_subject_at_one_place():
    one, other = (SubjectTokens(torch.zeros(1, 77), torch.tensor([place])) for place in (4, 5))
    with pytest.raises(ValueError, match="as many tokens before S\\*, got \\[4\\] and \\[5\\]"):
        text_encoders.stack_tokens([one, other])
