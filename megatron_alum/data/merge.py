"""Joining corpora made by the same tokenizer: the parts of a job array in order, or different corpora into one.

Token files are copied one after the other, document bounds are shifted, the index is written anew. Shards of one input
(`--num-shards`) given in order make the bytes that a single run would have made.
"""

import dataclasses
import glob
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_alum.data.journal import Journal, State
from megatron_alum.data.manifest import describe_parts, tally_entry
from megatron_alum.data.progress import Progress
from megatron_alum.data.settings import fingerprint
from megatron_alum.data.shards import Shards, open_shards, read_manifest, shard_paths
from megatron_alum.data.worker import MAX_EXAMPLES, Tally

_COPY_BYTES = 4 << 20
_INDEX_PIECE = 1 << 20


def find_parts(words: Sequence[str]) -> list[str]:
    """Prefixes of the corpora that `words` name: prefixes, manifests (.json) or globs of them, sorted within a glob."""
    prefixes = []
    for word in words:
        matches = sorted(glob.glob(word)) if glob.has_magic(word) else [word]
        if not matches:
            raise ValueError(f"`--input` must name corpora, but {word} matches nothing.")
        prefixes += [match.removesuffix(".json") for match in matches]
    if len(set(prefixes)) != len(prefixes):
        raise ValueError("`--input` must name each corpus once, but names one twice.")
    return prefixes


def merge_shards(
    prefixes: Sequence[str], output_prefix: str, *, verify: bool = True, show: bool = True
) -> dict[str, Any]:
    """Join the corpora `prefixes` in this order into `output_prefix`; returns the manifest.

    Raises ValueError when a part is damaged, when tokenizers differ, when shards of one input are missing or out of
    order, or when the output exists.
    """
    if shard_paths(output_prefix)["json"].exists():
        raise ValueError(f"`--output-prefix` must name a new corpus, but {output_prefix}.json exists. Choose another.")
    parts = [open_shards(prefix, verify=verify) for prefix in prefixes]
    _check_tokenizers(parts)
    _check_order(parts)
    with Journal(output_prefix, fingerprint(list(prefixes)), resume=False) as journal:
        try:
            shutil.copytree(parts[0].tokenizer_dir, journal.tokenizer_dir)
            total = sum(shard_paths(part.prefix)["bin"].stat().st_size for part in parts)
            with Progress(total, show=show, what="merge") as progress:
                for part in parts:
                    _append(journal, part, progress)
            manifest = _manifest(journal.state, parts)
            journal.finish(parts[0].index.dtype, lambda folder: {**_files(folder), **manifest})
        except BaseException:
            journal.discard()
            raise
    return read_manifest(shard_paths(output_prefix)["json"])


def _append(journal: Journal, part: Shards, progress: Progress) -> None:
    state = journal.state
    with shard_paths(part.prefix)["bin"].open("rb") as source:
        _copy(source, journal.files["tokens.bin"], progress)
    for start in range(0, part.num_sentences, _INDEX_PIECE):
        journal.files["lengths.i32"].write(part.index.lengths[start : start + _INDEX_PIECE].tobytes())
    for start in range(1, part.num_documents + 1, _INDEX_PIECE):
        bounds = part.index.documents[start : start + _INDEX_PIECE] + state.num_sentences
        journal.files["documents.i64"].write(bounds.astype(np.int64).tobytes())
    state.num_sentences += part.num_sentences
    state.num_documents += part.num_documents
    state.num_tokens += part.manifest["num_tokens"]
    state.text_bytes += part.manifest["text_bytes"]
    for name, tally in (("skipped", state.skipped), ("repaired", state.repaired)):
        entries = part.manifest[name]
        counts = {reason: entry["count"] for reason, entry in entries.items()}
        examples = {reason: entry["examples"][:MAX_EXAMPLES] for reason, entry in entries.items()}
        tally.merge(Tally(counts, examples))


def _copy(source: IO[bytes], target: IO[bytes], progress: Progress) -> None:
    while piece := source.read(_COPY_BYTES):
        target.write(piece)
        progress.step(len(piece))


def _files(folder: Path) -> dict[str, Any]:
    return describe_parts(folder / "tokens.bin", folder / "index.idx", folder / "tokenizer")


def _manifest(state: State, parts: list[Shards]) -> dict[str, Any]:
    """Counts and origin of the joined corpus; the files are described when they are written."""
    return {
        "num_documents": state.num_documents,
        "num_sentences": state.num_sentences,
        "num_tokens": state.num_tokens,
        "text_bytes": state.text_bytes,
        "skipped": tally_entry(dataclasses.asdict(state.skipped)),
        "repaired": tally_entry(dataclasses.asdict(state.repaired)),
        "settings": parts[0].manifest["settings"] if _one_input(parts) else {},
        "inputs": parts[0].manifest["inputs"] if _one_input(parts) else {},
        "merged_from": [
            {"name": Path(part.prefix).name, "documents": part.num_documents, "bin": part.manifest["files"][".bin"]}
            for part in parts
        ],
    }


def _check_tokenizers(parts: list[Shards]) -> None:
    """All parts must have ids of one vocabulary."""
    first = parts[0].manifest["files"]["-tokenizer/tokenizer.json"]["sha256"]
    for part in parts[1:]:
        if part.manifest["files"]["-tokenizer/tokenizer.json"]["sha256"] != first:
            raise ValueError(
                f"`--input` must be corpora of one tokenizer, but {part.prefix} was made by another than "
                f"{parts[0].prefix}. Preprocess one of them again."
            )


def _one_input(parts: list[Shards]) -> bool:
    """Whether the parts are all the shards of one input with one set of settings, in order."""
    settings = [dict(part.manifest.get("settings", {})) for part in parts]
    ids = [one.pop("shard_id", None) for one in settings]
    same = all(one == settings[0] for one in settings) and settings[0].get("num_shards") == len(parts)
    return same and ids == list(range(len(parts)))


def _check_order(parts: list[Shards]) -> None:
    """Shards of one input must be all there, in order: a forgotten one would go unnoticed."""
    settings = [part.manifest.get("settings", {}) for part in parts]
    numbers = {one.get("num_shards", 1) for one in settings}
    if numbers == {1} or len(numbers) > 1:
        return
    (number,) = numbers
    ids = [one.get("shard_id") for one in settings]
    if ids != list(range(number)):
        raise ValueError(
            f"`--input` must be the {number} shards of the input in order, but has the shards {ids} instead. "
            "Give all of them, from shard 0 on."
        )
