"""Small corpora and runs for the tests of preprocessing: a vocabulary, texts, and `prepare`, which runs the
pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from megatron_alum.data.preprocessing.pipeline import preprocess
from megatron_alum.data.preprocessing.settings import (
    InputSettings,
    PreprocessSettings,
    RunSettings,
    TextSettings,
    TokenizerSettings,
)
from megatron_alum.data.shards.files import read_index

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a cat dog sat ran on mat far away . , ! ? i ii and then he she it was 1 2 3 ##s ##ly".split()
LETTERS = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
ARTICLES = [
    "The cat sat on the mat. The dog ran far away.\nThen it was the cat.",
    "A dog sat. She ran!",
    "It was the mat, and then he ran away.",
]


def write_vocab(folder: Path, *, without: str = "") -> Path:
    """A WordPiece vocabulary that can spell every ASCII word, lower case; `without` leaves one entry out."""
    entries = dict.fromkeys(SPECIALS + WORDS + LETTERS + ["##" + letter for letter in LETTERS])
    path = folder / "vocab.txt"
    path.write_text("\n".join(entry for entry in entries if entry != without) + "\n")
    return path


def write_jsonl(path: Path, texts: list[Any]) -> Path:
    """One JSON object a line with ids 0, 1, ..."""
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def settings_for(folder: Path, source: Path | str, **options: Any) -> PreprocessSettings:
    """Settings of a run over `source` into folder/out with the vocabulary of `write_vocab`; options by field name."""
    vocab = folder / "vocab.txt"
    if not vocab.exists():
        write_vocab(folder)
    given: dict[str, Any] = {"input": (str(source),), "output_prefix": str(folder / "out"), "workers": 1}
    given |= {"vocab_file": str(vocab)} if "tokenizer" not in options else {}
    given |= options
    parts = []
    for kind in (InputSettings, RunSettings, TextSettings, TokenizerSettings):
        names = kind.__dataclass_fields__.keys() & given.keys()
        parts.append(kind(**{name: given.pop(name) for name in names}))
    assert not given, f"unknown settings {given}"
    return PreprocessSettings(*parts)


def prepare(folder: Path, source: Path | str, **options: Any) -> dict[str, Any]:
    """Run the pipeline; returns the manifest. The output prefix is folder/out unless given."""
    return preprocess(settings_for(folder, source, **options), show_progress=False)


def sentences_of(prefix: Path | str, tokenizer: Any) -> list[list[str]]:
    """Documents as lists of sentences, each its tokens joined by spaces, read without any of Megatron's code."""
    index = read_index(Path(f"{prefix}.idx"))
    ids = np.fromfile(f"{prefix}.bin", index.dtype)
    starts = index.offsets // index.dtype.itemsize
    documents = []
    for begin, end in zip(index.documents[:-1], index.documents[1:], strict=True):
        spans = [(starts[s], starts[s] + index.lengths[s]) for s in range(begin, end)]
        documents.append([" ".join(tokenizer.convert_ids_to_tokens(ids[a:b].tolist())) for a, b in spans])
    return documents


def left_behind(folder: Path, *, keep: set[str]) -> list[str]:
    """Names in `folder` other than `keep`: what a failed run must not leave."""
    return sorted(path.name for path in folder.iterdir() if path.name not in keep)
