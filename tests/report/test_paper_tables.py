"""The paper's tables: every printed number in its place, ours the best point's mean over seeds."""

import csv
import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from megatron_alum.finetune.benchmarks.tasks import TASKS
from megatron_alum.report.card import evaluated_card
from megatron_alum.report.figures import draw_figures
from megatron_alum.report.paper_tables import paper_sizes, paper_tables
from megatron_alum.report.render import block, html_page, markdown_page, markdown_table, size_rows
from megatron_alum.report.results import Shown, best_values, cell, method_means, pretraining_curves, read_results

TOOL = Path(__file__).parents[2] / "tools" / "make_report.py"


def row(
    value, *, task="mnli", split="dev", metric="accuracy", seed=1, rate=1e-5, model="m/iter_0000100", method="none"
):
    return {
        **{"task": task, "split": split, "metric": metric, "value": value, "n": 10, "seed": seed, "model": model},
        **{"method": method, "learning_rate": rate, "batch_size": 32, "epochs": 3.0, "seconds": 1.0},
    }


def page(results):
    return html_page(results, draw_figures(results), size_rows(None))


@pytest.fixture(scope="module")
def printed(shared_data):
    """{(table, system, data set, split, metric): number as printed}, transcribed from the paper independently."""
    lines = [line for line in (shared_data.parent / "paper" / "tables.csv").read_text().splitlines() if line[0] != "#"]
    rows = [tuple(row.values()) for row in csv.DictReader(lines)]
    cells = {(int(table), *rest): value for table, *rest, value in rows}
    assert len(cells) == len(rows) > 170
    return cells


@pytest.mark.requires_shared_data
def test_every_printed_number_is_in_its_cell(printed):
    """Cell by cell, in both directions: none is missing, none is more than the paper prints."""
    ours = {
        (table.number, row.name, column.dataset, column.split, column.metric): f"{value:.1f}"
        for table in paper_tables()
        for part in table.parts
        for row in part.rows
        for column, value in zip(part.columns, row.values, strict=True)
        if value is not None
    }
    assert ours == {key: value for key, value in printed.items() if value}


@pytest.mark.requires_shared_data
def test_every_size_of_table_9(shared_data):
    """The line of the independent transcription of Table 9."""
    text = (shared_data.parent / "paper" / "README.md").read_text().replace("\n", " ")
    ours, same = [], "F1, precision, recall"
    for size in paper_sizes().rows:
        labels = "" if size.labels == "-" else f" {size.labels},"
        metric = r"(?:the same|F1, precision, recall)" if size.metric == same else size.metric
        ours.append(rf"{re.escape(size.dataset)} {size.train}/{size.dev}/{size.test},{labels} {metric}")
        assert re.search(ours[-1] + r"\W", text), ours[-1]
    copied = text[text.index("Table 9 (") :]
    assert len(ours) == len(re.findall(r"\S+/\S+/\S+,", copied))


def test_every_cell_names_a_task_split_and_metric_that_exist():
    for table in paper_tables():
        for part in table.parts:
            assert len({row.system for row in part.rows}) == len(part.rows), "ours would stand in two rows"
            for column in part.columns:
                task, split, metric = column.cell
                assert split in TASKS[task].files, column
                assert metric in {*TASKS[task].metrics, "exact_match", "f1"}, column
    assert [table.number for table in paper_tables()] == list(range(1, 9))
    assert {size.task for size in paper_sizes().rows} <= set(TASKS)


def test_the_swapped_rows_are_the_marked_ones():
    """F1 is never below the exact match: a row that the paper prints so carries the note's mark, and no other."""
    for table in paper_tables():
        for part in table.parts:
            pairs = {(c.dataset, c.split, c.metric): i for i, c in enumerate(part.columns) if c.metric in ("EM", "F1")}
            swapped = {
                row.system
                for row in part.rows
                for (dataset, split, metric), index in pairs.items()
                if metric == "EM" and row.values[index] > row.values[pairs[dataset, split, "F1"]]
            }
            assert swapped == table.marked, table.number
    assert r"| RoBERTa-large\* | [72.3] | [66.0] | [79.3] | [72.9] | [85.0] | [85.2] |" in markdown_table(
        paper_tables()[5], {}
    )


