"""Pages of sections (text, table, figure, commands) as one HTML file and as its Markdown twin.

The HTML needs no other file: it contains the figures as SVG. In Markdown they are links to files beside it. A table
scrolls sideways where the screen is narrow; its first column, a heading, stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_alum.config.extras import require
from megatron_alum.finetune.runs.records import write_at_once

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class Table:
    """Text in columns."""

    headings: tuple[str, ...]
    """of all columns, the first one included"""
    rows: tuple[tuple[str, ...], ...]
    """a row's first cell names it"""

    @property
    def is_prose(self) -> list[bool]:
        """Which columns hold sentences and are set from the left."""
        return [max(map(len, column), default=0) > 50 for column in zip(*self.rows, strict=True)]


@dataclass(frozen=True)
class Figure:
    """A drawing."""

    name: str
    """of its file, without suffix"""
    svg: str
    """the element"""
    caption: str
    """below it"""


@dataclass(frozen=True)
class Section:
    """A heading and what follows, in this order."""

    title: str
    before: tuple[str, ...] = ()
    """paragraphs"""
    table: Table | None = None
    figure: Figure | None = None
    after: tuple[str, ...] = ()
    """paragraphs: what table and figure show"""
    commands: tuple[str, ...] = ()
    """command lines"""


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    introduction: tuple[str, ...]
    """paragraphs"""
    sections: tuple[Section, ...]


def write_page(page: Page, folder: Path, name: str) -> list[Path]:
    """Writes NAME.html, NAME.md and the figures' SVG files into `folder`; returns their paths."""
    texts = {f"{name}.html": html(page), f"{name}.md": markdown(page)}
    texts |= {f"{one.figure.name}.svg": one.figure.svg + "\n" for one in page.sections if one.figure}
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        write_at_once(folder / file, text)
    return [folder / file for file in texts]


def html(page: Page) -> str:
    """The page, everything in one text."""
    return template("sections.html").render(page=page)


def markdown(page: Page) -> str:
    """The same as Markdown."""
    parts = [f"# {page.title}", *page.introduction]
    for section in page.sections:
        parts += [f"## {section.title}", *section.before]
        if section.table:
            parts.append("\n".join(_table_lines(section.table)))
        if section.figure:
            parts += [f"![]({section.figure.name}.svg)", section.figure.caption]
        parts += section.after
        if section.commands:
            parts.append("\n".join(("```bash", *section.commands, "```")))
    return "\n\n".join(parts) + "\n"


def _table_lines(table: Table) -> Iterator[str]:
    yield markdown_line(table.headings)
    yield markdown_line(["---"] * len(table.headings))
    yield from (markdown_line(row) for row in table.rows)


def markdown_line(cells: Iterable[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(one.replace("|", r"\|") for one in cells) + " |"


def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    require("jinja2")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megatron_alum.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
