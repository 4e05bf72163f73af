"""Command line and YAML for configuration dataclasses, and the guard around every tool's `main`.

    config = parse_config(RunConfig, argv, description="...")

Precedence: defaults < YAML (`--config FILE`) < flags. YAML is flat and uses the flags' names. An unknown
name is an error that suggests the nearest known one. A boolean flag takes true or false; without a value it means true.

User errors are ValueErrors with one sentence; `main_guard` prints it and exits with status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

import yaml

from megatron_alum.config.extras import MissingExtraError
from megatron_alum.config.fields import Option, options_of, plain, section_of
from megatron_alum.config.parser import Parser
from megatron_alum.config.places import Place
from megatron_alum.config.words import did_you_mean

T = TypeVar("T")


def main_guard(fn: Callable[[], None]) -> None:
    """Run `fn`; turn a user's error (ValueError, OSError, missing extra) into `error: <sentence>` on stderr, status 2.

    Ctrl-C ends with status 130 and no traceback. Under torchrun all ranks refuse the same input, so a ValueError is
    printed once per node, by local rank 0.

    A member of a process group exits after an error without destroying the group: the others may be in a collective
    that it never joins, and NCCL's shutdown would wait for them. torchrun then ends them and shows the traceback.
    """
    try:
        fn()
    except (ValueError, OSError, MissingExtraError) as error:
        if isinstance(error, OSError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {_sentence(error)}", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        _leave(130)
    except Exception:
        if not _has_joined_others():
            raise
        traceback.print_exc()
        _leave(1)


def _sentence(error: Exception) -> str:
    """What a user reads; the system's own errors name their file first and no number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename} cannot be used: {error.strerror[0].lower()}{error.strerror[1:]}."
    return str(error)


def _leave(status: int) -> NoReturn:
    if _has_joined_others():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _has_joined_others() -> bool:
    """Whether this process is part of a process group; found out without importing torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


class _Once(argparse.Action):
    """A list without default values: a second `--labels` would replace the values of the first instead of adding to
    them.

    A list with default values (`--seeds`) is a setting like any other: the last one counts.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise ValueError(f"{option_string} must be given once, with all its values, but is given again.")
        setattr(namespace, self.dest, values)


