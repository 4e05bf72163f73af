"""One shard as the sampler sees it: memory-mapped tokens, sentence table, and the documents of each split.

Documents without sentences (Megatron's own preprocessing writes them) do not count: documents are numbered by their
text. Splits are contiguous stretches of documents, rounded as megatron-core rounds them, so that `--split 949,50,1`
holds out the same articles in both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_alum.data.shards.files import ShardIndex

SPLITS = ("train", "valid", "test")
_BLOCK_SENTENCES = 1 << 22
_DIGEST_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Sentences:
    """The documents of one split of a shard; sentences and documents are numbered from 0 in the whole shard."""

    lengths: npt.NDArray[np.int32]
    """[sentences] tokens of each sentence of the shard, all >= 1"""
    offsets: npt.NDArray[np.int64]
    """[sentences] first byte of each sentence in the token file; sentences lie back to back"""
    token_bytes: int
    """bytes of a token in the token file: 2 or 4"""
    bounds: npt.NDArray[np.int64]
    """[documents + 1] first sentence of each document of the shard that has text, and the end"""
    first: int
    """first document of the split"""
    last: int
    """end (exclusive) of the documents of the split"""

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return self.last - self.first

    def start(self, sentence: int) -> int:
        """First token of a sentence, counted from the beginning of the token file."""
        return int(self.offsets[sentence]) // self.token_bytes

    def num_tokens(self, begin: int, end: int) -> int:
        """Tokens of the sentences [begin, end)."""
        return self.start(end - 1) + int(self.lengths[end - 1]) - self.start(begin)


@dataclass(frozen=True, eq=False)
class Corpus:
    """The files of one shard, mapped and not read."""

    prefix: str
    """path without .bin and .idx"""
    tokens: npt.NDArray[np.integer]
    """the .bin file, uint16 or int32"""
    index: ShardIndex
    """the .idx file"""
    bounds: npt.NDArray[np.int64]
    """[documents + 1] first sentence of each document that has text, and the end"""

    @classmethod
    def open(cls, prefix: str, index: ShardIndex) -> Corpus:
        """Map the token file that belongs to `index`.

        Raises: ValueError when there is no sentence in it (an empty file cannot be mapped either).
        """
        if not index.num_sentences:
            raise ValueError(f"{prefix} must hold at least one sentence, but is empty instead. Preprocess it again.")
        tokens = np.memmap(f"{prefix}.bin", dtype=index.dtype, mode="r")
        return cls(prefix, tokens, index, np.unique(index.documents))

    def text(self, begin: int, end: int, *, vocab_size: int) -> npt.NDArray[np.int64]:
        """The token ids [begin, end) of the .bin file.

        Raises: ValueError for an id outside the vocabulary, which only a file that was damaged or exchanged can hold.
        """
        ids = np.array(self.tokens[begin:end], dtype=np.int64)
        wrong = (ids < 0) | (ids >= vocab_size)
        if wrong.any():
            place = begin + int(np.argmax(wrong))
            sentence = np.searchsorted(self.index.offsets, place * self.index.dtype.itemsize, side="right") - 1
            document = int(np.searchsorted(self.index.documents, sentence, side="right")) - 1
            raise ValueError(
                f"`{self.prefix}.bin` must hold token ids from 0 to {vocab_size - 1}, but holds "
                f"{int(self.tokens[place])} at token {place}, in document {document}. The file is damaged or not of "
                f"this tokenizer: compare its checksum by megatron-alum inspect {self.prefix} --verify, then copy "
                "it again or preprocess again."
            )
        return ids

    @property
    def num_documents(self) -> int:
        """Documents that have text."""
        return len(self.bounds) - 1

    def split(self, shares: tuple[float, float, float], split: str) -> Sentences:
        """The documents of one split; shares sum to 1. It may be empty."""
        number = SPLITS.index(split)
        ends = [0] + [round(sum(shares[: i + 1]) * self.num_documents) for i in range(len(SPLITS))]
        return Sentences(
            lengths=self.index.lengths,
            offsets=self.index.offsets,
            token_bytes=self.index.dtype.itemsize,
            bounds=self.bounds,
            first=ends[number],
            last=ends[number + 1],
        )

    def check_sentences(self) -> None:
        """Refuse a sentence table the walk could not trust: empty sentences, or gaps between sentences.

        Reads the whole table in blocks (about a second for 150 million sentences): done once, before rows are built.
        """
        size = self.index.dtype.itemsize
        for begin in range(0, self.index.num_sentences, _BLOCK_SENTENCES):
            lengths = self.index.lengths[begin : begin + _BLOCK_SENTENCES]
            offsets = self.index.offsets[begin : begin + _BLOCK_SENTENCES + 1]
            if (lengths < 1).any():
                raise ValueError(
                    f"{self.prefix}.idx must hold sentences of at least one token, but sentence "
                    f"{begin + int(np.argmax(lengths < 1))} has none. Preprocess the corpus again."
                )
            if (np.diff(offsets) != lengths[: len(offsets) - 1].astype(np.int64) * size).any():
                raise ValueError(
                    f"{self.prefix}.idx must place its sentences back to back, but leaves gaps or overlaps. "
                    "Preprocess the corpus again."
                )

    def fingerprint(self) -> str:
        """Short digest of the sentence table: its size, beginning and end.

        The end holds cumulative offsets and document bounds, which depend on every sentence before them.
        """
        path = Path(f"{self.prefix}.idx")
        digest = hashlib.sha256(str(path.stat().st_size).encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_DIGEST_BYTES))
            stream.seek(-min(_DIGEST_BYTES, path.stat().st_size), 2)
            digest.update(stream.read(_DIGEST_BYTES))
        digest.update(self.index.offsets[-_DIGEST_BYTES // 8 :].tobytes())
        return digest.hexdigest()[:24]