def test_the_papers_first_table():
    lines = markdown_table(paper_tables()[0], {}).splitlines()
    assert lines[-3:] == [
        "| BERT-base | [88.5] | [81.0] | [76.5] | [72.9] | [84.5] | [84.4] |",
        "| BERT+-base | [89.6] | [82.4] | [77.8] | [74.0] | [85.0] | [84.8] |",
        "| ALUM-BERT-base | [90.8] | [83.7] | [80.2] | [76.6] | [85.8] | [86.1] |",
    ]


def test_a_quoted_system_has_its_source_and_our_result():
    rows = [row(0.61, task="anli-all", split="test_r1")]
    part = paper_tables()[4].parts[0]
    filled = dict(block(part, {"RoBERTa-large": rows}).rows)
    shown = dict(
        zip((column.heading for column in part.columns), filled["RoBERTa-large (Nie et al. 2019)"], strict=True)
    )
    assert shown["ANLI R1 test accuracy"] == Shown("61.0 (1 seed)", "")  # the paper prints a dash there
    assert shown["ANLI R1 dev accuracy"] == Shown("", "73.8")


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
    """Two configurations of one method are not two seeds, nor is one file given twice."""
    rows = [{**row(0.80), "file": "a/results.jsonl"}, {**row(0.82), "file": "b/results.jsonl"}]
    with pytest.raises(ValueError, match=r"seed 1 of mnli by none occurs twice in a/results.jsonl and b/results.jsonl"):
        best_values(rows, ("mnli", "dev", "accuracy"))


def test_squad_is_percent_already():
    assert best_values([row(88.0, task="squad-v1.1", metric="f1")], ("squad-v1.1", "dev", "f1")) == [88.0]


def test_cells():
    # Sample deviation of 80 and 82: sqrt(2) = 1.4.
    assert cell([80.0, 82.0], 84.5) == Shown("81.0 +- 1.4 (2 seeds)", "84.5")
    assert cell([80.0, 82.0], 84.5).markdown == "81.0 +- 1.4 (2 seeds) [84.5]"
    assert cell([80.0], None).markdown == "80.0 (1 seed)"
    assert cell([], 84.5).markdown == "[84.5]" and cell([], None).markdown == ""


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


def test_figures_are_in_one_page_and_follow_its_colours():
    """Figures share no ids, all references resolve, and nothing is drawn in the placeholder colour."""
    results = {"BERT-base": [row(0.8), row(0.9, model="m/iter_0000200")], "a <b> & c": [row(0.7)]}
    drawn = draw_figures(results)
    assert set(drawn) == {1, 2} and drawn == draw_figures(results)
    seen = set()
    for svg in drawn.values():
        tree = ElementTree.fromstring(svg)
        names = {node.get("id") for node in tree.iter() if node.get("id")}
        wanted = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
        assert wanted <= names and not names & seen
        seen |= names
        assert "currentColor" in svg and "#010203" not in svg and "#000000" not in svg
    assert "a &lt;b&gt; &amp; c" in drawn[2]


