"""Whose accents are stripped when text is lower-cased: a decision by script, and by what a vocabulary holds.

Google's BERT strips every combining mark (Unicode category Mn) of an uncased model. In Latin that costs an accent; the
language-specific uncased models for Greek do the same. In Devanagari, Bengali, Thai, Arabic, Hebrew and others the same
step deletes vowels, in Japanese it turns ga into ka, in Cyrillic it merges letters; for such languages Google itself
recommends its multilingual cased model, which keeps all marks, and the models made for them (MuRIL, IndicBERT, those
of Japanese and Arabic) keep theirs too. So by default:

    a vocabulary to be trained                       marks go from Latin and Greek letters alone
    a given one with marks of other scripts          the same: stripping would make those entries useless
    a given one without, as those of Google's BERT   every mark goes, as in Google's code: its model saw such text

`--strip-accents true` or `false` decides for all scripts.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import Any

LATIN_MARKS = r"(?<=[\p{Latin}\p{Greek}])\p{Mn}+"
"""Marks on Latin and Greek letters in decomposed text (for the `tokenizers` library)."""
_BARE = re.compile("[A-Za-z\u0370-\u03ff\u00c0-\u024f\u1e00-\u1fff]")


def keeps_marks(entries: Iterable[str]) -> bool:
    """Whether an uncased vocabulary with these entries knows marks of other scripts than Latin and Greek."""
    return any(not _BARE.match(base) for entry in entries if not entry.isascii() for base in _marked(entry))


def latin_strip() -> list[Any]:
    """The normalizers that take marks from Latin and Greek letters and leave others composed as they were."""
    from tokenizers import Regex, normalizers

    return [normalizers.NFD(), normalizers.Replace(Regex(LATIN_MARKS), ""), normalizers.NFC()]


def _marked(text: str) -> list[str]:
    """What the marks of `text` stand on; an empty string for a mark alone."""
    characters = unicodedata.normalize("NFD", text)
    found, base = [], ""
    for character in characters:
        if unicodedata.category(character) == "Mn":
            found.append(base)
        else:
            base = character
    return found


@cache
def _lost_marks() -> re.Pattern[str]:
    """Characters of composed text that lose a mark to BERT's stripping and are neither Latin nor Greek."""
    # without the ideographs and Hangul, which have no marks and are three quarters of the range
    codes = chain(range(0x370, 0x3100), range(0xA000, 0xAC00), range(0xFB00, 0xFB50))
    lost = [c for c in map(chr, codes) if (bases := _marked(c)) and not any(_BARE.match(base) for base in bases)]
    return re.compile(f"[{''.join(lost)}]")


def num_lost(lines: Iterable[str]) -> int:
    """Characters of cleaned `lines` that are read differently when every mark is stripped."""
    return sum(len(_lost_marks().findall(line)) for line in lines if not line.isascii())
