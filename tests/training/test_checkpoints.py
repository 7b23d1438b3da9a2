from profusion_pipeline.training.checkpoints import checkpoint_path, delete_all_but_newest, list_checkpoints


def write(path, text):
    path.mkdir(parents=True)
    (path / "weights").write_text(text)


def test_the_newest_checkpoints_stay(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []
    for step in (5, 100_000_000, 20, 100):
        write(checkpoint_path(tmp_path, step), str(step))
    assert [int((path / "weights").read_text()) for path in list_checkpoints(tmp_path)] == [5, 20, 100, 100_000_000]
    delete_all_but_newest(tmp_path, keep=2)
    assert [int((path / "weights").read_text()) for path in list_checkpoints(tmp_path)] == [100, 100_000_000]
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000100", "step-100000000"}
