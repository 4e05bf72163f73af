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
from collections.abc import Callable, Iterator
from typing import Any, Literal

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
    convert: Callable[[Any], Any]
    """text or YAML value -> typed value; raises ValueError"""
    default: Any
    """value when neither YAML nor a flag sets it; `dataclasses.MISSING` when it must be given"""
    doc: str
    """help text"""
    is_bool: bool = False
    """may stand on the command line without a value"""
    is_list: bool = False
    """takes one or more values"""
    choices: tuple[str, ...] = ()
    """the admitted words, for help and errors"""

    @property
    def flag(self) -> str:
        """The command-line spelling."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in help and reference: the admitted words, or the name's last word."""
        if self.is_bool:
            return "{true,false}"
        return "{" + ",".join(self.choices) + "}" if self.choices else self.path[-1].rsplit("_", 1)[-1].upper()

    @property
    def default_note(self) -> str:
        """`required`, or the default as a user would write it."""
        if self.default is dataclasses.MISSING:
            return "required"
        is_word = isinstance(self.default, bool) or self.default is None
        return f"default: {str(self.default).lower() if is_word else self.default}"


def section_of(owner: type) -> tuple[str, str]:
    """(title, text) of the section that a configuration's options stand in, from its docstring."""
    title, _, text = (owner.__doc__ or owner.__name__).strip().partition("\n\n")
    return " ".join(title.split()), " ".join(text.split())


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


def options_of(cls: type, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every option below `cls`, in the order of the source."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    prefix = getattr(cls, "FLAG_PREFIX", "")
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint), (*path, field.name))
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        convert, is_list, choices = _converter(hint)
        yield Option(
            owner=cls,
            path=(*path, field.name),
            name=prefix + field.name,
            convert=convert,
            default=default,
            doc=docs.get(field.name, ""),
            is_bool=_without_none(hint)[0] is bool,
            is_list=is_list,
            choices=choices,
        )


def _without_none(hint: Any) -> tuple[Any, bool]:
    """(`X`, True) for `X | None`, (`X`, False) otherwise."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        assert len(members) == 1, f"an option may be `X` or `X | None`, not {hint}"
        return members[0], True
    return hint, False


def _converter(hint: Any) -> tuple[Callable[[Any], Any], bool, tuple[str, ...]]:
    """(converter, takes several values, admitted words) of a field's type."""
    inner, optional = _without_none(hint)
    is_list = typing.get_origin(inner) in (tuple, list)
    choices: tuple[str, ...] = ()
    if typing.get_origin(inner) is Literal:
        choices = tuple(str(choice) for choice in typing.get_args(inner))
        scalar: Callable[[Any], Any] = str
    elif is_list:
        item = _scalar(typing.get_args(inner)[0])
        scalar = lambda value: tuple(item(v) for v in (value if isinstance(value, (list, tuple)) else [value]))  # noqa: E731
    else:
        scalar = _scalar(inner)

    def convert(value: Any) -> Any:
        if optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))):
            return None
        result = scalar(value)
        if choices and result not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return result

    return convert, is_list, choices


def _scalar(kind: Any) -> Callable[[Any], Any]:
    """The converter of one plain type; YAML hands typed values, the command line text."""
    return {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}[kind]


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
