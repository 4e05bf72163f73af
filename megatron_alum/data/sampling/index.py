"""The rows of an epoch on disk: built once, mapped by every rank, independent of batch size, ranks and mask rate.

    CACHE/NAME-<digest>.npy     structured array of `pairs.ROW` in document order
    CACHE/NAME-<digest>.json    the SHA-256 of that file, and, for people, the contents of the digest

The digest covers everything that determines the rows: the sentence table of the shard, the split's documents,
objective, lengths, seed, position in the blend, epoch, and the version of the algorithm. On one machine a file lock
decides which rank builds; across machines the file is written to a temporary name and renamed, and both would write the
same bytes. A file that differs from what was written (it is read once to check) is rebuilt, with a warning: a damaged
row would give wrong samples. If the folder cannot be written, the rows stay in memory, with one warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from megatron_alum.data.sampling.pairs import ROW, WalkSettings
from megatron_alum.data.shards.corpus import Corpus, Sentences
from megatron_alum.data.shards.files import sha256_of
from megatron_alum.data.shards.names import INDEX_CACHE

ALGORITHM_VERSION = 1
"""Increased whenever the rows for equal settings change."""
Rows = npt.NDArray[np.void]
Walk = Callable[[Sentences, WalkSettings], Rows]
logger = logging.getLogger(__name__)


def epoch_rows(corpus: Corpus, sentences: Sentences, walk: WalkSettings, *, folder: Path | None, build: Walk) -> Rows:
    """The rows of one epoch, from the cache in `folder` (default: `index-cache` beside the shard) or by `build`.

    Raises: ValueError when the sentence table is damaged.
    """
    folder = folder or Path(corpus.prefix).parent / INDEX_CACHE
    description = _description(corpus, sentences, walk)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{Path(corpus.prefix).name}-{digest}.npy"
    if (rows := _load(path)) is not None:
        return rows
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if (rows := _load(path)) is not None:
                return rows
            if path.exists():
                logger.warning("Pair index %s is not what was written there, and is rebuilt.", path)
            rows = _checked_build(corpus, sentences, walk, build)
            _store(path, rows, description)
    except OSError as error:
        logger.warning("Pair index kept in memory: cannot write %s (%s). Set --data-cache-path.", folder, error)
        return _checked_build(corpus, sentences, walk, build) if rows is None else rows
    return _load(path) if len(rows) else rows  # type: ignore[return-value]


def _description(corpus: Corpus, sentences: Sentences, walk: WalkSettings) -> dict[str, object]:
    described = {"version": ALGORITHM_VERSION, "shard": corpus.fingerprint(), **asdict(walk)}
    if walk.objective == "none":
        # Packing makes no random decision: every epoch and seed has the same rows in a different order.
        for name in ("seed", "epoch", "dataset", "short_seq_prob"):
            del described[name]
    return {**described, "first_document": sentences.first, "last_document": sentences.last}


def _checked_build(corpus: Corpus, sentences: Sentences, walk: WalkSettings, build: Walk) -> Rows:
    corpus.check_sentences()
    return build(sentences, walk)


def _load(path: Path) -> Rows | None:
    """The mapped rows, or None when there is no usable file."""
    try:
        written = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
        if written != sha256_of(path):
            return None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    rows = np.load(path, mmap_mode="r")
    assert rows.dtype == ROW
    return rows


def _store(path: Path, rows: Rows, description: dict[str, object]) -> None:
    with _replacing(path) as stream:
        np.save(stream, rows)
    described = {"sha256": sha256_of(path), "rows": len(rows), **description}
    with _replacing(path.with_suffix(".json")) as stream:
        stream.write(json.dumps(described, indent=1).encode())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name and rename it when complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclusive among the processes of this machine, if the file system has locks; released when the process ends."""
    with path.open("w") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