def parse_config(
    cls: type[T],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    usage: str = "[options]",
    helps: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    infer: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> T:
    """The configuration described by `argv` (default: the process's arguments) and the YAML file that it names.

    `usage` follows the program's name in --help, and `helps` {name: text} replace the help of options. Those named in
    `without` have no effect in this program: it does not know them, and they keep their defaults.
    `defaults` {name: value} replace those of the dataclasses, in --help too. `infer` turns the given options
    {name: value} into defaults for others (those of a run to continue, or the sizes of a model to start from).
    Raises: ValueError naming the flag for unknown names, wrong types, missing values and failed checks.
    """
    options = {option.name: option for option in options_of(cls) if option.name not in without}
    texts = {name: _help(option, defaults or {}) for name, option in options.items()} | dict(helps or {})
    parser = _build_parser(options, texts, description=description, usage=usage)
    given = vars(parser.parse_args(argv))
    from_file = read_yaml(given.pop("config"), options)
    from_flags = {name: _convert(options[name], value) for name, value in given.items()}
    inferred = infer({**from_file, **from_flags}) if infer is not None else {}
    try:
        return build_config(cls, [defaults or {}, inferred, from_file, from_flags])
    except ValueError as error:
        hint = " Options that were not given are those of --load or --init-from." if inferred else ""
        raise ValueError(f"{error}{hint}") from None


def build_config(cls: type[T], layers: Sequence[Mapping[str, Any]]) -> T:
    """`cls` from layers of {option name: typed value}, later layers over earlier ones."""
    options = {option.name: option for option in options_of(cls)}
    values: dict[str, Any] = {}
    for layer in layers:
        values.update(layer)
    missing = [o.flag for o in options.values() if o.default is dataclasses.MISSING and o.name not in values]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given, but {'is' if len(missing) == 1 else 'are'} not.")
    by_path = {options[name].path: value for name, value in values.items()}
    return _instantiate(cls, by_path)


def config_to_dict(config: Any) -> dict[str, Any]:
    """{option name: value}, flat, ready for JSON or YAML and for `config_from_dict`."""
    flat = {}
    for option in options_of(type(config)):
        value = functools.reduce(getattr, option.path, config)
        flat[option.name] = plain(value)
    return flat


def config_from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The configuration written by `config_to_dict`; raises ValueError for names that this version does not know."""
    options = {option.name: option for option in options_of(cls)}
    return build_config(cls, [_checked_layer(values, options, "the stored configuration")])


def format_changes(config: Any) -> str:
    """One `flag value` line for each option whose value is not its default, under the name of its section.

    A default of None that a configuration fills in (--num-layers from --model-size) counts as changed: it was inferred.
    """
    lines, section, flat = [], None, config_to_dict(config)
    for option in options_of(type(config)):
        value = flat[option.name]
        if option.default is not dataclasses.MISSING and value == plain(option.default):
            continue
        if option.path[:-1] != section:
            section = option.path[:-1]
            lines.append(f"[{'.'.join(section) or type(config).__name__}]")
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append(f"  {option.flag} {shown.lower() if isinstance(value, bool) else shown}")
    return "\n".join([*lines, "Every other option has its default (--help)."])


def read_yaml(path: str | None, options: Mapping[str, Option]) -> dict[str, Any]:
    """{option name: typed value} of a flat YAML file; keys may use dashes or underscores; {} for no file.

    Raises: ValueError for a path without a file, a file that is not a flat mapping, unknown keys and wrong types;
    OSError when unreadable.
    """
    if path is None:
        return {}
    if (refusal := Place("file").refusal(path)) is not None:
        raise ValueError(f"--config must be {refusal}.")
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--config: {path} must be a YAML file, but does not parse: {reason}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold `name: value` lines, but holds a {type(loaded).__name__} instead.")
    return _checked_layer(loaded, options, path)


def _checked_layer(values: Mapping[str, Any], options: Mapping[str, Option], source: str) -> dict[str, Any]:
    layer = {}
    for key, value in values.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name not in options:
            raise ValueError(f"{source}: {_unknown_name(name, options)}")
        layer[name] = _convert(options[name], value)
    return layer


def _help(option: Option, defaults: Mapping[str, Any]) -> str:
    """The help of an option whose default may be one of `defaults`.

    A default in place of a value that must otherwise be given is not shown: it stands for something that is not used.
    """
    if option.name not in defaults:
        return option.help
    if option.default is dataclasses.MISSING:
        return option.doc
    return dataclasses.replace(option, default=defaults[option.name]).help


def _build_parser(options: Mapping[str, Option], texts: Mapping[str, str], *, description: str, usage: str) -> Parser:
    parser = Parser(description=description, usage=f"%(prog)s {usage}", argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", default=None, metavar="FILE", help="YAML file of `flag-name: value` lines")
    groups: dict[type, argparse._ArgumentGroup] = {}
    for option in options.values():
        if option.owner not in groups:
            title, text = section_of(option.owner)
            groups[option.owner] = parser.add_argument_group(title, text or None)
        extra: dict[str, Any] = {"nargs": "+"} if option.is_list else {}
        if option.is_list and option.default in (dataclasses.MISSING, None, ()):
            extra["action"] = _Once
        if option.is_bool:
            extra = {"nargs": "?", "const": "true"}
        text = texts[option.name].replace("%", "%%")
        groups[option.owner].add_argument(option.flag, dest=option.name, metavar=option.metavar, help=text, **extra)
    return parser


def _convert(option: Option, value: Any) -> Any:
    try:
        return option.convert(value)
    except ValueError as error:
        hint = did_you_mean(value, option.words)
        shown = " ".join(map(str, value)) if option.is_list and isinstance(value, list) else value
        raise ValueError(f"{option.flag} {error}, but is {shown!r} instead.{hint}") from None


def _unknown_name(name: str, options: Mapping[str, Option]) -> str:
    hint = did_you_mean(name, [option.flag for option in options.values()])
    return f"{name} is not an option of this program.{hint or ' See --help.'}"


def _instantiate(cls: type[T], by_path: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> T:
    """Build nested dataclasses from the inside out; their __post_init__ checks raise ValueError."""
    arguments: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            arguments[name] = _instantiate(cast(type, hint), by_path, (*path, name))
        elif (*path, name) in by_path:
            arguments[name] = by_path[*path, name]
    return cls(**arguments)
