"""Sentence ends of scripts with their own punctuation, for the rule-based splitter; no language need be known.

Their full stops need no white space after them: many of these scripts write none there, and many writers omit it. What
does not end a sentence:

    a stop between two digits                          three U+FF0E fourteen, 12 U+0589 30
    U+FF0E after a digit or a Latin letter             the number of a chapter
    a stop inside U+300A ... U+300B                    the title of a book
    a closing quotation mark or an exclamation mark after which the sentence goes on: languages/ja.toml, zh.toml
    a full stop between initials (Urdu)                languages/ur.toml
    the khans of "and so on" (Khmer)

The stops are Unicode's Sentence_Terminal characters (PropList.txt) that are no Latin punctuation, without the Burmese
comma U+104A, which has the property too, and with the Tibetan shads, which lack it. Greek ends questions by a
semicolon, Armenian sentences often by a colon, Ethiopic ones by two word spaces, Hindi ones by a bar.
"""

import re

from megatron_alum.data.preprocessing.languages import LanguageRules

CLOSERS = "\"'\u2018\u2019\u201c\u201d\u00ab\u00bb\u203a)\\]}"
_OWN_CLOSERS = (
    "\"'\u2019\u201d\u00bb)\\]}\u300d\u300f\uff09\u3011\u300b\u3009\uff60\u3017\u301b\uff02\uff07\uff63\uff3d"
)
STOPS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u09f7\u0f0d-\u0f12\u0f14\u104b"
    "\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b4e\u1b4f\u1b5a\u1b5b"
    "\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f\u2cf9-\u2cfb\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877"
    "\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e"
    "\uff1f\uff61"
)
_GREEK, _ARMENIAN, _INDIC, _HAN = "\u0370-\u03ff\u1f00-\u1fff", "\u0531-\u0587", "\u0900-\u0d7f", "\u3400-\u9fff"
_LATIN = ".!?\u2026\u203c\u203d\u2047-\u2049"
SPACED = rf"[{_LATIN}]+[{CLOSERS}]*\s+"
"""Latin terminators with what closes after them, and white space."""
PRESENT = re.compile(f"[{STOPS}{_GREEK}{_ARMENIAN}{_INDIC}{_HAN}\u1361\u00bb]")
"""Something in a line that may have other sentence ends than the Latin ones."""
CANDIDATE = re.compile(
    # French sets a space before the closing quotation mark
    rf"[{_LATIN}]+\s\u00bb\s+|{SPACED}"
    # a verse number between double dandas, two word spaces, or a run of stops; pairs of shads with a space between
    rf"|[{_LATIN}]*(?:\u0965\s?[\d.\-]{{1,7}}\s?\u0965|\u1361\u1361|[{STOPS}])(?:[{_LATIN}{STOPS}]|\s[\u0f0d\u0f0e])*"
    rf"[{_OWN_CLOSERS}]*\s*"
    rf"|(?<=[{_GREEK}])[;\u037e][{CLOSERS}]*\s+|(?<=[{_ARMENIAN}]):[{CLOSERS}]*\s+|(?<=[{_INDIC}])\s?\|\|?\s+"
    rf"|(?<=[{_HAN}])[!?]+(?=[{_HAN}])"
)
_STOP = re.compile(f"[{STOPS}\u1361|]")
_KANA = re.compile("[\u3041-\u30fa]")
_CLOSED = re.compile(f"[{_OWN_CLOSERS}]$")
_GOES_ON = re.compile("[,;:)\u3001\uff0c\uff1b\uff1a\u060c\u061b\uff09\u300d\u300f\u30fb]")


def is_latin(found: str) -> bool:
    """Whether a candidate consists of terminators that are judged by the words around them."""
    return found[-1].isspace() and not _STOP.search(found)


def ends(rules: LanguageRules, line: str, start: int, found: re.Match[str]) -> bool:
    """Whether the stops `found` in `line` end the sentence begun at `start`; something follows them."""
    end, after = found.span()
    run = found[0].rstrip()
    spaced = len(run) < len(found[0])
    own = _STOP.search(run)
    stop = own[0] if own else run[0]
    before, following = line[end - 1 : end], line[after]
    if stop == "\u06d4":
        return not _is_initial(rules, line[start:end], line[after : after + 12])
    if stop == "\u17d4" and (following == "\u179b" or (before == "\u179b" and not spaced)):
        return False
    if spaced:
        return line.rfind("\u300a", start, end) <= line.rfind("\u300b", start, end) or "\u300b" not in line[end:]
    if before.isdigit() and following.isdigit():
        return False
    if stop == "\uff0e" and (before.isdigit() or before.isascii() or "\uff21" <= before <= "\uff5a"):
        return False
    if stop in "!?":
        return not _KANA.search(line)  # Chinese; in Japanese they stand in names as often
    if _GOES_ON.match(following) or line.rfind("\u300a", start, end) > line.rfind("\u300b", start, after):
        return False
    return not (rules.after_quote if _CLOSED.search(run) else rules.after_mark).match(line, after)


def _is_initial(rules: LanguageRules, before: str, following: str) -> bool:
    """Whether the Urdu full stop after `before` follows an initial: names of letters, one after the other."""
    words = before[-24:].replace("\u06d4", "\u06d4 ").split()
    if not words or words[-1] not in rules.letter_names:
        return False
    in_row = len(words) > 1 and words[-2].endswith("\u06d4")
    return in_row or re.split(r"[\s\u06d4]", following)[0] in rules.letter_names
