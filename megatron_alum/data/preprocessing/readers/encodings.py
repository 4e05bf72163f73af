"""Which encoding text that is not UTF-8 is probably in, by the name that iconv knows.

The name goes into the command that converts the file, and a wrong one would change letters without a word. Latin text
is told by its letters: each encoding is tried with the alphabets of the languages written in it, and the language that
explains most of what is not ASCII wins. The same byte is n with a tilde in Latin-1 and n with an acute in Latin-2:
only one of them is a letter of Polish.
"""

import re

from megatron_alum.config.extras import require

_OTHER_ICONV_NAMES = {
    "euc_jis_2004": "EUC-JISX0213",
    "shift_jis_2004": "SHIFT_JISX0213",
    "shift_jisx0213": "SHIFT_JISX0213",
    "latin_1": "LATIN1",
    "mac_iceland": "MAC-IS",
    "mac_latin2": "MAC-CENTRALEUROPE",
    "mac_roman": "MACINTOSH",
}
"""Of Python's codecs whose own names iconv does not know."""
NOT_IN_ICONV = ["cp1006", "cp720", "hz", "kz1048", "mac_greek", "mac_turkish", "ptcp154"]
"""Codecs of Python, rare ones, that iconv lacks."""
_WESTERN = (
    "\u00e4\u00f6\u00fc\u00df",  # German
    "\u00e0\u00e2\u00e6\u00e7\u00e8\u00e9\u00ea\u00eb"  # French, Dutch
    "\u00ee\u00ef\u00f4\u00f9\u00fb\u00fc\u00ff\u0153",
    "\u00e0\u00e1\u00e2\u00e3\u00e7\u00e8\u00e9\u00ea"  # Spanish, Portuguese, Catalan
    "\u00ed\u00ef\u00f1\u00f2\u00f3\u00f4\u00f5\u00fa\u00fc",
    "\u00e0\u00e8\u00e9\u00ec\u00f2\u00f9",  # Italian
    "\u00e5\u00e4\u00f6\u00e6\u00f8\u00e9",  # Swedish, Finnish, Danish, Norwegian
    "\u00e1\u00e9\u00ed\u00f3\u00fa\u00fd\u00f0\u00fe\u00e6\u00f6",  # Icelandic
)
_CENTRAL = (
    "\u0105\u0107\u0119\u0142\u0144\u00f3\u015b\u017a\u017c",  # Polish
    "\u00e1\u010d\u010f\u00e9\u011b\u00ed\u0148\u00f3\u0159\u0161"  # Czech, Slovak
    "\u0165\u00fa\u016f\u00fd\u017e\u00e4\u013a\u013e\u00f4\u0155",
    "\u00e1\u00e9\u00ed\u00f3\u00f6\u0151\u00fa\u00fc\u0171",  # Hungarian
    "\u0103\u00e2\u00ee\u015f\u0163",  # Romanian
    "\u010d\u0107\u0111\u0161\u017e",  # Croatian, Slovene
)
_TURKISH = ("\u00e7\u011f\u0131\u00f6\u015f\u00fc\u00e2\u00ee\u00fb",)
_LETTERS = (
    ("WINDOWS-1252 or Latin-1", "cp1252", _WESTERN),
    ("WINDOWS-1250", "cp1250", _CENTRAL),
    ("ISO-8859-2", "iso8859_2", _CENTRAL),
    ("WINDOWS-1254 or Latin-5", "cp1254", _TURKISH),
)
"""Name for the reader (iconv takes its first word), Python's codec, small letters beyond ASCII by language."""


def probable_encoding(head: bytes, text: str) -> str:
    """A name that iconv knows, for `head`, which `text` is by UTF-8 with surrogate escapes.

    Text in Latin letters has isolated non-ASCII ones, too few for statistics.
    """
    runs = re.findall("[\udc80-\udcff]+", text)
    alone = sum(len(run) <= 2 for run in runs)
    if len("".join(runs)) < 0.2 * len(head) and alone > 0.9 * len(runs):
        return _of_latin_letters(head)
    require("charset_normalizer")
    from charset_normalizer import from_bytes

    best = from_bytes(head[:20_000], cp_exclusion=NOT_IN_ICONV).best()
    return iconv_name(best.encoding) if best else "WINDOWS-1252 or another"


def iconv_name(codec: str) -> str:
    """What iconv calls a codec of Python."""
    return _OTHER_ICONV_NAMES.get(codec) or codec.upper().replace("_", "-")


def _of_latin_letters(head: bytes) -> str:
    """The encoding whose languages explain most of the non-ASCII letters of `head`; the first of several."""
    best, name = -1, ""
    for candidate, codec, languages in _LETTERS:
        text = head.decode(codec, "replace").lower()
        beside = [*re.findall(r"[a-z]([^\x00-\x7f])", text), *re.findall(r"([^\x00-\x7f])(?=[a-z])", text)]
        explained = max(sum(map(letters.__contains__, beside)) for letters in languages)
        if explained > best:
            best, name = explained, candidate
    return name
