"""Indexed shards on disk: opened only after their parts are known to belong together.

A corpus `OUT` is four things side by side, written by `megatron-alum preprocess`:

    OUT.bin          token ids of all sentences, back to back (uint16 below 65,500 vocabulary entries, else int32)
    OUT.idx          Megatron's index: one sequence a sentence, one document an article
    OUT.json         manifest: counts, SHA-256 sums, settings, what was skipped and why
    OUT-tokenizer/   the Hugging Face tokenizer folder that made the ids

Layout of OUT.idx, little endian: magic `MMIDIDX\\0\\0`, version u64 = 1, dtype code u8, sequence count n u64, document
count d + 1 u64, then int32[n] lengths in tokens, int64[n] byte offsets into OUT.bin, int64[d + 1] document bounds in
sequences. megatron-core reads it without checking that OUT.bin is the file it was made with; `open_shards` checks.
"""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST_VERSION = 1
INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER_BYTES = 34
"""magic 9, version 8, dtype code 1, sequence count 8, document count 8"""
CHECKED_FILES = (".bin", ".idx", "-tokenizer/tokenizer.json")
"""Parts whose SHA-256 a manifest holds, by what follows the prefix."""
_ANY_KEY = "*"
_TALLY = {_ANY_KEY: {"count": int, "examples": [str]}}
_WHOLE: dict[str, Any] = {
    "files": {suffix: {"bytes": int, "sha256": str} for suffix in CHECKED_FILES},
    "tokenizer": {"vocab_size": int},
    "settings": {"shard_id?": int, "num_shards?": int},
    "num_tokens": int,
    "text_bytes": int,
    "skipped": _TALLY,
    "repaired": _TALLY,
    "left_out?": _TALLY,
    "inputs?": {"bytes?": int},
    "account?": {"records": int, "documents": int, "skipped": int, "begin_byte?": int, "end_byte?": int},
    "merged_from?": [{"bin": {"sha256": str}}],
}
"""What a manifest holds, as `_fits` reads it; "?" marks what corpora of earlier releases lack, or merged ones."""
DTYPES: dict[int, np.dtype] = {4: np.dtype("int32"), 8: np.dtype("uint16")}
"""Megatron's dtype codes that a BERT corpus can have."""


@dataclass(frozen=True)
class ShardIndex:
    """The arrays of an .idx file, memory-mapped: lengths int32 [n], byte offsets int64 [n], documents int64 [d + 1]."""

    dtype: np.dtype
    lengths: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray

    @property
    def num_sentences(self) -> int:
        """Sequences in the index."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Articles in the index."""
        return len(self.documents) - 1


@dataclass(frozen=True)
class Shards:
    """A checked corpus."""

    prefix: str
    index: ShardIndex
    manifest: dict[str, Any]
    tokenizer_dir: Path

    @cached_property
    def indexed(self) -> Any:
        """megatron-core's own reader; imported here because that takes seconds and its warnings are not ours."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from megatron.core.datasets.indexed_dataset import IndexedDataset
        return IndexedDataset(self.prefix)

    @property
    def num_documents(self) -> int:
        """Articles in the corpus."""
        return self.index.num_documents

    @property
    def num_sentences(self) -> int:
        """Sentences in the corpus."""
        return self.index.num_sentences


def shard_paths(prefix: str | Path) -> dict[str, Path]:
    """The four paths of a corpus by role: bin, idx, json, tokenizer."""
    return {
        "bin": Path(f"{prefix}.bin"),
        "idx": Path(f"{prefix}.idx"),
        "json": Path(f"{prefix}.json"),
        "tokenizer": Path(f"{prefix}-tokenizer"),
    }


def open_shards(prefix: str | Path, *, verify: bool = False) -> Shards:
    """Open the corpus `prefix` (the path without .bin) after checking that its files belong together.

    Always checked, in time independent of the size of OUT.bin: all four parts exist, the index is whole, its last byte
    offset is the size of OUT.bin, and its counts are the manifest's. `verify=True` also reads everything once and
    compares the SHA-256 sums. Raises ValueError naming the file and the remedy.
    """
    paths = shard_paths(prefix)
    for role, path in paths.items():
        if not path.exists():
            raise ValueError(
                f"`{path}` must exist, but is missing. `{prefix}` must be the output prefix of a finished "
                f"megatron-alum preprocess run (its {role} part was looked for)."
            )
    manifest = read_manifest(paths["json"])
    index = read_index(paths["idx"])
    check_index(index, paths)
    _check_counts(index, manifest, paths)
    if verify:
        require_whole_manifest(manifest, paths["json"])
        verify_checksums(prefix, manifest)
    return Shards(str(prefix), index, manifest, paths["tokenizer"])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`; ValueError when it is no manifest of this version."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` must be a JSON manifest, but cannot be read: {error}. Preprocess again.") from error
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if version != MANIFEST_VERSION:
        raise ValueError(
            f"`{path}` must be a manifest of version {MANIFEST_VERSION}, but has version {version} instead. "
            "Preprocess the corpus again with this release."
        )
    return manifest


def read_index(path: Path) -> ShardIndex:
    """Memory-map the .idx file at `path`; ValueError when its header or its size is wrong."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = stream.read(INDEX_HEADER_BYTES)
    if len(header) < INDEX_HEADER_BYTES or header[:9] != INDEX_MAGIC:
        raise ValueError(f"`{path}` must be a Megatron index, but its header is not one. Preprocess again.")
    version, code, num_sequences, num_bounds = struct.unpack("<QBQQ", header[9:])
    expected = INDEX_HEADER_BYTES + 12 * num_sequences + 8 * num_bounds
    if version != 1 or code not in DTYPES or size != expected or num_bounds < 1:
        raise ValueError(
            f"`{path}` must be a whole Megatron index of {expected} bytes with uint16 or int32 tokens, but has "
            f"{size} bytes, version {version} and dtype code {code} instead. Preprocess again."
        )
    data = np.memmap(path, mode="r", dtype=np.uint8)
    lengths_end = INDEX_HEADER_BYTES + 4 * num_sequences
    offsets_end = lengths_end + 8 * num_sequences
    return ShardIndex(
        DTYPES[code],
        data[INDEX_HEADER_BYTES:lengths_end].view(np.int32),
        data[lengths_end:offsets_end].view(np.int64),
        data[offsets_end:].view(np.int64),
    )


