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
_OPENERS = "\"'\u2018\u201c\u00ab(\\[{\u00bf\u00a1"
# 1: terminators of scripts with spaces, followed by a space and something that may begin a sentence; 2: CJK full stops.
_CANDIDATE = re.compile(
    rf"([.!?\u2026]+)[{_CLOSERS}]* +(?=[{_OPENERS}]*[^\Wa-z_])"
    rf"|[\u3002\uff01\uff1f\uff61]+[{_CLOSERS}\u300d\u300f\uff09]*"
)
_NEXT_WORD = re.compile(rf"[{_OPENERS}]*(\w+)")
_LAST_WORD = re.compile(rf"[^\s{_OPENERS}]+$")
_INITIAL = re.compile(r"^(?:\w[.\-])*\w$")
_ACRONYM = re.compile(r"^(?:\w\.)+\w$")
_LOOKBACK = 24
"""Characters before a terminator that are searched for its word: longer words are no abbreviations."""

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
        start = 0
        for match in _CANDIDATE.finditer(line):
            terminators = match[1]
            if terminators == "." and not _period_ends(line, start, match.start(), match.end()):
                continue
            spans.append((start, match.end()))
            start = match.end()
        spans.append((start, len(line)))
        return [span for span in (_stripped(line, *span) for span in spans) if span[0] < span[1]]


def _stripped(line: str, start: int, stop: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    while start < stop and line[start].isspace():
        start += 1
    while stop > start and line[stop - 1].isspace():
        stop -= 1
    return start, stop


def _period_ends(line: str, start: int, period: int, after: int) -> bool:
    """Whether the single period at `period` ends the sentence begun at `start`; the next one would begin at `after`."""
    following = _NEXT_WORD.match(line, after)
    next_word = following[1] if following else ""
    if next_word[:1].islower():
        return False
    found = _LAST_WORD.search(line, max(start, period - _LOOKBACK), period)
    if found is None:
        return True
    word = found[0]
    lower = word.lower()
    if lower in NEVER_FINAL or (lower in BEFORE_NUMBERS and next_word[:1].isdigit()):
        return False
    if word.isdigit():
        return found.start() > start or start > 0
    if lower in MAYBE_FINAL or _ACRONYM.match(word) or (_INITIAL.match(word) and word[0].isupper()):
        return next_word in FIRST_WORDS
    return True