class Table(HTMLParser):
    """Rows of a page's tables as text; and what the page would fetch."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.fetched, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.fetched += [given[name] for name in ("src", "srcset") if name in given]
        self.fetched += [tag] if tag in ("script", "link") else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append([])
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self.open) and data.strip():
            self.rows[-1][-1].append(data.strip())


def test_the_page_holds_every_cell_and_needs_no_other_file():
    """The parsed page has the rows of the Markdown, cell for cell; results that no table has a column for as well."""
    results = {"BERT-base": [row(0.8123), row(0.8323, seed=2)], "mine <x>": [row(0.7), row(0.25, task="custom")]}
    parsed = Table(page(results))
    rows = [[" ".join(words) for words in one] for one in parsed.rows]
    assert ["BERT-base", "88.5", "81.0", "76.5", "72.9", "82.2 \u00b1 1.4 (2 seeds) 84.5", "84.4"] in rows
    assert ["mine <x>", "", "", "", "", "70.0 (1 seed)", ""] in rows
    assert ["mine <x>", "custom", "dev", "accuracy", "25.0 (1 seed)"] in rows
    assert ["HellaSWAG", "34k", "10", "10k", "-", "accuracy"] in rows
    markdown = markdown_page(results, {}, size_rows(None))
    expected = [
        [re.sub(r"[\[\]\\]", "", one).strip().replace(" +- ", " \u00b1 ") for one in line.strip("|").split(" | ")]
        for line in markdown.splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    bodies = [one for one in expected if one[0]]
    assert [one for one in rows if one[0].split(" ")[0] not in ("system", "data") and one in bodies] == bodies
    assert not parsed.fetched and "url(http" not in page(results)


@pytest.mark.requires_shared_data
def test_counts_come_from_the_loaders(shared_data):
    counted = {dataset: [one.ours for one in counts] for dataset, counts, *_ in size_rows(shared_data / "glue")}
    assert counted["CoLA"] == ["8,551", "1,043", ""] and counted["BC2GM"] == ["", "", ""]
    assert counted["HellaSWAG"] == ["", "", ""]


def test_matched_and_mismatched_are_counted_together(tmp_path):
    folder = tmp_path / "MNLI"
    folder.mkdir()
    for split, count in (("dev_matched", 3), ("dev_mismatched", 2)):
        rows = [f"{i}\tone\ttwo\tneutral" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tgold_label", *rows]) + "\n")
    counted = {dataset: [one.ours for one in counts] for dataset, counts, *_ in size_rows(tmp_path)}
    assert counted["MNLI"] == ["", "5", ""]
    (folder / "dev_mismatched.tsv").unlink()
    assert size_rows(tmp_path)[2][1][1].ours == "", "half of it is not the set"


def test_broken_rows_name_file_and_line(tmp_path):
    for bad in ("nonsense", json.dumps(row(None)), json.dumps({"task": "mnli"})):
        (tmp_path / "results.jsonl").write_text(json.dumps(row(0.5)) + f"\n{bad}\n")
        with pytest.raises(ValueError, match=r"results.jsonl:2 must be a row"):
            read_results([tmp_path / "results.jsonl"])
    (tmp_path / "results.jsonl").write_text("\n".join(["", ""]))
    with pytest.raises(ValueError, match=r"results.jsonl:1 must be a row"):
        read_results([tmp_path / "results.jsonl"])
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"results.jsonl must hold results, but is empty: no run has ended yet"):
        read_results([tmp_path / "results.jsonl"])


def test_the_tool_writes_page_tables_and_figures(tmp_path, monkeypatch, capsys):
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
    assert "| BERT-base | [88.5] | [81.0] | [76.5] | [72.9] | 81.2 (1 seed) [84.5] | [84.4] |" in text
    assert "| mine |  |  |  |  | 81.2 (1 seed) |  |" in text
    assert [f"## Table {number}." in text for number in range(1, 10)] == [True] * 9
    written = [f"written: {out / name}" for name in ("report.html", "tables.md", "figure1.svg", "figure2.svg")]
    assert capsys.readouterr().out.splitlines() == written
    assert all((out / name).stat().st_size > 1000 for name in ("report.html", "figure1.svg", "figure2.svg"))


def test_the_results_become_the_evaluation_of_a_card(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# m\n\n## Evaluation\n\nNone.\n\n## Limits\n\nMany.\n")
    rows = [row(0.80), row(0.82, seed=2), row(0.5, split="dev_mismatched"), row(70.0, task="squad-v2", metric="f1")]
    rows.append(row(0.25, task="custom"))
    path, text = evaluated_card(tmp_path, {"mine": rows})
    assert path == card and text.startswith("# m\n") and "Many." in text
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| mnli | dev | accuracy | 81.0 +- 1.4 (2 seeds) |",
        "| mnli | dev_mismatched | accuracy | 50.0 (1 seed) |",
        "| squad-v2 | dev | f1 | 70.0 (1 seed) |",
        "| custom | dev | accuracy | 25.0 (1 seed) |",
    ]
    with pytest.raises(ValueError, match="--results must hold results for --model-card"):
        evaluated_card(tmp_path, {})
    with pytest.raises(ValueError, match=r"--model-card must be a folder with a README\.md"):
        evaluated_card(tmp_path / "absent", {"mine": rows})
