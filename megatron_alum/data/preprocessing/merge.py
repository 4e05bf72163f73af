"""Merging corpora made with the same tokenizer: the parts of a job array in order, or different corpora.

Token files are copied one after the other, document bounds are shifted, the index is written anew. Shards of one input
(`--num-shards`) given in order give exactly the bytes of a single run; their accounts must be adjacent.
"""

import dataclasses
import glob
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_alum.config.places import Place
from megatron_alum.data.preprocessing.account import joined
from megatron_alum.data.preprocessing.journal import Journal, State
from megatron_alum.data.preprocessing.manifest import describe_parts, tally_entry
from megatron_alum.data.preprocessing.progress import Progress
from megatron_alum.data.preprocessing.settings import fingerprint
from megatron_alum.data.preprocessing.worker import MAX_EXAMPLES, Tally
from megatron_alum.data.shards.corpus import Corpus
from megatron_alum.data.shards.files import Shards, open_shards, read_manifest, require_whole_manifest, shard_paths

_COPY_BYTES = 4 << 20
_INDEX_PIECE = 1 << 20
_SHARD_SETTINGS = {"shard_id": 0, "num_shards": 1}
"""The settings in which the shards of one input differ, with the values of an undivided input."""


def find_parts(words: Sequence[str]) -> list[str]:
    """Prefixes of the corpora that `words` name: prefixes, manifests (.json) or globs of them, sorted within a glob."""
    prefixes = []
    for word in words:
        matches = sorted(glob.glob(word)) if glob.has_magic(word) else [word]
        if not matches:
            raise ValueError(f"`--input` must name corpora, but {word} matches nothing.")
        prefixes += [match.removesuffix(".json") for match in matches]
    for prefix in prefixes:
        if (refusal := Place("prefix").refusal(prefix)) is not None:
            raise ValueError(f"`--input` must be {refusal}.")
    if len(set(prefixes)) != len(prefixes):
        raise ValueError("`--input` must name each corpus once, but names one twice.")
    return prefixes


def merge_shards(
    prefixes: Sequence[str], output_prefix: str, *, verify: bool = True, show: bool = True
) -> dict[str, Any]:
    """Merge the corpora `prefixes` in this order into `output_prefix`; returns the manifest.

    Raises ValueError when a part is damaged, when tokenizers differ, when shards of one input are missing, out of
    order or given twice, or when the output exists.
    """
    if shard_paths(output_prefix)["json"].exists():
        raise ValueError(f"`--output-prefix` must name a new corpus, but {output_prefix}.json exists. Choose another.")
    parts = [open_shards(prefix, verify=verify) for prefix in prefixes]
    for part in parts:
        require_whole_manifest(part.manifest, shard_paths(part.prefix)["json"])
        _require_account(part)
        Corpus.open(part.prefix, part.index).check_sentences()
    _check_tokenizers(parts)
    accounts = _accounts(_by_input(parts))
    _check_merged(parts)
    with Journal(output_prefix, fingerprint(list(prefixes)), resume=False) as journal:
        try:
            shutil.copytree(parts[0].tokenizer_dir, journal.tokenizer_dir)
            total = sum(shard_paths(part.prefix)["bin"].stat().st_size for part in parts)
            with Progress(total, show=show, what="merge") as progress:
                for part in parts:
                    _append(journal, part, progress)
            manifest = _manifest(journal.state, parts, accounts)
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