def write_index(path: Path, dtype: np.dtype, lengths_file: Path, documents_file: Path) -> None:
    """Write Megatron's index from int32 sentence lengths and int64 document ends kept in files, in bounded memory.

    The bytes are those of megatron-core's IndexedDatasetBuilder.finalize, which holds several Python objects a sentence
    (about 6 GB for English Wikipedia); the tests compare the two.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype)
    num_sequences = lengths_file.stat().st_size // 4
    num_documents = documents_file.stat().st_size // 8
    with path.open("wb") as out:
        out.write(INDEX_MAGIC + struct.pack("<QBQQ", 1, code, num_sequences, num_documents + 1))
        for lengths in _array_pieces(lengths_file, np.int32):
            out.write(lengths.tobytes())
        offset = 0
        for lengths in _array_pieces(lengths_file, np.int32):
            ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
            out.write((offset + ends - lengths.astype(np.int64) * dtype.itemsize).tobytes())
            offset += int(ends[-1])
        out.write(np.zeros(1, np.int64).tobytes())
        for documents in _array_pieces(documents_file, np.int64):
            out.write(documents.tobytes())
        out.flush()
        os.fsync(out.fileno())


def _array_pieces(path: Path, dtype: type) -> Iterator[np.ndarray]:
    """The array in the file, 4 MiB at a time."""
    with path.open("rb") as stream:
        while data := stream.read(1 << 22):
            yield np.frombuffer(data, dtype)


def check_index(index: ShardIndex, paths: dict[str, Path]) -> None:
    """Compare the index with the size of .bin and with itself; ValueError when they do not belong together."""
    itemsize = index.dtype.itemsize
    expected = int(index.offsets[-1]) + int(index.lengths[-1]) * itemsize if index.num_sentences else 0
    actual = paths["bin"].stat().st_size
    if expected != actual:
        raise ValueError(
            f"`{paths['bin']}` must have the {expected} bytes that `{paths['idx']}` describes, but has {actual} "
            "instead. The two files are not of one run, or one was cut short: preprocess again or copy both."
        )
    if int(index.documents[0]) != 0 or int(index.documents[-1]) != index.num_sentences:
        raise ValueError(
            f"`{paths['idx']}` must bound its documents by 0 and {index.num_sentences} sentences, but has "
            f"{int(index.documents[0])} and {int(index.documents[-1])} instead. Preprocess again."
        )
    falls = np.diff(index.documents) < 0
    if falls.any():
        raise ValueError(
            f"`{paths['idx']}` must give its documents in ascending order, but document {int(np.argmax(falls))} ends "
            "before it begins. The file is damaged: copy it again or preprocess again."
        )


def _check_counts(index: ShardIndex, manifest: dict[str, Any], paths: dict[str, Path]) -> None:
    """Counts and dtype of the manifest against those of the index."""
    num_tokens = paths["bin"].stat().st_size // index.dtype.itemsize
    for name, actual in (
        ("num_documents", index.num_documents),
        ("num_sentences", index.num_sentences),
        ("num_tokens", num_tokens),
        ("dtype", index.dtype.name),
    ):
        if manifest.get(name) != actual:
            raise ValueError(
                f"`{name}` in `{paths['json']}` must be {actual} as in the index, but is {manifest.get(name)} instead. "
                "The manifest belongs to another corpus: preprocess again or copy all four parts."
            )


def require_whole_manifest(manifest: dict[str, Any], path: Path) -> None:
    """ValueError unless everything that tools read from a manifest is there and of its kind."""
    wrong = [name.rstrip("?") for name, shape in _WHOLE.items() if not _fits(manifest, {name: shape})]
    if wrong:
        raise ValueError(
            f"`{path}` must be a whole manifest, but its {wrong[0]} is missing or not what it must be. The file was "
            "changed or damaged: copy it again or preprocess again."
        )


def _fits(value: Any, shape: Any) -> bool:
    """Whether `value` is of a type, a list of one shape, or a dictionary with these keys ("?": where it is there)."""
    if isinstance(shape, type):
        return type(value) is shape
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if not isinstance(value, dict):
        return False
    if _ANY_KEY in shape:
        return all(_fits(item, shape[_ANY_KEY]) for item in value.values())
    return all(
        _fits(value[name], inner) if (name := key.rstrip("?")) in value else key.endswith("?")
        for key, inner in shape.items()
    )


def verify_checksums(prefix: str | Path, manifest: dict[str, Any]) -> None:
    """Read the files named in the manifest once and compare their SHA-256; ValueError for the first that differs."""
    base = Path(prefix).parent
    stem = Path(prefix).name
    for suffix in CHECKED_FILES:
        entry = manifest["files"][suffix]
        path = base / f"{stem}{suffix}"
        if not path.exists():
            raise ValueError(f"`{path}` must exist, but is missing. Copy all parts of the corpus or preprocess again.")
        actual = sha256_of(path)
        if actual != entry["sha256"]:
            raise ValueError(
                f"`{path}` must have SHA-256 {entry['sha256']}, but has {actual} instead. "
                "The file was changed or damaged: copy it again or preprocess again."
            )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file at `path`, read in 4 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()
