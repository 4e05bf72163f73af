"""The paper's tables: the paper's numbers stand where the paper has them, ours are the best point's mean over seeds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from megatron_alum.finetune.tasks import TASKS
from megatron_alum.report.paper_tables import COUNTED_TASKS, TABLES
from megatron_alum.report.render import (
    best_values,
    format_cell,
    method_means,
    pretraining_curves,
    read_results,
    render_counts,
    render_table,
)

TOOL = Path(__file__).parents[2] / "tools" / "make_report.py"


def row(
    value, *, task="mnli", split="dev", metric="accuracy", seed=1, rate=1e-5, model="m/iter_0000100", method="none"
):
    return {
        **{"task": task, "split": split, "metric": metric, "value": value, "n": 10, "seed": seed, "model": model},
        **{"method": method, "learning_rate": rate, "batch_size": 32, "epochs": 3.0, "seconds": 1.0},
    }


def test_every_cell_names_a_task_split_and_metric_that_exist():
    entity = {"entity_f1"}
    for table in TABLES:
        assert set(table.paper) <= set(table.systems)
        for heading, (task, split, metric) in table.columns.items():
            assert split in TASKS[task].files, (table.number, heading)
            assert metric in {*TASKS[task].metrics, *entity, "exact_match", "f1"}
        for numbers in table.paper.values():
            assert set(numbers) <= set(table.columns)
    assert [table.number for table in TABLES] == list(range(1, 9)) and set(COUNTED_TASKS) <= set(TASKS)


def test_the_papers_first_table():
    lines = render_table(TABLES[0], {}).splitlines()
    assert lines[-3:] == [
        "| BERT-base | [88.5] | [81.0] | [76.5] | [72.9] | [84.5] | [84.4] |",
        "| BERT+-base | [89.6] | [82.4] | [77.8] | [74.0] | [85.0] | [84.8] |",
        "| ALUM-BERT-base | [90.8] | [83.7] | [80.2] | [76.6] | [85.8] | [86.1] |",
    ]


def test_a_cell_is_the_mean_over_seeds_of_the_best_point_on_dev():
    rows = [
        *(row(v, seed=s, rate=1e-5) for s, v in ((1, 0.80), (2, 0.82))),
        *(row(v, seed=s, rate=2e-5) for s, v in ((1, 0.70), (2, 0.90))),
        *(row(v, seed=s, rate=1e-5, split="dev_mismatched") for s, v in ((1, 0.5), (2, 0.6))),
        *(row(v, seed=s, rate=2e-5, split="dev_mismatched") for s, v in ((1, 0.9), (2, 0.9))),
    ]
    # Means on dev: 0.81 at 1e-5, 0.80 at 2e-5: the first is chosen for every split, also where the other is better.
    assert best_values(rows, ("mnli", "dev", "accuracy")) == pytest.approx([80.0, 82.0])
    assert best_values(rows, ("mnli", "dev_mismatched", "accuracy")) == pytest.approx([50.0, 60.0])
    assert best_values(rows, ("rte", "dev", "accuracy")) == []


def test_a_seed_with_two_results_is_refused():
    """Two configurations of one method are no seeds of each other, nor is one file given twice."""
    rows = [{**row(0.80), "file": "a/results.jsonl"}, {**row(0.82), "file": "b/results.jsonl"}]
    with pytest.raises(ValueError, match=r"seed 1 of mnli by none stands twice in a/results.jsonl and b/results.jsonl"):
        best_values(rows, ("mnli", "dev", "accuracy"))


def test_squad_is_percent_already():
    assert best_values([row(88.0, task="squad-v1.1", metric="f1")], ("squad-v1.1", "dev", "f1")) == [88.0]


def test_cells():
    # Sample deviation of 80 and 82: sqrt(2) = 1.4.
    assert format_cell([80.0, 82.0], 84.5) == "81.0 +- 1.4 (n 2) [84.5]"
    assert format_cell([80.0], None) == "80.0 (n 1)"
    assert format_cell([], 84.5) == "[84.5]" and format_cell([], None) == ""


def test_figures_data():
    rows = [row(0.8, model="a/iter_0000100"), row(0.9, model="a/iter_0000200"), row(0.7, model="a/final")]
    assert pretraining_curves({"ALUM": rows}, ("mnli", "dev", "accuracy")) == {
        "ALUM": [(100, pytest.approx(80.0)), (200, pytest.approx(90.0))]
    }
    both = [row(0.8), row(0.85, method="alum"), row(0.6, task="rte", method="alum")]
    assert method_means({"mine": both}) == {
        "none": {"mnli": pytest.approx(80.0)},
        "alum": {"mnli": pytest.approx(85.0), "rte": pytest.approx(60.0)},
    }
    assert method_means({"a": [row(0.8)], "b": [row(0.9)]}) == {
        "a, none": {"mnli": pytest.approx(80.0)},
        "b, none": {"mnli": pytest.approx(90.0)},
    }


@pytest.mark.requires_shared_data
def test_counts_come_from_the_loaders(shared_data):
    lines = render_counts(shared_data / "glue").splitlines()
    assert "| cola | classification | 8,551 | 1,043 |  | mcc, accuracy |" in lines
    assert "| bc2gm | tags |  |  |  | entity_f1 |" in lines
    lines = render_counts(shared_data / "squad").splitlines()
    assert "| adv-squad, add_sent | spans |  | 3,560 |  | f1, exact_match |" in lines


def test_broken_rows_name_file_and_line(tmp_path):
    for bad in ("nonsense", json.dumps(row(None)), json.dumps({"task": "mnli"})):
        (tmp_path / "results.jsonl").write_text(json.dumps(row(0.5)) + f"\n{bad}\n")
        with pytest.raises(ValueError, match=r"results.jsonl:2 must be a row"):
            read_results([tmp_path / "results.jsonl"])


def test_the_tool_writes_tables_and_figures(tmp_path, monkeypatch, capsys):
    path = tmp_path / "lr=1e-5" / "mine" / "results.jsonl"  # an equals sign of its own
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(row(0.8123)) + "\n")
    spec = importlib.util.spec_from_file_location("make_report", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "report"
    monkeypatch.setattr(
        sys, "argv", ["make_report.py", "--output", str(out), "--results", f"BERT-base={path}", str(path)]
    )
    module.main()
    text = (out / "tables.md").read_text()
    assert "| BERT-base | [88.5] | [81.0] | [76.5] | [72.9] | 81.2 (n 1) [84.5] | [84.4] |" in text
    assert "| mine |  |  |  |  | 81.2 (n 1) |  |" in text
    assert all((out / name).stat().st_size > 1000 for name in ("figure1.png", "figure2.png"))
    assert [f"## Table {number}." in text for number in range(1, 10)] == [True] * 9
