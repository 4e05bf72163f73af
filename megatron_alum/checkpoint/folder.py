"""The folder of a run and of one checkpoint in it, and how an intact checkpoint is told from a damaged one.

    DIR/iter_0000020/            appears by a rename, so it is complete or absent
        .metadata *.distcp       tensors in megatron-core's torch_dist format (any layout can read them)
        common.pt metadata.json  the rest of dist_checkpointing's format
        rng_00000.pt             random states of one rank each, for a resume on the same layout
        config.json              configuration of the run, iteration, vocabulary, layout, data
        tokenizer/               copy of the shards' Hugging Face tokenizer folder
        COMPLETE                 JSON {"files": {name: SHA-256}}; written last
    DIR/latest_checkpointed_iteration.txt
    DIR/metrics.jsonl
    DIR/run.lock                 while a run uses the folder (lock.py)
    DIR/rolled_back_0001/        newer checkpoints and rows than the one that --load named (origin.py)

Nothing here needs megatron-core or a process group.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from megatron_alum.config.stored import unknown_names, upgraded

CONFIG_FILE = "config.json"
COMPLETE_FILE = "COMPLETE"
LATEST_FILE = "latest_checkpointed_iteration.txt"
LOCK_FILE = "run.lock"
TOKENIZER_FOLDER = "tokenizer"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""1: a smaller set of options, the ascent's loss averaged over the batch, blend weights hashed with the corpus"""
_ITERATION = re.compile(r"^iter_(\d{7,})$")
_TEMPORARY = re.compile(r"^\.(tmp|old)_iter_\d{7,}$")


def iteration_folder(root: Path, iteration: int) -> Path:
    """DIR/iter_0000020 for iteration 20."""
    return root / f"iter_{iteration:07d}"


def temporary_folder(root: Path, iteration: int) -> Path:
    """Where the checkpoint of `iteration` is written before its rename."""
    return root / f".tmp_iter_{iteration:07d}"


def replaced_folder(root: Path, iteration: int) -> Path:
    """Where an older folder of the same iteration waits for its deletion while the new one takes its name."""
    return root / f".old_iter_{iteration:07d}"


def list_iterations(root: Path) -> list[int]:
    """Iterations that have a folder below `root`, valid or not, ascending; empty if `root` does not exist."""
    if not root.is_dir():
        return []
    return sorted(
        int(match[1]) for entry in root.iterdir() if entry.is_dir() and (match := _ITERATION.match(entry.name))
    )


def named_iteration(path: Path) -> int | None:
    """The iteration of the checkpoint folder `path`; None for any other path."""
    match = _ITERATION.match(path.name)
    return int(match[1]) if match else None


def leftovers(root: Path) -> list[Path]:
    """Folders of saves that never finished."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and _TEMPORARY.match(entry.name))


def content_files(folder: Path) -> list[str]:
    """Relative names of all files of a checkpoint except COMPLETE, sorted, so that every rank sees the same order."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != COMPLETE_FILE)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is complete or absent even after a power cut: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries (renames in it), to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_complete(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of a finished checkpoint. Raises: ValueError saying what is wrong with the folder."""
    marker = folder / COMPLETE_FILE
    if not marker.is_file():
        raise ValueError(f"{folder} must hold a {COMPLETE_FILE} file, but holds none: the save was interrupted.")
    try:
        files = json.loads(marker.read_text(encoding="utf-8"))["files"]
        recorded = {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{marker} must list files and their SHA-256, but cannot be read.") from None
    present = content_files(folder)
    if sorted(recorded) != present:
        differing = sorted(set(recorded) ^ set(present))
        raise ValueError(f"{folder} must hold the files {marker.name} lists, but differs in {', '.join(differing)}.")
    return recorded


def verify_files(folder: Path, recorded: dict[str, str], names: list[str]) -> None:
    """Compare the given files with their recorded SHA-256. Raises: ValueError naming the first that differs."""
    for name in names:
        if hash_file(folder / name) != recorded[name]:
            raise ValueError(f"{folder / name} must match its SHA-256 in {COMPLETE_FILE}, but does not: it is damaged.")


def find_checkpoint(folder: str | Path) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself when it is a checkpoint; single process.

    Every file is compared with its SHA-256. Raises: ValueError when there is no valid checkpoint.
    """
    given = Path(folder)
    if named_iteration(given) is not None and given.is_dir():
        candidates = [given]
    else:
        candidates = [iteration_folder(given, iteration) for iteration in reversed(list_iterations(given))]
    reasons = []
    for candidate in candidates:
        try:
            recorded = read_complete(candidate)
            verify_files(candidate, recorded, sorted(recorded))
            return candidate
        except ValueError as error:
            reasons.append(str(error))
    detail = " ".join(reasons) or f"It {contents_of(given)}."
    raise ValueError(f"{given} must hold a checkpoint (iter_0000020/), but holds no valid one. ({detail})")


def contents_of(path: Path) -> str:
    """What an error says was found at a path: "does not exist", "is a file", "is empty", "holds a, b and 3 more"."""
    if not path.is_dir():
        return "is a file" if path.exists() else "does not exist"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "is empty"
    shown = ", ".join(names[:3])
    return f"holds {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_run_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a checkpoint: `run` (flag name -> value), `iteration`, `vocab_size`, `padded_vocab_size`, ...

    The options of a run that an older version wrote are completed and translated; names that no longer have a meaning
    are listed in `unknown_options`. Raises: ValueError when the file is missing, not a JSON object, or of an unknown
    format version.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} must be a checkpoint of this project, but has no {CONFIG_FILE}.") from None
    except ValueError:
        raise ValueError(f"{path} must be JSON, but does not parse. Use another checkpoint.") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if version not in READABLE_VERSIONS:
        readable = " or ".join(map(str, READABLE_VERSIONS))
        raise ValueError(
            f"`format_version` in {path} must be {readable}, but is {version!r} instead. Read it with the version of "
            "this project that wrote it."
        )
    if "layout" in config:  # of a run; an imported checkpoint has only the options of its network
        run = config["run"]
        return {**config, "run": upgraded(run, version=version), "unknown_options": unknown_names(run)}
    return config
