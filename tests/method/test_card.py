"""What the model card says."""

import ast
import re

from profusion_pipeline import ProFusionPipeline
from profusion_pipeline.method.card import model_card
from tiny import make_components


def test_the_card_says_what_it_must(tmp_path):
    pipe = ProFusionPipeline(**make_components())
    pipe.save_pretrained(tmp_path / "mine", base_model="someone/stable-diffusion-2", license="openrail++")
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    for words in (
        "license: openrail++",
        "base_model: someone/stable-diffusion-2",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "## How it was made",
        f"| `promptnet` | PromptNet | {pipe.promptnet.num_parameters() / 1e6:.1f} |",
        "| `tokenizer` | CLIPTokenizer |  |",
        "## How to use it",
        "## Limits",
        "## Responsible use",
        'ProFusionPipeline.from_pretrained("mine")',
        'DiffusionPipeline.from_pretrained("mine", trust_remote_code=True)',
        'custom_pipeline="mine"',
    ):
        assert words in card, words
    assert "safety_checker" not in card
    examples = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for code in examples:
        ast.parse(code)


def test_a_card_without_facts_says_so():
    card = model_card("me/mine", components={"safety_checker": None}, placeholder="<me>")
    assert "license:" not in card and "base_model:" not in card
    assert "not recorded" in card and "not stated" in card
    assert 'pipe("<me> as an astronaut"' in card
