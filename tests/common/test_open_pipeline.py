import logging

import pytest
import torch

from profusion_pipeline.common.made_with import record_of
from profusion_pipeline.common.open_pipeline import DEMO_FOLDER, load_pipeline, pipeline_source
from profusion_pipeline.method.pipeline_profusion_xl import ProFusionXLPipeline
from tiny_xl import make_xl_components


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_model_has_the_dtype(pipe, tmp_path, stored, dtype, caplog):
    expected = {name: model.to(stored).state_dict() for name, model in models(pipe).items()}
    expected = {name: {key: t.to(dtype) for key, t in state.items()} for name, state in expected.items()}
    pipe.save_pretrained(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        loaded = models(load_pipeline(tmp_path, dtype=dtype, device="cpu"))
    assert loaded.keys() == expected.keys()
    for name, model in loaded.items():
        state = model.state_dict()
        assert state.keys() == expected[name].keys()
        assert all(torch.equal(t, expected[name][key]) for key, t in state.items() if t.is_floating_point()), name
        assert {t.dtype for t in model.parameters()} == {dtype}
    assert not caplog.records


def models(pipe) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def test_nothing_there(tmp_path):
    with pytest.raises(OSError, match="model_index.json"):
        load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    for place in ("a" * 300, "", "nowhere/at/all"):
        with pytest.raises(FileNotFoundError, match="`model` must be a folder or file that exists, or the Hub id"):
            load_pipeline(place, dtype=torch.float32, device="cpu")


def test_the_word_for_the_bundled_model(tmp_path, monkeypatch):
    assert pipeline_source("demo", demo=DEMO_FOLDER) == str(DEMO_FOLDER)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [pipeline_source(name) for name in ("./demo", "me/demo")] == ["./demo", "me/demo"]
    with pytest.raises(FileNotFoundError, match="The demo model is not in .*: `make train-demo` trains it"):
        pipeline_source("demo", demo=tmp_path)


def test_the_bundled_model_by_its_word():
    pipe = load_pipeline("demo", dtype=torch.bfloat16, device="cpu")
    assert pipe.unet.dtype == torch.bfloat16 and pipe.unet.config.sample_size == 8


def test_stable_diffusion_xl_has_a_class_of_its_own(tmp_path):
    pipe = ProFusionXLPipeline(**make_xl_components(with_promptnet=False))
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert type(loaded) is ProFusionXLPipeline and loaded.promptnet is None
    record = record_of(loaded, model="xl", prompt="S*", seed=1, settings={"guidance_scale": 3, "target_size": (8, 8)})
    assert record["settings"]["class_guidance_scale"] == 5 and record["settings"]["original_size"] is None
