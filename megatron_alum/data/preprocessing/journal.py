"""The unfinished output of a run: append-only files and a small state that says how much of them counts.

    OUT.partial/
      lock             held while a run writes (released by the system when the process dies)
      state.json       the last checkpoint, replaced as a whole: sizes, counts, next chunk, fingerprint of the settings
      tokens.bin       packed token ids; becomes OUT.bin
      lengths.i32      tokens a sentence
      documents.i64    sentences before the end of each document, a running count
      hashes.u64       text hashes of the documents kept, under --deduplicate
      tokenizer/       becomes OUT-tokenizer

Whatever lies beyond the sizes in state.json is cut off on resume, so a run killed at any moment continues as if it
had just reached its last checkpoint. Finished files are renamed one by one, the manifest last: without OUT.json there
is no corpus.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_alum.data.preprocessing.account import Account
from megatron_alum.data.preprocessing.worker import ChunkResult, Tally
from megatron_alum.data.shards.files import shard_paths, write_index
from megatron_alum.data.shards.names import LOCK_FILE, PARTIAL_SUFFIX, PUNKT_SUFFIX

STATE_VERSION = 2
_FILES = ("tokens.bin", "lengths.i32", "documents.i64", "hashes.u64")


@dataclass
class State:
    """A checkpoint."""

    fingerprint: str
    next_file: int = 0
    """index of the input file to read on from"""
    next_chunk: int = 0
    """ordinal of the first chunk of that file that is not written yet"""
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FILES, 0))
    num_documents: int = 0
    num_sentences: int = 0
    num_tokens: int = 0
    text_bytes: int = 0
    skipped: Tally = field(default_factory=Tally)
    repaired: Tally = field(default_factory=Tally)
    account: Account = field(default_factory=Account)
    finished: bool = False
    """all parts are complete in the folder; only renaming is left"""
    version: int = STATE_VERSION


class Journal:
    """Writer of OUT.partial. Use as a context manager; `resume` continues the state found there."""

    def __init__(self, prefix: str, fingerprint: str, *, resume: bool) -> None:
        self.prefix = prefix
        self.folder = Path(f"{prefix}{PARTIAL_SUFFIX}")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._lock = self._take_lock()
        found = self._read_state() if resume else None
        if found is not None and found.fingerprint != fingerprint:
            self._lock.close()
            raise ValueError(
                f"--resume must continue with the settings and inputs the run began with, but those of {self.folder} "
                "differ. Give the same ones, or leave --resume out to start afresh."
            )
        if found is None:
            for path in self.folder.iterdir():
                if path.name != LOCK_FILE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.resumed = found is not None
        self.state = found or State(fingerprint)
        self.files: dict[str, IO[bytes]] = {}
        if not self.state.finished:
            self.files = {name: self._open_at(name, self.state.sizes[name]) for name in _FILES}

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_exc: object) -> None:
        for stream in self.files.values():
            stream.close()
        self._lock.close()

    @property
    def tokenizer_dir(self) -> Path:
        """Where the tokenizer folder stands until the run is finished."""
        return self.folder / "tokenizer"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a state has been saved that a run can continue from."""
        return (self.folder / "state.json").is_file()

    def append(self, result: ChunkResult, next_file: int, next_chunk: int, interval: tuple[int, int]) -> None:
        """Write a chunk, the bytes `interval` of the input, and note the position after it; it counts from the next
        checkpoint on."""
        state = self.state
        state.account.add(result.records, interval)
        bounds = state.num_sentences + np.cumsum(result.document_sentences, dtype=np.int64)
        self.files["tokens.bin"].write(result.tokens)
        self.files["lengths.i32"].write(result.sentence_lengths.tobytes())
        self.files["documents.i64"].write(bounds.tobytes())
        self.files["hashes.u64"].write(result.document_hashes.tobytes())
        state.num_documents += len(result.document_sentences)
        state.num_sentences += len(result.sentence_lengths)
        state.num_tokens += int(result.sentence_lengths.sum())
        state.text_bytes += result.text_bytes
        state.skipped.merge(result.skipped)
        state.repaired.merge(result.repaired)
        state.next_file, state.next_chunk = next_file, next_chunk

    def checkpoint(self) -> None:
        """Make everything written so far durable, then the state that refers to it."""
        for name, stream in self.files.items():
            stream.flush()
            os.fsync(stream.fileno())
            self.state.sizes[name] = stream.tell()
        write_atomically(self.folder / "state.json", json.dumps(asdict(self.state)).encode())

    def known_hashes(self) -> np.ndarray:
        """uint64 hashes of the documents written before this run resumed."""
        return np.fromfile(self.folder / "hashes.u64", np.uint64) if self.resumed else np.zeros(0, np.uint64)

    def finish(self, dtype: np.dtype | None, manifest_of: Callable[[Path], dict[str, Any]]) -> None:
        """Write the index and the manifest (`manifest_of` the folder) beside the tokens, then give all parts their
        names.

        A run killed in here is completed by --resume: what is renamed already is no longer found here and left alone.
        """
        if not self.state.finished:
            assert dtype is not None
            self.checkpoint()
            write_index(self.folder / "index.idx", dtype, self.folder / "lengths.i32", self.folder / "documents.i64")
            text = json.dumps(manifest_of(self.folder), indent=1, sort_keys=True) + "\n"
            write_atomically(self.folder / "manifest.json", text.encode())
            self.state.finished = True
            write_atomically(self.folder / "state.json", json.dumps(asdict(self.state)).encode())
        self._publish()

    def _publish(self) -> None:
        targets = shard_paths(self.prefix)
        moves = [
            (self.folder / "punkt", Path(f"{self.prefix}{PUNKT_SUFFIX}")),
            (self.tokenizer_dir, targets["tokenizer"]),
            (self.folder / "tokens.bin", targets["bin"]),
            (self.folder / "index.idx", targets["idx"]),
            (self.folder / "manifest.json", targets["json"]),
        ]
        if moves[-1][0].exists():
            targets["json"].unlink(missing_ok=True)  # under --overwrite: from here on the old corpus is no corpus
        for source, target in moves:
            if source.exists():
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(source, target)
        shutil.rmtree(self.folder)

    def discard(self) -> None:
        """Remove the unfinished output: nothing in it is worth resuming."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open_at(self, name: str, size: int) -> IO[bytes]:
        path = self.folder / name
        path.touch()
        if path.stat().st_size < size:
            raise ValueError(
                f"`{path}` must have at least the {size} bytes of its last checkpoint, but has {path.stat().st_size}. "
                "Leave --resume out to start afresh."
            )
        os.truncate(path, size)
        return path.open("ab")

    def _take_lock(self) -> IO[bytes]:
        stream = (self.folder / LOCK_FILE).open("wb")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise ValueError(
                f"`{self.prefix}` must not be written by two runs at once, but {self.folder} is in use. "
                "Wait for the other run or choose another --output-prefix."
            ) from None
        return stream

    def _read_state(self) -> State | None:
        path = self.folder / "state.json"
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("version") != STATE_VERSION:
            raise ValueError(f"`{path}` must be of this release, but is not. Leave --resume out to start afresh.")
        for name in ("skipped", "repaired"):
            values[name] = Tally(**values[name])
        values["account"] = Account(**values["account"])
        return State(**values)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, durable before it takes its name."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
