"""The `measured` directive: a file of benchmarks/results as a table of the columns that its page is about, and below it
the machine and commit of its rows.
"""

from __future__ import annotations

import csv
from pathlib import Path

from docutils import nodes
from list_table import list_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
WHERE = {"device": "{}", "processor": "{}", "torch": "torch {}", "commit": "commit {}"}
"""column -> how it is named below the table"""


class Measured(SphinxDirective):
    """`{measured} FILE.csv` with `:columns:`, names of its columns in order."""

    required_arguments = 1
    option_spec = {"columns": str.split}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table, and a line on its origin."""
        path = RESULTS / self.arguments[0]
        self.env.note_dependency(str(path))
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        columns = self.options["columns"]
        table = [[name.replace("_", " ") for name in columns], *([row[name] for name in columns] for row in rows)]
        origin = [
            text.format(value)
            for name, text in WHERE.items()
            for value in dict.fromkeys(row[name] for row in rows if name in row)
        ]
        line = f"Measured on {', '.join(origin)}; every column is in `benchmarks/results/{path.name}`."
        return self.parse_text_to_nodes(f"{list_table(table)}\n\n{line}\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
