import numpy as np
import pytest

from profusion_pipeline.evaluation.costs import Cost
from profusion_pipeline.evaluation.metrics import bootstrap_interval, paired_difference
from profusion_pipeline.evaluation.report import Scores, cost_table, fill_marks, question_table
from reports import CELLS, OURS, ROWS, THEIRS, UNDRAWN


def test_estimates_are_of_all_rows_and_differences_of_those_in_pairs():
    scores = Scores(ROWS)
    values = np.array([row.scores["reader identity"] for row in ROWS if row.setting == OURS])
    people = np.array([row.subject for row in ROWS if row.setting == OURS])
    assert scores.estimate(OURS, "reader identity") == bootstrap_interval(values, people)
    difference = scores.difference(THEIRS, OURS, "reader identity")
    assert difference == pytest.approx((0.125, 0.125, 0.125, 1.0))
    assert difference == pytest.approx(paired_difference(values[:12] + 0.125, values[:12], people[:12]))


def test_nothing_is_said_where_nothing_was_measured():
    scores = Scores(ROWS)
    assert scores.estimate(OURS, "reader prompt") is None and scores.estimate(UNDRAWN, "reader identity") is None
    assert scores.difference(UNDRAWN, OURS, "reader identity") is None
    assert scores.difference(THEIRS, OURS, "reader prompt") is None


def test_a_table_has_a_line_for_what_was_drawn():
    table = question_table(CELLS, Scores(ROWS), ["reader identity", "reader prompt"], ["reader identity"])
    heads, _, ours, theirs = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert heads[6:] == ["reader identity", "reader identity, against its reference"]  # nothing of the empty score
    mean, low, high = Scores(ROWS).estimate(OURS, "reader identity")
    assert ours == ["ours", "", "20", "100", "12", "24", f"{mean:.3f} ({low:.3f} to {high:.3f})", ""]
    assert theirs[4:6] == ["12", "12"] and theirs[7] == "+0.125 (+0.125 to +0.125), ahead in 100%"


def test_costs():
    costs = [
        Cost("ours", "{}", 17.25, 1.5, 64, 0.5, 0.75, 0.2, "a laptop"),
        Cost("base", "", 0.0, float("nan"), 64, 0.25, 0.5, 0.0, "a laptop"),
        Cost("ours", "{}", 17.25, float("nan"), 64, 0.5, float("nan"), 0.2, "where nothing tells"),
    ]
    lines = cost_table(costs).splitlines()
    assert lines[2] == "| ours | a laptop | 17.2 | 1.50 | 0.20 | 64 | 0.50 | 0.75 |"
    assert lines[3] == "| base | a laptop |  |  |  | 64 | 0.25 | 0.50 |"
    assert lines[4] == "| ours | where nothing tells | 17.2 | not measured | 0.20 | 64 | 0.50 | not measured |"


def test_texts_go_between_their_marks(tmp_path):
    document = tmp_path / "a.md"
    document.write_text("top <!-- a --> old <!-- /a --> between <!-- b --><!-- /b --> end")
    for _ in range(2):
        fill_marks(document, {"b": "2", "a": "1"})
    assert document.read_text() == "top <!-- a -->\n1\n<!-- /a --> between <!-- b -->\n2\n<!-- /b --> end"
    with pytest.raises(ValueError, match="a.md must have the marks <!-- c --> and <!-- /c --> once each"):
        fill_marks(document, {"a": "3", "c": "1"})
    assert "3" not in document.read_text()
