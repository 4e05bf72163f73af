"""Cleaning of raw text, and nothing that a rule here does not name.

    1. Unicode NFC, and U+FFFD for lone surrogates (JSON may carry them; they have no UTF-8).
    2. Line ends: CR LF, CR, VT, FF, NEL, LS and PS all become a newline.
    3. Control characters (category Cc) and the byte-order mark U+FEFF are removed; a tab counts as white space.
    4. Any run of white space within a line becomes one space; lines are stripped; empty lines go.

Format characters other than the BOM (zero-width joiners, directional marks) stay: they carry meaning in some scripts,
and every tokenizer has its own rule for them. `clean_lines` is called once a document and is tuned for text that
needs nothing.
"""

import re
import unicodedata

# str.splitlines also breaks at FS, GS, RS (U+001C..1E), which are control characters here and go by rule 3.
_LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_lines(text: str) -> list[str]:
    """The non-empty lines of `text` after the rules of this module."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    if text.replace("\n", "").isprintable():  # no control, no other line end, no white space but the plain space
        lines = text.split("\n")
    else:
        lines = _LINE_END.split(_REMOVED.sub("", text))
    cleaned = []
    for line in lines:
        if "  " in line or not line.isprintable():
            line = " ".join(line.split())
        else:
            line = line.strip(" ")
        if line:
            cleaned.append(line)
    return cleaned
