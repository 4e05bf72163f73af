"""What a configuration dataclass says about itself: its options, their types, defaults, flags and help.

A configuration is a frozen dataclass whose fields are either options or further configurations. The string literal that
follows a field is its help, read from the source by `ast`; the flag is the field's name with dashes, after the class's
`FLAG_PREFIX` if it has one (`AlumConfig.alpha` -> `--alum-alpha`).

Nothing here parses a command line; `cli.py` does.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from megatron_alum.config.checks import Noun, annotation_of

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One settable value of a configuration."""

    owner: type
    """the dataclass that holds the field"""
    path: tuple[str, ...]
    """field names from the root configuration down to this value"""
    name: str
    """flag name with underscores and prefix, unique in the whole configuration; also the YAML key"""
    kind: Any
    """the field's type: bool, int, float, str, a Literal, or a tuple of one of the first four; without `| None`"""
    may_be_none: bool
    """whether the field's type has `| None`"""
    default: Any
    """value when neither YAML nor a flag sets it; `dataclasses.MISSING` when it must be given"""
    doc: str
    """what the value means"""
    noun: str
    """placeholder of the value in help and reference"""

    @property
    def flag(self) -> str:
        """The command-line spelling."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_bool(self) -> bool:
        """Whether it may be given on the command line without a value."""
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes one or more values."""
        return typing.get_origin(self.kind) in (tuple, list)

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices; () for anything but a Literal."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are accepted, if they can be listed: the choices, or true and false."""
        return ("true", "false") if self.is_bool else self.choices

    @property
    def metavar(self) -> str:
        """The placeholder of the value in help and reference: the accepted words, or its noun."""
        return "{" + ",".join(self.words) + "}" if self.words else self.noun

    @property
    def help(self) -> str:
        """What the value means, and `required` or the default as a user would write it.

        A default of None is not mentioned if the text itself says what happens by default.
        """
        if self.default is dataclasses.MISSING:
            return f"{self.doc} (required)"
        if self.default in (None, ()):
            return self.doc if "default" in self.doc else f"{self.doc} (default: none)"
        if isinstance(self.default, bool):
            return f"{self.doc} (default: {str(self.default).lower()})"
        items = self.default if isinstance(self.default, tuple) else (self.default,)
        return f"{self.doc} (default: {' '.join(map(str, items))})"

    def convert(self, value: Any) -> Any:
        """The typed value of a text or a YAML value. Raises: ValueError whose text continues after the flag's name."""
        if self.may_be_none and (value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))):
            return None
        if self.is_list:
            convert_item = _SCALARS[typing.get_args(self.kind)[0]]
            return tuple(convert_item(item) for item in (value if isinstance(value, list | tuple) else [value]))
        if not self.choices:
            return _SCALARS[self.kind](value)
        if str(value) not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        return str(value)


def section_of(owner: type) -> tuple[str, str]:
    """(title without a full stop, text) of the section of a configuration's options, from its docstring."""
    title, _, text = (owner.__doc__ or owner.__name__).strip().partition("\n\n")
    return " ".join(title.split()).rstrip("."), " ".join(text.split())


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """{field: help} from the string literals that follow the fields of `cls`, base classes included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for statement, following in itertools.pairwise(body):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def options_of(cls: type) -> tuple[Option, ...]:
    """Every option of a configuration, in the order of the source."""
    return _options_below(cls, ())


@functools.cache
def _options_below(cls: type, path: tuple[str, ...]) -> tuple[Option, ...]:
    """Every option of `cls`, which is at `path` in the whole configuration."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    found: list[Option] = []
    for field in dataclasses.fields(cls):
        hint, below = hints[field.name], (*path, field.name)
        if dataclasses.is_dataclass(hint):
            found += _options_below(typing.cast(type, hint), below)
            continue
        assert field.default_factory is dataclasses.MISSING, f"the default of {field.name} must be a value"
        kind, may_be_none = _without_none(hint)
        found.append(
            Option(
                owner=cls,
                path=below,
                name=getattr(cls, "FLAG_PREFIX", "") + field.name,
                kind=kind,
                may_be_none=may_be_none,
                default=field.default,
                doc=docs.get(field.name, ""),
                noun=_noun_of(cls, field.name),
            )
        )
    return tuple(found)


def _noun_of(cls: type, field: str) -> str:
    """What the field's annotation calls its value, or the last word of its name."""
    found = annotation_of(cls, field, Noun)
    return found.noun if found is not None else field.rsplit("_", 1)[-1].upper()


def _without_none(hint: Any) -> tuple[Any, bool]:
    """(`X`, True) for `X | None`, (`X`, False) otherwise."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        assert len(members) == 1, f"an option may be `X` or `X | None`, not {hint}"
        return members[0], True
    return hint, False


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("must be true or false")
    return word in _TRUE


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("must be a whole number")
    try:
        return int(str(value).replace("_", "")) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        raise ValueError("must be a whole number") from None


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    try:
        return float(value)  # PyYAML reads `1e-4` as text
    except (TypeError, ValueError):
        raise ValueError("must be a number") from None


def _to_str(value: Any) -> str:
    if isinstance(value, (dict, list, bool)) or value is None:
        raise ValueError("must be text")
    return str(value)


_SCALARS: dict[type, Callable[[Any], Any]] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}
"""The converters of plain types; YAML supplies typed values, the command line text."""


def plain(value: Any) -> Any:
    """The value of an option as `config_to_dict` gives it and JSON reads it back: a list in place of a tuple."""
    return list(value) if isinstance(value, tuple) else value
