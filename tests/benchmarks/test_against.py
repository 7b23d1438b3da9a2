"""Recipes against rivals at tiny size: counts are those of the method, tables and files are written."""

import csv
import json

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import against  # noqa: E402


@pytest.mark.slow
def test_every_way_is_counted_and_timed(tmp_path, capsys):
    """Two steps of each: 5 rows of the paper's, 3 of the others; S* twice a step, or once in four."""
    results = against.main(size="tiny", device="cpu", dtype="float32", rounds=1, most_steps=2, folder=tmp_path)
    counts = {name: [one[key] for key in ("steps", *against.COUNTED)] for name, one in results["ways"].items()}
    for recipe in ("paper", "fast", "best"):
        assert counts[f"Stable Diffusion ({recipe})"][:4] == [2, 4, 2, 0]
        assert counts[f"IP-Adapter ({recipe})"][:4] == [2, 4, 2, 0]
    assert counts["paper"] == [2, 10, 4, 4, 6]
    assert counts["fast"] == counts["best"] == [2, 6, 2, 1, 3]
    assert counts[against.AUTHORS] == [2, 12, 4, 4, 12]
    assert all(one["seconds"] > 0 and one["operators"] > 100 for one in results["ways"].values())
    assert json.loads((tmp_path / "against_tiny_cpu.json").read_text()) == results
    with (tmp_path / "against_tiny_cpu.csv").open(newline="") as file:
        assert [row["way"] for row in csv.DictReader(file)] == list(results["ways"])
    assert (tmp_path / "against_tiny_cpu.png").stat().st_size > 1000
    assert "| fast | 2 | 6 | 2 | 1 | 3 |" in capsys.readouterr().out
