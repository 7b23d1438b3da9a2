"""Equal effort for all systems, and a table that says which trial was the best."""

from collections import Counter

import pytest
from tune_systems import LEARNING, NAMES, main, table, trials

from profusion_pipeline.demo import FOLDER
from profusion_pipeline.evaluation.rows import Row, RowWriter, open_run


def test_eight_trials_of_each_system_all_different(tmp_path):
    tried = list(trials(tmp_path))
    assert Counter(trial.name for trial in tried) == dict.fromkeys(NAMES, 8)
    settings = [trial.setting(75) for trial in tried]
    assert len(set(settings)) == len({(trial.name, trial.label) for trial in tried}) == len(tried)
    assert all(trial.system.unet_rows(setting.sampling) <= 75 for trial, setting in zip(tried, settings, strict=True))
    for trial, setting in zip(tried, settings, strict=True):
        if trial.name in LEARNING:
            assert setting.config().steps == trial.learning["steps"]
            assert setting.config().learning_rate == trial.learning["learning_rate"]
            assert setting.config().pool_size == 1


def test_the_table_marks_the_best_of_each_system(tmp_path):
    tried = list(trials(None, ("Stable Diffusion", "Textual Inversion")))
    columns = ["reader identity", "reader prompt"]
    open_run(tmp_path / "rows", {"columns": columns})
    with RowWriter(tmp_path / "rows", 0, columns) as writer:
        for number, trial in enumerate(tried[:15]):  # the last one isn't drawn yet
            scores = dict(zip(columns, (0.01 * number, 0.5), strict=True))
            writer.add([Row(trial.setting(75), "ada", "S*", 0, scores, 74, 1.0, 0.1, "a laptop")])
    lines = table(tried, tmp_path, 75).splitlines()
    assert len(lines) == 2 + 15
    assert [line for line in lines if "**" in line] == [lines[2 + 7], lines[2 + 14]]


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "model" / "model_index.json").is_file(), reason="the demo model is not there")
def test_two_workers_share_the_people(tmp_path):
    settings = dict(weights=None, work=tmp_path, people=2, rows=2, device="cpu", systems=("Stable Diffusion",))
    main(**settings, worker=0, workers=2)
    assert len(main(**settings, worker=1, workers=2).splitlines()) == 2 + 8
