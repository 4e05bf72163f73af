"""The language of an input file, where the file itself says it: dumps and what wikiextractor makes of them."""

import re
from functools import lru_cache
from pathlib import Path

from megatron_alum.data.readers.streams import open_stream

_HEAD_BYTES = 1 << 14
_SAID = {
    # xml:lang of the root; a dump whose root lacks it names its wiki in <siteinfo>
    "mediawiki": re.compile(
        rb"""<mediawiki\b[^>]*\sxml:lang=["']([\w-]+)["']|<base>https?://([\w-]+)\.wiki|<dbname>([a-z_]+?)wiki"""
    ),
    "wikiextractor": re.compile(rb"""<doc\b[^>]*\surl=["']https?://([\w-]+)\.(?:m\.)?wiki"""),
}
_NO_LANGUAGES = {"www", "commons", "meta", "species", "incubator"}
_OTHER_CODES = {"simple": "en"}


@lru_cache(maxsize=1024)
def input_language(path: str, format_name: str) -> str | None:
    """The language code that the file at `path` gives in its first 16 KiB of text; None where it gives none."""
    if format_name not in _SAID:
        return None
    with open_stream(Path(path)) as stream:
        found = _SAID[format_name].search(stream.read(_HEAD_BYTES))
    code = next((group.decode() for group in found.groups() if group), "") if found else ""
    return None if code in _NO_LANGUAGES else _OTHER_CODES.get(code, code) or None
