"""The `task-table` directive: the benchmarks of megatron_alum/finetune/tasks.py, what is measured and which files are
read."""

from __future__ import annotations

from docutils import nodes
from list_table import list_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from megatron_alum.finetune.tasks import TASKS, Task

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


class TaskTable(SphinxDirective):
    """All tasks."""

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        return self.parse_text_to_nodes(list_table([HEADINGS, *(cells(task) for task in TASKS.values())]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("task-table", TaskTable)
    return {"parallel_read_safe": True}
