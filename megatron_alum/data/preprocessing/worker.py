"""The work on one chunk, in any process: read, clean, split, tokenise, pack.

`process_chunk` is a plain function of picklable arguments, so that any `concurrent.futures` executor can run it.
Objects that are costly to build (tokenizer, word cache, splitter) are kept per thread and specification. The result
holds packed arrays, no text: about a third of the input's size.
"""

import hashlib
import threading
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from megatron_alum.data.preprocessing.cleaning import clean_lines
from megatron_alum.data.preprocessing.input_language import input_language
from megatron_alum.data.preprocessing.readers.base import Chunk, Reader, Rejected
from megatron_alum.data.preprocessing.readers.detect import ReadOptions, make_reader
from megatron_alum.data.preprocessing.sentences import RuleSplitter, SentenceSplitter
from megatron_alum.data.tokenizers.accents import num_lost
from megatron_alum.data.tokenizers.word_cache import WordCache

NO_TEXT = "no text"
NO_TOKEN = "sentences left out, of characters that the tokenizer drops"
LOST_MARKS = "vowel signs or other marks that the tokenizer strips (--strip-accents false keeps them)"
MAX_LOST = 0.01
"""Up to this share of such characters a document (such as English with foreign names) is not counted."""
MAX_EXAMPLES = 5
"""Number of example ids kept for each reason to skip a document."""


@dataclass(frozen=True)
class WorkSpec:
    """Everything that determines how a chunk becomes ids, small and picklable."""

    tokenizer_file: str
    """tokenizer.json, readable by every worker"""
    tokenizer_digest: str
    """SHA-256 of that file: a later run in the same process may have another tokenizer at the same path"""
    punkt_dir: str | None
    """Punkt parameters; None for the rule-based splitter"""
    reading: ReadOptions
    language: str | None
    """of the text; None if each file is to state it"""
    min_document_chars: int
    deduplicate: bool
    strict: bool


@dataclass
class Tally:
    """Counts by reason, with the first few ids of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The total count."""
        return sum(self.counts.values())

    def add(self, reason: str, identity: str) -> None:
        """Count one document under `reason`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        ids = self.examples.setdefault(reason, [])
        if len(ids) < MAX_EXAMPLES:
            ids.append(identity[:200])

    def merge(self, other: "Tally") -> None:
        """Add the counts of `other`, keeping the earlier examples."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            ids = self.examples.setdefault(reason, [])
            ids += other.examples[reason][: MAX_EXAMPLES - len(ids)]


@dataclass
class ChunkResult:
    """A chunk as packed arrays: ids of all sentences, int32 tokens per sentence, int32 sentences per document."""

    tokens: bytes = b""
    sentence_lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    document_sentences: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    document_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """uint64 per document under --deduplicate, else empty"""
    text_bytes: int = 0
    """UTF-8 bytes of the documents kept, after cleaning"""
    records: int = 0
    """records that the reader found, kept or not"""
    skipped: Tally = field(default_factory=Tally)
    repaired: Tally = field(default_factory=Tally)
    """by reason, documents of which something was left out or altered; one document may have several reasons"""


class _Tools(threading.local):
    """What one thread of a worker process keeps between chunks."""

    spec: WorkSpec | None = None
    words: WordCache
    splitters: dict[str | None, SentenceSplitter]
    """by language; Punkt has one for all"""

    def prepare(self, spec: WorkSpec) -> None:
        """Build tokenizer and splitter for `spec` unless they exist."""
        if self.spec == spec:
            return
        self.words = WordCache(Path(spec.tokenizer_file).read_text(encoding="utf-8"))
        self.splitters = {}
        self.spec = spec

    def splitter(self, format_name: str, chunk: Chunk) -> SentenceSplitter:
        """The splitter for the text of `chunk`."""
        assert self.spec is not None
        language = None
        if self.spec.punkt_dir is None:
            language = self.spec.language or input_language(chunk.path, format_name)
        if language not in self.splitters:
            self.splitters[language] = _make_splitter(self.spec.punkt_dir, language)
        return self.splitters[language]


_TOOLS = _Tools()


def _make_splitter(punkt_dir: str | None, language: str | None) -> SentenceSplitter:
    if punkt_dir is None:
        return RuleSplitter(language)
    from megatron_alum.data.preprocessing.punkt import PunktSplitter

    return PunktSplitter(punkt_dir)


@lru_cache(maxsize=16)
def _reader(format_name: str, reading: ReadOptions) -> Reader:
    return make_reader(format_name, **asdict(reading))


def process_chunk(spec: WorkSpec, format_name: str, chunk: Chunk) -> ChunkResult:
    """Turn one chunk into packed ids. ValueError for a broken file, and under --strict for a broken document."""
    _TOOLS.prepare(spec)
    result = ChunkResult()
    lines_of: list[list[str]] = []
    for item in _reader(format_name, spec.reading).documents(chunk):
        result.records += 1
        if isinstance(item, Rejected):
            _reject(item.id, item.reason, spec if item.broken else None, chunk, result.skipped)
            continue
        lines = clean_lines(item.text)
        if sum(map(len, lines)) < spec.min_document_chars:
            reason = NO_TEXT if not lines else f"shorter than {spec.min_document_chars} characters"
            _reject(item.id, reason, spec, chunk, result.skipped)
            continue
        for reason in item.repairs:
            _reject(item.id, reason, spec, chunk, result.repaired)
        lines_of.append(lines)
    return _pack(lines_of, _TOOLS.splitter(format_name, chunk), spec, result)


def _reject(identity: str, reason: str, spec: WorkSpec | None, chunk: Chunk, tally: Tally) -> None:
    """Count a record, or under --strict refuse it; `spec` is None for records that are skipped by rule."""
    if spec is not None and spec.strict:
        raise ValueError(
            f"The document {identity} in {Path(chunk.path).name} must be whole UTF-8 text under --strict, but has: "
            f"{reason}. Repair the input, or leave --strict out to skip (or repair) and count such documents."
        )
    tally.add(reason, identity)


def _pack(lines_of: list[list[str]], splitter: SentenceSplitter, spec: WorkSpec, result: ChunkResult) -> ChunkResult:
    """`result` with the documents whose lines are `lines_of`."""
    sentences_of = [[sentence for line in lines for sentence in splitter.split(line)] for lines in lines_of]
    packed = _TOOLS.words.encode([sentence for sentences in sentences_of for sentence in sentences])
    itemsize = _TOOLS.words.dtype.itemsize
    lengths: list[int] = []
    counts: list[int] = []
    hashes: list[int] = []
    position = 0
    for lines, sentences in zip(lines_of, sentences_of, strict=True):
        own = [len(ids) // itemsize for ids in packed[position : position + len(sentences)] if ids]
        position += len(sentences)
        if not own:
            result.skipped.add(NO_TEXT, lines[0])
            continue
        if len(own) < len(sentences):
            result.repaired.add(NO_TOKEN, lines[0])
        if _TOOLS.words.strips_all_marks and num_lost(lines) > MAX_LOST * sum(map(len, lines)):
            result.repaired.add(LOST_MARKS, lines[0])
        lengths += own
        counts.append(len(own))
        encoded = "\n".join(lines).encode()
        result.text_bytes += len(encoded)
        if spec.deduplicate:
            hashes.append(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little"))
    return replace(
        result,
        tokens=b"".join(packed),
        sentence_lengths=np.array(lengths, np.int32),
        document_sentences=np.array(counts, np.int32),
        document_hashes=np.array(hashes, np.uint64),
    )
