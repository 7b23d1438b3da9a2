import pytest

from profusion_pipeline.evaluation.config import EvaluationConfig


def test_the_share_is_torchruns_if_not_given(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert EvaluationConfig(output="study").share == (2, 4)
    assert EvaluationConfig(output="study", worker=1, workers=3).share == (1, 3)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert EvaluationConfig(output="study").share == (0, 1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(questions=(1, 7)), "`questions` must be among 1 to 6, got 7"),
        (dict(worker=2, workers=2), "`worker` must be 0 to 1 with 2 workers, got 2"),
        (dict(unet_rows=3), "`unet_rows` must be at least 9, got 3"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        EvaluationConfig(output="study", **settings)
