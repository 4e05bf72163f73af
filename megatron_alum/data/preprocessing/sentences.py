"""Rule-based sentence splitter: the default, which needs no training and no network.

A line of cleaned text is cut after a run of terminators (. ! ? and the ellipsis), with its closing quotes and brackets,
where white space and a plausible beginning follow; the stops of other scripts need no white space (stops.py). These do
not end a sentence:

    a lower-case letter follows              "approx. ten", "Yahoo! is"
    a title or a never-final abbreviation    Dr. Mr. St. vs. e.g.
    an initial before a name                 J. R. R. Tolkien
    an abbreviation that may be final        etc. Inc. U.S. p.m. : only before a common first word (The, In, He ...)
    an abbreviation before a number          No. 5, pp. 12, Dec. 7
    an ordinal before a name                 am 3. Juni, Friedrich II. Preussen : in German and Polish
    the number that opens a line             1. First
    a decimal, a version, a host name        3.14, example.com: no white space follows

The words are those of a language (languages/). Agreement with Punkt on real text is measured by
benchmarks/compare_splitters.py. Cuts are character offsets: nothing is lost but the white space between sentences.
"""

import re
import unicodedata
from typing import Protocol

from megatron_alum.data.preprocessing import stops
from megatron_alum.data.preprocessing.languages import rules_of

_OPENERS = "\"'\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039([{\u00bf\u00a1\u300c\u300e\uff08"
_CURRENCIES = "$\u00a3\u20ac\u00a5"
# One class, one class, one class: the re module runs this five times faster than anything with groups or alternatives.
_CANDIDATE = re.compile(stops.SPACED)
_WORD = re.compile(r"\w+")
_ACRONYM = re.compile(r"^(?:[^\W\d_]{1,3}\.-?)+[^\W\d_]{1,3}$")
_JOINED_INITIALS = re.compile(r"^[^\W\d_](?:-[^\W\d_])+$")
_ORDINAL = re.compile(r"^(?:\d{1,3}|\d\d?\.\d\d?)$")
_UNITS = frozenset("ghlmst\u043c\u043b")
_ROMAN = re.compile("^[IVXLCDM]{2,}$")
# "'s Ochtends": a Dutch sentence whose first letter is small
_CLITIC = re.compile("['\u2018\u2019][a-z] [A-Z]")
# Scripts without case where a lone letter is an abbreviation (Hangul, kana and Han have words of one character), and
# those where every word with a period is one.
_LONE = re.compile("[\u0590-\u06ff\u0750-\u077f\u0900-\u0dff]")
_THAI_LAO = re.compile("[\u0e01-\u0eff]")
_BEFORE_CHARS = 8
"""Characters before a word to search for the number whose unit it may be."""


class SentenceSplitter(Protocol):
    """Anything that cuts a line of cleaned text into sentences."""

    def split(self, line: str) -> list[str]:
        """The sentences of `line` in order, without white space around them, none empty."""


