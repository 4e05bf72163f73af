"""Options that name files and folders: how a field says what must be at its path, and the check at the command line.

    vocab_file: InputFile | None = None
    output: OutputFolder

A command calls `check_places` once its command line is parsed, before it imports or reads anything: whoever confuses a
file with a folder is told so in one sentence. Whether the contents are right is checked by whoever reads them.
Configurations do not check paths themselves: those of a stored run may lie on another machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from megatron_alum.config.checks import Noun, annotation_of
from megatron_alum.config.fields import Option, options_of

_PREFIX = "the prefix of shards (OUT of OUT.bin, OUT.idx and OUT.json)"


@dataclass(frozen=True)
class Place(Noun):
    """What a path names."""

    kind: Literal["file", "folder", "prefix", "any"]
    """prefix: that of shards, OUT of OUT.bin, OUT.idx and OUT.json; any: files, folders, globs or names on a hub, of
    which only the reader can say what is wrong (it says so in the words of `about`)"""
    is_output: bool = False
    """made if it is missing"""

    @property
    def noun(self) -> str:
        """FILE, FOLDER, PREFIX or PATH."""
        return "PATH" if self.kind == "any" else self.kind.upper()

    def refusal(self, path: str) -> str | None:
        """What must be at `path`, and what is there; None if that is right."""
        found = Path(path)
        if self.kind == "prefix" and not self.is_output:
            return _refused_input_prefix(path)
        if self.kind == "prefix" and (refusal := _malformed_prefix(path)) is not None:
            return refusal
        wanted = "a folder" if self.kind == "folder" else "a file"
        if self.kind == "file" and found.is_dir():
            return f"{wanted}, but {path} is a folder instead"
        if self.kind == "folder" and found.exists() and not found.is_dir():
            return f"{wanted}, but {path} is a file instead"
        if self.is_output and (parent := _file_above(found)) is not None:
            return f"a new path, but {parent}, which must be a folder, is a file instead"
        if self.is_output or self.kind == "any":
            return None
        if not found.exists():
            return f"an existing {self.kind}, but {path} does not exist"
        if found.is_file() and not found.stat().st_size:
            return f"a file with contents, but {path} is empty"
        return None


def _malformed_prefix(path: str) -> str | None:
    if path.endswith("/") or Path(path).suffix in (".bin", ".idx"):
        return f"{_PREFIX}, which has a name and no suffix, but is {path} instead"
    return None


def _refused_input_prefix(path: str) -> str | None:
    if Path(f"{path}.idx").is_file() or _is_number(path):  # a number is the weight of the prefix after it
        return None
    found = Path(path)
    if found.is_dir():
        held = sorted(str(shard.with_suffix("")) for shard in found.glob("*.idx"))
        which = f", which holds the prefixes {', '.join(held[:5])}" if held else ", in which there are no shards"
        return f"{_PREFIX}, but {path} is a folder instead{which}"
    if (refusal := _malformed_prefix(path)) is not None:
        return refusal
    if found.is_file() and found.suffix == ".json" and found.with_suffix(".idx").is_file():
        return f"{_PREFIX}, but {path} is one of their files instead. Leave {found.suffix} out"
    if found.is_file():
        return f"{_PREFIX}, but {path} is another file instead. Make shards of text by megatron-alum preprocess"
    return f"{_PREFIX}, but there is no {path}.idx. Run megatron-alum preprocess, or give where shards were moved to"


InputFile = Annotated[str, Place("file")]
InputFolder = Annotated[str, Place("folder")]
OutputFolder = Annotated[str, Place("folder", is_output=True)]
InputPrefix = Annotated[str, Place("prefix")]
OutputPrefix = Annotated[str, Place("prefix", is_output=True)]
AnyInput = Annotated[str, Place("any")]


def check_places(config: Any) -> None:
    """Check every path of a configuration. Raises: ValueError naming the option, what it must be, and what is there."""
    for option, place in places_of(type(config)):
        value = functools.reduce(getattr, option.path, config)
        for path in value if isinstance(value, tuple) else (value,):
            refusal = None if path is None else place.refusal(path)
            if refusal is not None:
                raise ValueError(f"{option.flag} must be {refusal}.")


@contextmanager
def about(flag: str) -> Iterator[None]:
    """Put `flag` before a ValueError of the body that does not begin with an option: what was given there is wrong."""
    try:
        yield
    except ValueError as error:
        if str(error).lstrip("`").startswith("--"):
            raise
        raise ValueError(f"{flag}: {error}") from error


def places_of(cls: type) -> Iterator[tuple[Option, Place]]:
    """Every option of a configuration that names a path."""
    for option in options_of(cls):
        place = annotation_of(option.owner, option.path[-1], Place)
        if place is not None:
            yield option, place


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _file_above(path: Path) -> Path | None:
    """The nearest existing parent, if it is a file, in which nothing can be made."""
    existing = next((parent for parent in path.parents if parent.exists()), None)
    return existing if existing is not None and not existing.is_dir() else None
