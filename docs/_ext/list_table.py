"""A table from rows of Markdown cells, for the directives that produce tables."""

from collections.abc import Iterable, Sequence


def list_table(rows: Iterable[Sequence[str]]) -> str:
    """MyST text of a table whose first row is its heading."""
    cells = (f"{'*' if number == 0 else ' '} - {cell}" for row in rows for number, cell in enumerate(row))
    return "\n".join(["::::{list-table}", ":header-rows: 1", "", *cells, "::::"])