class RuleSplitter:
    """`--sentence-splitter rule`, with the rules of `language` (a code; None if unknown)."""

    def __init__(self, language: str | None = None) -> None:
        self.rules = rules_of(language)

    def split(self, line: str) -> list[str]:
        """The sentences of `line` in order, without white space around them, none empty."""
        return [line[start:stop] for start, stop in self.spans(line)]

    def spans(self, line: str) -> list[tuple[int, int]]:
        """Character offsets [start, stop) of the sentences of `line`, ascending and disjoint."""
        spans = []
        start = len(line) - len(line.lstrip())
        stop = len(line.rstrip())
        other = not line.isascii() and stops.PRESENT.search(line)
        for match in (stops.CANDIDATE if other else _CANDIDATE).finditer(line, start, stop):
            end, after = match.span()
            if after == stop:
                break  # only after a stop of another script: the last sentence is taken below
            if other and not stops.is_latin(match[0]):
                cut = stops.ends(self.rules, line, start, match)
            else:
                cut = _begins(line, after) and self._ends(line, start, end, after)
            if cut:
                spans.append((start, end + len(match[0].rstrip())))
                start = after
        if start < stop:
            spans.append((start, stop))
        return spans

    def _ends(self, line: str, start: int, end: int, after: int) -> bool:
        """Whether the terminators at `end` end the sentence begun at `start`; the next one would begin at `after`."""
        if line[end] != "." or line[end + 1] in ".!?\u2026":
            return True
        word_start = max(line.rfind(" ", start, end) + 1, start)
        word = line[word_start:end].lstrip(_OPENERS)
        rules, lower = self.rules, word.lower()
        if len(word) > 1 and word.isascii() and word.isalpha() and lower not in rules.suspects and not word.isupper():
            return True  # a plain word, which most are: nothing below concerns it
        elided = lower.replace("\u2019", "'").rpartition("'")[2]  # "l'on. Verdi"
        if len(elided) > 1 and elided in rules.suspects:
            lower = elided
        if lower in rules.never_final or (lower in rules.before_numbers and _number_follows(line, after)):
            return False
        if word.isdigit() and word_start == 0:
            return False
        # a few characters only: the line may be a whole book
        before = line[max(0, word_start - _BEFORE_CHARS) : word_start].rstrip()
        is_unit = word in _UNITS and before[-1:].isdigit()  # "100 m. Later"
        if lower in rules.maybe_final or (_may_be_initial(word) and not is_unit):
            return self._often_begins(line, after)
        if rules.ordinals and _is_ordinal(word):
            return self._often_begins(line, after)
        return not _THAI_LAO.match(line, end - 1) and not (_LONE.match(word) and self._is_lone(word, before))

    def _is_lone(self, word: str, before: str) -> bool:
        """Whether `word` is one letter with its marks that is not a word; after a number it is a unit or an era."""
        letters = [unicodedata.category(character)[0] for character in word]
        return letters.count("L") == 1 == len(set(letters) - {"M"}) and not (
            word in self.rules.final or before[-1:].isdigit()
        )

    def _often_begins(self, line: str, position: int) -> bool:
        """Whether the first word from `position` often begins sentences; an initial or part of a name does not
        count."""
        found = _WORD.search(line, position)
        if not found:
            return False
        word, after = found[0], found.end()
        following = line[after : after + 1]
        if (following == "." and len(word) == 1) or (following == "-" and line[after + 1 : after + 2].isalnum()):
            return False
        return word in self.rules.first_words or (following in ("'", "\u2019") and word + "'" in self.rules.first_words)


def _begins(line: str, after: int) -> bool:
    """Whether a sentence may begin at `after`: a letter that is not lower case or a digit, after opening quotes."""
    first = line[after]
    while first in _OPENERS:
        if _CLITIC.match(line, after):
            return True
        after += 2 if line[after : after + 2] == "\u00ab " else 1
        if after >= len(line):
            return False
        first = line[after]
    return (first.isalnum() and not first.islower()) or first in _CURRENCIES


def _number_follows(line: str, position: int) -> bool:
    """Whether the first word from `position` is a number in Arabic or Roman digits."""
    found = _WORD.search(line, position)
    return found is not None and (found[0][0].isdigit() or _ROMAN.match(found[0]) is not None)


def _may_be_initial(word: str) -> bool:
    """Whether `word` is an initial of a script with case, several of them, or an abbreviation of several words."""
    if len(word) == 1:
        return word.islower() or word.isupper()
    return ("." in word and _ACRONYM.match(word) is not None) or (
        word[1:2] == "-" and _JOINED_INITIALS.match(word) is not None
    )


def _is_ordinal(word: str) -> bool:
    """Whether `word` is a number that is not a year, the beginning of a date, or a Roman number."""
    return _ORDINAL.match(word) is not None or _ROMAN.match(word) is not None