def _manifest(state: State, parts: list[Shards], accounts: list[dict[str, int]]) -> dict[str, Any]:
    """Counts and origin of the merged corpus; the files are described when they are written.

    The account is that of the one input; with several inputs it has no byte interval.
    """
    one_input = len({_origin(part) for part in parts}) == 1
    sums = {name: sum(account[name] for account in accounts) for name in ("records", "documents", "skipped")}
    return {
        "num_documents": state.num_documents,
        "num_sentences": state.num_sentences,
        "num_tokens": state.num_tokens,
        "text_bytes": state.text_bytes,
        "skipped": tally_entry(dataclasses.asdict(state.skipped)),
        "repaired": tally_entry(dataclasses.asdict(state.repaired)),
        "account": accounts[0] if one_input else sums,
        "settings": {**parts[0].manifest["settings"], **_SHARD_SETTINGS} if one_input else {},
        "inputs": parts[0].manifest["inputs"] if one_input else {},
        "left_out": parts[0].manifest["left_out"] if one_input else {},
        "merged_from": [
            {"name": Path(part.prefix).name, "documents": part.num_documents, "bin": part.manifest["files"][".bin"]}
            for part in parts
        ],
    }


def _check_tokenizers(parts: list[Shards]) -> None:
    """Raise ValueError unless all parts have the same tokenizer."""
    first = parts[0].manifest["files"]["-tokenizer/tokenizer.json"]["sha256"]
    for part in parts[1:]:
        if part.manifest["files"]["-tokenizer/tokenizer.json"]["sha256"] != first:
            raise ValueError(
                f"`--input` must be corpora of one tokenizer, but {part.prefix} was made with a different "
                f"one than {parts[0].prefix}. Preprocess one of them again."
            )


def _origin(part: Shards) -> str:
    """What the shards of one input have in common: the files and the settings. A corpus merged from several inputs
    has neither and equals no other."""
    settings = {name: value for name, value in part.manifest["settings"].items() if name not in _SHARD_SETTINGS}
    return fingerprint([settings, part.manifest["inputs"], "" if settings else part.prefix])


def _by_input(parts: list[Shards]) -> list[list[Shards]]:
    """The parts by the input they are shards of. Every input must have all its shards, in order and once: a
    missing or repeated one would go unnoticed."""
    of_input: dict[str, list[Shards]] = {}
    for part in parts:
        of_input.setdefault(_origin(part), []).append(part)
    for shards in of_input.values():
        given = [
            tuple(part.manifest["settings"].get(name, default) for name, default in _SHARD_SETTINGS.items())
            for part in shards
        ]
        number = given[0][1]
        if given != [(i, number) for i in range(number)]:
            found = ", ".join(f"{part.prefix} (shard {i} of {n})" for part, (i, n) in zip(shards, given, strict=True))
            raise ValueError(
                f"`--input` must have every shard of an input once and in order, but for one has {found} instead. "
                "Give all of them, from shard 0 on, or the corpus they were merged into."
            )
    return list(of_input.values())


def _require_account(part: Shards) -> None:
    """ValueError unless the manifest says what was read."""
    account, inputs = part.manifest.get("account", {}), part.manifest.get("inputs", {})
    has_bytes = "bytes" in inputs and {"begin_byte", "end_byte"} <= account.keys()
    if not account or not {"inputs", "left_out"} <= part.manifest.keys() or (inputs and not has_bytes):
        raise ValueError(
            f"`--input` must be corpora with an account of what was read, but {part.prefix} has none: an earlier "
            "release made it, or it is damaged. Preprocess it again."
        )


def _accounts(inputs: list[list[Shards]]) -> list[dict[str, int]]:
    """The account of each input; its shards are checked to be adjacent."""
    return [
        joined((part.manifest["account"] for part in shards), last=shards[0].manifest["inputs"]["bytes"])
        if shards[0].manifest["inputs"]
        else shards[0].manifest["account"]
        for shards in inputs
    ]


def _check_merged(parts: list[Shards]) -> None:
    """Refuse a merged corpus together with one of its own parts, or with another that shares a part with it."""
    joined = [(entry["bin"]["sha256"], part.prefix) for part in parts for entry in part.manifest.get("merged_from", [])]
    holders = dict(joined)
    for digest, prefix in joined + [(part.manifest["files"][".bin"]["sha256"], part.prefix) for part in parts]:
        if (holder := holders.get(digest, prefix)) != prefix:
            raise ValueError(
                f"`--input` must hold no text twice, but {prefix} and {holder} have a part in common. "
                "Leave one of them out, or merge their parts."
            )
