"""Exact de-duplication by text hash: a set of 64-bit hashes in 16 bytes an entry, and the removal of repeated
documents.

With n documents the chance that any two different ones share a hash is n * n / 2 ** 65: 1e-6 for the 6 million
articles of English Wikipedia. Open addressing with linear probing, at most half full, doubled by re-insertion.
"""

from dataclasses import replace

import numpy as np

from megatron_alum.data.preprocessing.worker import ChunkResult

_EMPTY = 0
_MIN_SLOTS = 1 << 10


class HashSet:
    """A growing set of uint64 values."""

    def __init__(self, values: np.ndarray | None = None) -> None:
        self._slots = np.zeros(_MIN_SLOTS, np.uint64)
        self._count = 0
        for value in [] if values is None else values.tolist():
            self.add(value)

    def __len__(self) -> int:
        return self._count

    def add(self, value: int) -> bool:
        """Insert `value`; True when it was new."""
        value = value or 1  # 0 marks an empty slot; the two hashes 0 and 1 are one
        if 2 * (self._count + 1) > len(self._slots):
            self._grow()
        if not _insert(self._slots, value):
            return False
        self._count += 1
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = np.zeros(2 * len(old), np.uint64)
        for value in old[old != _EMPTY].tolist():
            _insert(self._slots, value)


def _insert(slots: np.ndarray, value: int) -> bool:
    mask = len(slots) - 1
    slot = value & mask
    while (found := int(slots[slot])) != _EMPTY:
        if found == value:
            return False
        slot = (slot + 1) & mask
    slots[slot] = value
    return True


def drop_duplicates(result: ChunkResult, seen: HashSet) -> ChunkResult:
    """`result` without the documents whose hash is in `seen`; the others' hashes are added to it.

    Dropped documents are counted under "duplicate".
    """
    new = np.array([seen.add(value) for value in result.document_hashes.tolist()], bool)
    if new.all():
        return result
    sentence_is_kept = np.repeat(new, result.document_sentences)
    token_is_kept = np.repeat(sentence_is_kept, result.sentence_lengths)
    token_bytes = len(result.tokens) // len(token_is_kept)
    tokens = np.frombuffer(result.tokens, np.dtype(f"V{token_bytes}"))
    for number in np.flatnonzero(~new):
        result.skipped.add("duplicate", f"hash {int(result.document_hashes[number]):016x}")
    return replace(
        result,
        tokens=tokens[token_is_kept].tobytes(),
        sentence_lengths=result.sentence_lengths[sentence_is_kept],
        document_sentences=result.document_sentences[new],
        document_hashes=result.document_hashes[new],
    )
