"""Docstrings of the package as reStructuredText: they are plain text, with `code` in single backticks and indented
blocks for formulas and examples; no other character in them is markup.
"""

import re
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx


def to_restructured_text(lines: list[str]) -> list[str]:
    """The same text: paragraphs escaped, indented blocks literal, `Raises: ...` a paragraph of its own."""
    result: list[str] = []
    for is_block, group in groupby(lines, key=lambda line: line.startswith(" ") and bool(line.strip())):
        if is_block:
            result += ["", "::", "", *(f"    {line}" for line in group), ""]
            continue
        for line in group:
            if line.startswith("Raises:"):
                result.append("")
            result.append(_escaped(line))
    return result


def _escaped(line: str) -> str:
    """`code` as a literal; all other markup characters escaped."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(
        f"``{part[1:-1].strip()}``" if part.startswith("`") else re.sub(r"([\\*|_`])", r"\\\1", part) for part in parts
    )


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_restructured_text(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
