import pytest
import torch

from profusion_pipeline.demo import FOLDER, demo_portraits, load_demo_pipeline
from profusion_pipeline.demo.grid import PROMPTS

bundled = pytest.mark.skipif(
    not (FOLDER / "model" / "model_index.json").is_file(),
    reason="the demo model is not there: `make train-demo` trains it",
)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="The demo model is not in .*: `make train-demo` trains it"):
        load_demo_pipeline(folder=tmp_path)


def test_half_precision_files_load_as_float32(pipe, tmp_path):
    expected = {name: p.half().float() for name, p in pipe.promptnet.state_dict().items()}
    pipe.to(torch.float16).save_pretrained(tmp_path)
    loaded = load_demo_pipeline(folder=tmp_path)
    for name, value in loaded.promptnet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


def test_another_dtype(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert load_demo_pipeline(folder=tmp_path, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


@bundled
def test_bundled_model_is_small_and_safe():
    files = [path for path in (FOLDER / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


@bundled
def test_portraits():
    portraits = demo_portraits()
    assert len(portraits) >= 4
    assert {(picture.mode, picture.size) for picture in portraits} == {("RGB", (64, 64))}


@bundled
def test_bundled_model_draws():
    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = demo_portraits()[0]
    picture = pipe(PROMPTS[0], image=image, class_noun="a person", num_inference_steps=4, generator=generator).images[0]
    assert picture.size == (64, 64)
    assert len(picture.getcolors(64 * 64)) > 100


@bundled
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_model_reads_the_prompts_whole(prompt):
    """No word of the demo's prompts is beyond the text encoder's reach or unknown to its vocabulary."""
    tokenizer = load_demo_pipeline().tokenizer
    ids = tokenizer(prompt.replace("S*", "a person")).input_ids
    assert len(ids) <= tokenizer.model_max_length
    assert tokenizer.unk_token_id not in ids[1:-1]
