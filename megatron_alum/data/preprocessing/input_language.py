"""The language of an input file, where the file itself says it: dumps and what wikiextractor makes of them."""

import re
from functools import lru_cache
from pathlib import Path

from megatron_alum.data.preprocessing.readers.mediawiki import wiki_of_dump
from megatron_alum.data.preprocessing.readers.streams import open_stream

_HEAD_BYTES = 1 << 14
_URL = re.compile(rb"""<doc\b[^>]*\surl=["']https?://([\w-]+)\.(?:m\.)?wiki""")
_NO_LANGUAGES = {"www", "commons", "meta", "species", "incubator"}
_OTHER_CODES = {"simple": "en"}


@lru_cache(maxsize=1024)
def input_language(path: str, format_name: str) -> str | None:
    """The language code that the file at `path` gives at its beginning; None where it gives none."""
    code = ""
    if format_name == "mediawiki":
        code = wiki_of_dump(path).language
    elif format_name == "wikiextractor":
        with open_stream(Path(path)) as stream:
            found = _URL.search(stream.read(_HEAD_BYTES))
        code = found[1].decode() if found else ""
    return None if code in _NO_LANGUAGES else _OTHER_CODES.get(code, code) or None
