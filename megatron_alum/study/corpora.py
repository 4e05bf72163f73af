"""Texts of a study: shards for pre-training and for the probe on other text, and the task of a study without data.

Without data the text is the language reference that every CPython ships for its help() (pydoc_data.topics), the other
text its docstrings, and the task tells sentences of the one from sentences of the other.
"""

from __future__ import annotations

import importlib
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_alum.config.cli import config_from_dict
from megatron_alum.data.preprocessing.pipeline import preprocess
from megatron_alum.data.preprocessing.settings import PreprocessSettings
from megatron_alum.data.preprocessing.train_tokenizer import train_tokenizer
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings
from megatron_alum.data.shards.files import shard_paths
from megatron_alum.finetune.runs.records import write_at_once
from megatron_alum.study.plan import Options, StudyPlan

EMBEDDED = "embedded"
"""option of a text: the size of the vocabulary that is trained on this Python's own"""
MODULES = (
    "argparse",
    "collections",
    "json",
    "logging",
    "os",
    "random",
    "statistics",
    "subprocess",
    "tarfile",
    "zipfile",
)
"""whose docstrings are text of another kind"""
EXAMPLES = {"train": 160, "dev": 100}
"""sentences of the embedded task"""


def training_prefix(work: Path) -> Path:
    """Shards of the training text."""
    return work / "corpus"


def other_prefix(work: Path) -> Path:
    """Shards of the other text."""
    return work / "other"


def prepare_texts(plan: StudyPlan, work: Path) -> None:
    """Make the shards that are not there yet, and the embedded task where the plan takes the embedded text."""
    work.mkdir(parents=True, exist_ok=True)
    options = dict(plan.corpus)
    if EMBEDDED in options:
        options = _embedded(work, int(options[EMBEDDED]))
    _shards(training_prefix(work), options)
    others = {"input": [str(work / "docstrings.jsonl")]} if EMBEDDED in plan.other_text else dict(plan.other_text)
    _shards(other_prefix(work), {**others, "tokenizer": f"{training_prefix(work)}-tokenizer"})


def _shards(prefix: Path, options: Options) -> None:
    """Run `megatron-alum preprocess` unless its last file is there; one worker, so that nothing forks here."""
    if shard_paths(prefix)["json"].is_file():
        return
    named = {name.replace("-", "_"): value for name, value in options.items()}
    wanted = {"workers": 1, **named, "output_prefix": str(prefix), "resume": True}
    preprocess(config_from_dict(PreprocessSettings, wanted), show_progress=False)


def _embedded(work: Path, vocab_size: int) -> dict[str, Any]:
    """Writes texts, vocabulary and task of this Python; the options of its shards."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    texts = {"topics": list(topics.values()), "docstrings": _docstrings()}
    for name, documents in texts.items():
        _write_lines(work / f"{name}.jsonl", ({"text": text} for text in documents))
    kinds = {name: _sentences(documents) for name, documents in texts.items()}
    rows = [{"sentence": one, "label": name} for name, found in kinds.items() for one in found]
    random.Random(0).shuffle(rows)
    start = 0
    for split, count in EXAMPLES.items():
        _write_lines(work / f"{split}.jsonl", rows[start : start + count])
        start += count
    source, folder = [str(work / "topics.jsonl")], work / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        settings = {"input": source, "output": str(folder), "vocab_size": vocab_size, "overwrite": True}
        train_tokenizer(config_from_dict(TrainTokenizerSettings, settings), show_progress=False)
    return {"input": source, "tokenizer": str(folder)}


def _docstrings() -> list[str]:
    """Those of the classes and functions of MODULES."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        objects = [getattr(module, public) for public in sorted(getattr(module, "__all__", dir(module)))]
        found += [one.__doc__ for one in [module, *objects] if isinstance(one.__doc__, str)]
    return [text for text in dict.fromkeys(found) if len(text) > 200]


def _sentences(documents: Iterable[str]) -> list[str]:
    """As many as the task needs of each kind, of some words each."""
    parts = (part.strip() for text in documents for part in re.split(r"(?<=[.!?])\s+", text))
    kept = [" ".join(part.split()) for part in parts if 6 <= len(part.split()) <= 30]
    return kept[: sum(EXAMPLES.values()) // 2]


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    write_at_once(path, "".join(json.dumps(row) + "\n" for row in rows))
