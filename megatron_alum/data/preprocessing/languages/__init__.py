"""What the rule-based sentence splitter must know of a language: one table a language, data files beside this one.

A table XX.toml (ISO 639 code) holds, each field optional but `script`:

    script          the script that the language is written in
    ordinals        true where a number with a period is an ordinal ("am 3. Juni"): before a capital it ends no sentence
    never_final     abbreviations that do not end a sentence ("Dr.", "vgl.")
    before_numbers  those that do not before a number ("p. 5", "Dez. 7"); many are words of their own
    maybe_final     those that end one only before a word of first_words ("etc.", "Inc.", "r.")
    first_words     words that begin sentences often and names seldom, as they stand there
    final           words of one letter, so written, that do end a sentence where other lone letters are abbreviations
    letter_names    names of letters that spell initials with the language's own full stop
    after_quote     regular expressions of what a sentence goes on with after a stop and a closing quotation mark
    after_mark      the same after a stop alone

Abbreviations are lower case and without the last period. The lists were written for this project.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

ANY = "en"
"""The table of Latin script for a language that is not known or has none."""
_LISTS = ("never_final", "before_numbers", "maybe_final", "first_words", "final", "letter_names")
_PATTERNS = ("after_quote", "after_mark")


@dataclass(frozen=True)
class LanguageRules:
    """The tables of one language and of the other scripts, joined; fields as above."""

    ordinals: bool
    never_final: frozenset[str]
    before_numbers: frozenset[str]
    maybe_final: frozenset[str]
    first_words: frozenset[str]
    final: frozenset[str]
    letter_names: frozenset[str]
    after_quote: re.Pattern[str]
    after_mark: re.Pattern[str]
    suspects: frozenset[str]
    """all abbreviations"""


def primary(code: str) -> str:
    """The language of a code with region or script: `pt-BR` is `pt`."""
    return code.lower().replace("_", "-").split("-")[0]


@cache
def tables() -> dict[str, dict[str, Any]]:
    """{language: its table}."""
    found = {}
    for entry in files(__package__).iterdir():
        if entry.name.endswith(".toml"):
            found[entry.name.removesuffix(".toml")] = tomllib.loads(entry.read_text(encoding="utf-8"))
    return found


@cache
def rules_of(language: str | None) -> LanguageRules:
    """The rules for text in `language` (a code; None: not known).

    Of each script one table counts: the language's own where it is of that script, else the one there is. Words of
    different scripts cannot be confused, so that a Hindi quotation is split well in an English article.
    """
    own = primary(language) if language else ANY
    chosen = {
        str(table["script"]): name for name, table in tables().items() if name == ANY or table["script"] != "Latin"
    }
    if own in tables():
        chosen[str(tables()[own]["script"])] = own
    picked = [tables()[name] for name in chosen.values()]
    lists = {name: frozenset(word for table in picked for word in table.get(name, "").split()) for name in _LISTS}
    patterns = {name: "|".join(p for table in picked for p in table.get(name, "").split()) for name in _PATTERNS}
    return LanguageRules(
        **lists,  # type: ignore[arg-type]
        **{name: re.compile(pattern) for name, pattern in patterns.items()},  # type: ignore[arg-type]
        ordinals=any(table.get("ordinals", False) for table in picked),
        suspects=lists["never_final"] | lists["before_numbers"] | lists["maybe_final"],
    )
