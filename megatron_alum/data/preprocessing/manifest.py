"""The manifest OUT.json: what a corpus is, so that training can trust it and a person can read where it came from.

Deterministic: no times, no host names, no number of workers. Two runs over the same files with the same settings give
the same bytes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_alum import __version__
from megatron_alum.data.preprocessing.journal import State
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.settings import PreprocessSettings
from megatron_alum.data.preprocessing.worker import Tally
from megatron_alum.data.shards.files import MANIFEST_VERSION, sha256_of
from megatron_alum.data.tokenizers.folder import describe_folder
from megatron_alum.data.tokenizers.word_cache import token_dtype

MAX_LISTED_INPUTS = 1000
"""Input files named one by one; beyond it only their number and bytes."""


def make_manifest(folder: Path, state: State, settings: PreprocessSettings, plan: InputPlan) -> dict[str, Any]:
    """The manifest of the finished parts in `folder` (a journal's), whose input was that of `plan`."""
    files = plan.listing()
    left_out = Tally()
    for path, reason in plan.left_out.items():
        left_out.add(reason, str(path))
    return {
        **describe_parts(folder / "tokens.bin", folder / "index.idx", folder / "tokenizer"),
        "num_documents": state.num_documents,
        "num_sentences": state.num_sentences,
        "num_tokens": state.num_tokens,
        "text_bytes": state.text_bytes,
        "skipped": tally_entry(asdict(state.skipped)),
        "repaired": tally_entry(asdict(state.repaired)),
        "account": state.account.entry(state.num_documents, state.skipped.total),
        "inputs": {
            "num_files": len(files),
            "bytes": plan.num_bytes,
            "files": [{"path": path, "bytes": size} for path, size in files[:MAX_LISTED_INPUTS]],
        },
        "left_out": tally_entry(asdict(left_out)),
        "settings": settings.fixed(),
    }


def describe_parts(bin_file: Path, idx_file: Path, tokenizer_dir: Path) -> dict[str, Any]:
    """The part of a manifest that describes files: sizes, SHA-256, dtype, tokenizer."""
    tokenizer = describe_folder(tokenizer_dir)
    parts = {".bin": bin_file, ".idx": idx_file, "-tokenizer/tokenizer.json": tokenizer_dir / "tokenizer.json"}
    return {
        "manifest_version": MANIFEST_VERSION,
        "made_by": f"megatron_alum {__version__}",
        "dtype": token_dtype(tokenizer["vocab_size"]).name,
        "files": {suffix: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for suffix, path in parts.items()},
        "tokenizer": tokenizer,
    }


def tally_entry(tally: dict[str, Any]) -> dict[str, Any]:
    """{reason: {count, examples}} from a tally's two maps."""
    return {
        reason: {"count": count, "examples": tally["examples"].get(reason, [])}
        for reason, count in tally["counts"].items()
    }
