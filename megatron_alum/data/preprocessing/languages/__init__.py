"""What the rule-based sentence splitter must know about a language: one table per language, in data files beside this
one.

A table XX.toml (ISO 639 code) holds, each field optional but `script`:

    script          the script that the language is written in
    ordinals        true where a number with a period is an ordinal ("am 3. Juni"): before a capital it ends no sentence
    never_final     abbreviations that do not end a sentence ("Dr.", "vgl.")
    before_numbers  abbreviations that do not end one before a number ("p. 5", "Dez. 7"); many are words of their own
    maybe_final     abbreviations that end one only before a word of first_words ("etc.", "Inc.", "r.")
    first_words     words that often begin sentences and seldom names, with their capital letter
    final           words of one letter, in this case, that do end a sentence although other lone letters are
    abbreviations letter_names    names of letters that spell initials with the language's own full stop
    after_quote     regular expressions for how a sentence continues after a stop and a closing quotation mark
    after_mark      the same after only a stop

Abbreviations are lower case and without the last period. The lists were written for this project.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

ANY = "en"
"""The Latin-script table for a language that is unknown or has no table."""
_LISTS = ("never_final", "before_numbers", "maybe_final", "first_words", "final", "letter_names")
_PATTERNS = ("after_quote", "after_mark")


@dataclass(frozen=True)
class LanguageRules:
    """The tables of one language and of the other scripts, combined; fields as above."""

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
    """The language of a code with region or script: `pt` for `pt-BR`."""
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
    """The rules for text in `language` (a code; None if unknown).

    One table is used for each script: the language's own if it has that script, else the one that exists. Words of
    different scripts cannot be confused, so a Hindi quotation in an English article is split well.
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
