"""Plain text: documents separated by blank lines (Google's BERT input), or one document a line.

`--format text` takes blocks between blank lines; `--format lines` takes every line. `--format stories` is the latter:
Google withdrew the files of the Stories corpus (Trinh and Le 2018), and the public reproduction of it is one text file
with a document a line (cc-stories.txt, 2,105,303 lines). A copy with blank lines between documents is a case for text;
`--format auto` tells the two apart. Documents have no ids: their place in the file stands for one.
"""

import re
from collections.abc import Iterator

from megatron_alum.data.preprocessing.readers.base import Document, Rejected, decode, repairs_of
from megatron_alum.data.preprocessing.readers.records import LineReader, RecordReader

_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n\s*")
_BLANK_LINE_TEXT = re.compile(r"\n[ \t\r]*\n\s*")


class BlankLineReader(RecordReader):
    """`--format text`: a document ends at a blank line."""

    def next_record(self, data: bytes, begin: int) -> int:
        """The byte after a blank line, when something follows it."""
        for match in _BLANK_LINE.finditer(data, max(0, begin - 64)):
            if begin <= match.end() < len(data):
                return match.end()
        return -1

    def parse(self, data: bytes, name: str) -> Iterator[Document | Rejected]:
        """One document a block."""
        text, damaged = decode(data)
        for number, block in enumerate(_BLANK_LINE_TEXT.split(text), start=1):
            if block and not block.isspace():
                yield Document(f"{name}, block {number} from there", block, repairs_of(block, damaged))


class LinesReader(LineReader):
    """`--format lines`: every line is a document."""

    def parse(self, data: bytes, name: str) -> Iterator[Document | Rejected]:
        """One document a non-blank line."""
        text, damaged = decode(data)
        for number, line in enumerate(text.split("\n"), start=1):
            if line and not line.isspace():
                yield Document(f"{name}, line {number} from there", line, repairs_of(line, damaged))
