"""Tables of benchmarks. `task-table` says what is measured and which files are read, from
megatron_alum/finetune/benchmarks/tasks.py; `paper-scores` what the paper reports of its main models, from
megatron_alum/report/paper.toml.
"""

from __future__ import annotations

from docutils import nodes
from list_table import list_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from megatron_alum.finetune.benchmarks.tasks import TASKS, Task
from megatron_alum.report.paper_tables import paper_tables

SYSTEMS = ("BERT-base", "ALUM-BERT-base", "RoBERTa-large", "ALUM-RoBERTa-large")
HEADINGS = ("`--task`", "kind", "metrics (the first chooses the model)", "folder below `--data-dir`", "files")


def cells(task: Task) -> tuple[str, ...]:
    """One row: of the alternative names of a file, the official one."""
    files = "; ".join(f"{split} `{names[0]}`" for split, names in task.files.items())
    if task.train_parts:
        files = f"train: those of {', '.join(task.train_parts)}; " + "; ".join(
            f"{split} `{names[0]}`" for split, names in task.files.items() if split != "train"
        )
    folder = f"`{task.folders[0]}`" if task.folders else ""
    return f"`{task.name}`", task.kind, ", ".join(f"`{metric}`" for metric in task.metrics), folder, files


def paper_scores() -> list[tuple[str, ...]]:
    """One row a task, split and metric for which the paper has a number of one of SYSTEMS; "" where it has none."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for table in paper_tables():
        for part in table.parts:
            for number, column in enumerate(part.columns):
                for row in part.rows:
                    is_swapped = row.system in table.marked and column.cell[2] in ("f1", "exact_match")
                    if row.system in SYSTEMS and row.values[number] is not None and not is_swapped:
                        found.setdefault(column.cell, {}).setdefault(row.system, f"{row.values[number]:.1f}")
    tasks = list(TASKS)
    return [
        (f"`{task}`", f"{metric}, {split}", *(found[task, split, metric].get(system, "") for system in SYSTEMS))
        for task, split, metric in sorted(found, key=lambda cell: tasks.index(cell[0]))
    ]


class TaskTable(SphinxDirective):
    """All tasks."""

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        return self.parse_text_to_nodes(list_table([HEADINGS, *(cells(task) for task in TASKS.values())]))


class PaperScores(SphinxDirective):
    """The paper's numbers, in percent."""

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        return self.parse_text_to_nodes(list_table([("task", "metric, split", *SYSTEMS), *paper_scores()]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("task-table", TaskTable)
    app.add_directive("paper-scores", PaperScores)
    return {"parallel_read_safe": True}
