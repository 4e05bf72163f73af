"""The argparse parser of every command, benchmark and example: its refusals are sentences and suggest the nearest name.

Errors are ValueErrors, which leaves printing and exit status to `main_guard` (cli.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from megatron_alum.config.words import did_you_mean, not_one_of


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; `description` is usually the docstring of the program."""

    def __init__(self, *, description: str | None = None, **options: Any) -> None:
        options = {"formatter_class": _Formatter, "allow_abbrev": False, **options}
        super().__init__(description=(description or "").strip(), **options)

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{message}. See --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but an unknown option is refused first: it may be a misspelling of one that must be given."""
        words: Sequence[str] = sys.argv[1:] if args is None else args
        known = self._option_string_actions
        unknown = [word for word in words if word[:2] == "--" != word and word.partition("=")[0] not in known]
        if unknown:
            self._refuse(unknown[0])
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, with our refusal of a word that belongs to no option."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return parsed

    def _refuse(self, word: str) -> NoReturn:
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        if not word.startswith("-"):
            raise ValueError(f"{word} must follow the option that it belongs to, but follows none. See --help.")
        hint = did_you_mean(word.partition("=")[0], flags)
        raise ValueError(f"{word} is not an option of this program.{hint or ' See --help.'}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or str(action.dest)
            raise ValueError(not_one_of(name, value, map(str, action.choices)))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves a text of several lines, such as one with an example, as it is, and wraps any other."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)
