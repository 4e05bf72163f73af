"""compare_runs on hand-made metrics."""

import json

import pytest

from megatron_alum.report.compare import compare_metrics, read_metrics
from tests.helpers.warm import run_script

ROWS = [{"iteration": i, "lm_loss": 10.0 - i, "alum_kl": None, "tokens_per_second": 5.0 * i} for i in (1, 2, 3)]


def changed(iteration, **values):
    return [{**row, **values} if row["iteration"] == iteration else row for row in ROWS]


def test_equal_but_for_the_clock():
    assert compare_metrics(ROWS, changed(2, tokens_per_second=1.0)).first is None


def test_the_first_difference_and_the_largest():
    found = compare_metrics(changed(2, lm_loss=8.08), changed(3, lm_loss=14.0), tolerance=0.02)
    assert (found.first.iteration, found.first.column, found.first.second) == (3, "lm_loss", 14.0)
    assert found.largest["lm_loss"].iteration == 3 and found.largest["lm_loss"].relative == pytest.approx(0.5)


def test_a_missing_value_is_a_difference():
    found = compare_metrics(ROWS, changed(1, alum_kl=0.5), tolerance=10.0)
    assert found.first.column == "alum_kl" and found.first.relative == float("inf")


def test_the_tool_answers_by_its_exit_status(tmp_path):
    for name, rows in (("a", ROWS), ("b", changed(3, lm_loss=7.001)), ("c", ROWS[:2])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def compare(*arguments):
        return run_script("tools/compare_runs.py", *arguments, folder=tmp_path)

    same = compare("a", "c")
    assert same.returncode == 0 and "1 iterations in one run only (3 to 3)" in same.stdout
    different = compare("a", "b/metrics.jsonl")
    assert different.returncode == 1
    assert "first difference beyond 0: iteration 3, lm_loss: 7.0 and 7.001" in different.stdout
    assert compare("a", "b", "--tolerance", "1e-3").returncode == 0
    missing = compare("a", "nowhere")
    assert missing.returncode == 2 and missing.stderr.startswith("error: ") and "nowhere" in missing.stderr


def test_a_line_that_is_not_a_row_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"iteration": 1}\n{"iter')
    with pytest.raises(ValueError, match=r"Line 2 of .*m.jsonl must be a JSON object with an iteration"):
        read_metrics(tmp_path / "m.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"Line 1 of .*binary must be a JSON object with an iteration"):
        read_metrics(tmp_path / "binary")
    with pytest.raises(ValueError, match=r"folder or its metrics\.jsonl, but .*metrics\.jsonl does not exist"):
        read_metrics(tmp_path)
