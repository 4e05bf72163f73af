"""Rule-based sentence splitter: the default, with no data files and no network.

A line of cleaned text is cut after a run of terminators (. ! ? and the ellipsis), with its closing quotes and brackets,
where white space and a plausible beginning follow; CJK full stops need no white space. These do not end a sentence:

    a lower-case letter follows              "approx. ten", "Yahoo! is"
    a title or a never-final abbreviation    Dr. Mr. St. vs. e.g.
    an initial before a name                 J. R. R. Tolkien
    an abbreviation that may be final        etc. Inc. U.S. p.m. : only before a common first word (The, In, He ...)
    an abbreviation before a number          No. 5, pp. 12, Dec. 7
    the number that opens a line             1. First
    a decimal, a version, a host name        3.14, example.com: no white space follows

Agreement with Punkt on real text is measured by tools/compare_splitters.py. Cuts are character offsets: no character is
lost but the white space between sentences.
"""

import re
from typing import Protocol

_CLOSERS = "\"'\u2019\u201d\u00bb)\\]}"
_OPENERS = "\"'\u2018\u201c\u00ab([{\u00bf\u00a1"
_CURRENCIES = "$\u00a3\u20ac\u00a5"
_CJK_STOPS = "\u3002\uff01\uff1f\uff61"
# One class, one class, one class: the re module runs this five times faster than anything with groups or alternatives.
_CANDIDATE = re.compile(rf"[.!?\u2026]+[{_CLOSERS}]*\s+")
_CJK_CANDIDATE = re.compile(rf"[.!?\u2026]+[{_CLOSERS}]*\s+|[{_CJK_STOPS}]+[{_CLOSERS}\u300d\u300f\uff09]*\s*")
_CJK_STOP = re.compile(f"[{_CJK_STOPS}]")
_WORD = re.compile(r"\w+")
_INITIAL = re.compile(r"^(?:\w[.\-])*\w$")
_ACRONYM = re.compile(r"^(?:\w\.)+\w$")

NEVER_FINAL = frozenset(
    "mr mrs ms messrs mme mlle dr prof st ste mt ft gen col maj capt lt sgt cpl pvt adm cmdr brig rev hon gov sen rep "
    "pres msgr supt insp vs v cf viz e.g i.e eg ie eds trans approx dept univ asst assoc op".split()
)
"""Lower-case words that, followed by a period, do not end a sentence."""
BEFORE_NUMBERS = frozenset(
    "no nos vol vols p pp pg ch fig figs sec art ca c b d est max min "
    "jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thur thurs fri sat sun".split()
)
"""Lower-case words that, followed by a period and a digit, do not end a sentence: many are words of their own."""
MAYBE_FINAL = frozenset(
    "etc inc co corp ltd bros jr sr esq ph.d m.d b.a m.a b.s m.s d.c u.s u.k u.n u.s.a p.m a.m b.c a.d b.c.e c.e "
    "al ed ibid plc llc rd ave blvd hwy sq ft lb lbs oz mi km cm mm kg hr hrs mins secs govt intl natl dist".split()
)
"""Lower-case words that, followed by a period, end a sentence only before a common first word."""
FIRST_WORDS = frozenset(
    "A After All Also Although Among An And Another Any Around As At Because Before Between Both But By Despite "
    "Due During Each Early Even Every Following For From Further Furthermore He Her Here His How However I If In "
    "Instead Into It Its Later Like Many More Moreover Most My Nevertheless No Nor Not Now Of On Once One Only Or "
    "Other Our Over Several She Since So Some Soon Still Such That The Their Then There These They This Those "
    "Though Through Thus To Today Under Unlike Until Upon Was We Were What When Where Whether Which While Who "
    "With Within Without Yet You Your".split()
)
"""Words that begin sentences often and names seldom."""


_SUSPECTS = NEVER_FINAL | BEFORE_NUMBERS | MAYBE_FINAL


class SentenceSplitter(Protocol):
    """Anything that cuts a line of cleaned text into sentences."""

    def split(self, line: str) -> list[str]:
        """The sentences of `line` in order, without white space around them, none empty."""


class RuleSplitter:
    """`--sentence-splitter rule`."""

    def split(self, line: str) -> list[str]:
        """The sentences of `line` in order, without white space around them, none empty."""
        return [line[start:stop] for start, stop in self.spans(line)]

    def spans(self, line: str) -> list[tuple[int, int]]:
        """Character offsets [start, stop) of the sentences of `line`, ascending and disjoint."""
        spans = []
        start = len(line) - len(line.lstrip())
        stop = len(line.rstrip())
        has_cjk = not line.isascii() and _CJK_STOP.search(line)
        for match in (_CJK_CANDIDATE if has_cjk else _CANDIDATE).finditer(line, start, stop):
            end, after = match.span()
            if after == stop:
                break  # only after a CJK stop: the last sentence is taken below
            if line[end] in _CJK_STOPS or (_begins(line, after) and _ends(line, start, end, after)):
                spans.append((start, end + len(match[0].rstrip())))
                start = after
        if start < stop:
            spans.append((start, stop))
        return spans


def _begins(line: str, after: int) -> bool:
    """Whether a sentence may begin at `after`: a letter that is not lower case or a digit, after opening quotes."""
    first = line[after]
    while first in _OPENERS:
        after += 1
        if after == len(line):
            return False
        first = line[after]
    return (first.isalnum() and not first.islower()) or first in _CURRENCIES


def _ends(line: str, start: int, end: int, after: int) -> bool:
    """Whether the terminators at `end` end the sentence begun at `start`; the next one would begin at `after`."""
    if line[end] != "." or line[end + 1] in ".!?\u2026":
        return True
    word_start = max(line.rfind(" ", start, end) + 1, start)
    word = line[word_start:end].lstrip(_OPENERS)
    lower = word.lower()
    if lower not in _SUSPECTS and len(word) > 1 and "." not in word and not word.isdigit():
        return True
    if word.isdigit():
        return word_start > 0
    found = _WORD.search(line, after)
    next_word = found[0] if found else ""
    if lower in NEVER_FINAL or (lower in BEFORE_NUMBERS and next_word[:1].isdigit()):
        return False
    if lower in MAYBE_FINAL or _ACRONYM.match(word) or (_INITIAL.match(word) and word[0].isupper()):
        return next_word in FIRST_WORDS
    return True
