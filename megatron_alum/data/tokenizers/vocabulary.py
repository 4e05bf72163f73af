"""Vocabulary files: what a user may name, read and checked, before any tokenizer is built.

vocab.txt of a WordPiece vocabulary, or vocab.json and merges.txt of a byte-level BPE one. Masked language modelling
needs five special tokens, which must be among the entries.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

MODEL_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
"""of a tokenizer folder, by transformers' names"""
Case = Literal["lower", "keep"]
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class TokenizerSource:
    """The source of the tokenizer: exactly one of `folder` and `vocab_file`."""

    folder: Path | None = None
    """A Hugging Face tokenizer folder (tokenizer.json or a vocabulary with tokenizer_config.json)."""
    vocab_file: Path | None = None
    """vocab.txt (WordPiece) or vocab.json (byte-level BPE, with `merge_file`)."""
    merge_file: Path | None = None
    """merges.txt of a byte-level BPE vocabulary."""
    case: Case | None = None
    """"lower" or "keep"; None takes the folder's own, or lower when vocab.txt has no upper-case entry."""
    strip_accents: bool | None = None
    """Strip accents; None follows `case` as in Google's BERT (stripped when lower-casing)."""

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.vocab_file is None):
            raise ValueError(
                "`--tokenizer` or `--vocab-file` must be given, and not both. "
                "Name a tokenizer folder or a vocabulary file."
            )
        if self.folder is not None and self.merge_file is not None:
            raise ValueError(
                f"`--merge-file` must go with `--vocab-file`, but is {self.merge_file} beside the tokenizer folder "
                f"{self.folder} instead. Leave it out: the folder has its own merges."
            )
        if self.case not in (None, "lower", "keep"):
            raise ValueError(f"`--case` must be lower or keep, but is {self.case} instead.")


@dataclass(frozen=True)
class Vocabulary:
    """Entries and options of a BERT (WordPiece) or, with `merges`, RoBERTa (byte-level BPE) tokenizer."""

    entries: dict[str, int]
    merges: list[tuple[str, str]] | None = None
    lower: bool = False
    strip_accents: bool | None = None
    """None follows `lower`"""


def read_vocabulary(source: TokenizerSource) -> Vocabulary:
    """The vocabulary files that `source` names; the ValueError says what is wrong with them."""
    assert source.vocab_file is not None
    _require_vocabulary_file(source.vocab_file)
    if source.vocab_file.suffix == ".json":
        return _byte_level_from_files(source)
    if source.merge_file is not None:
        raise ValueError("`--merge-file` must go with a vocab.json, but the vocabulary is a WordPiece list instead.")
    return _wordpiece_from_file(source)


def with_files(source: TokenizerSource) -> TokenizerSource:
    """`source`, with the vocabulary of its folder in place of one that has no tokenizer of its own, as in the archives
    of Google's BERT and of fairseq."""
    folder = source.folder
    if folder is None or any((folder / name).is_file() for name in (MODEL_FILE, CONFIG_FILE)):
        return source
    for vocabulary, merges in (("vocab.txt", None), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocabulary).is_file() and (merges is None or (folder / merges).is_file()):
            merge_file = folder / merges if merges else None
            return replace(source, folder=None, vocab_file=folder / vocabulary, merge_file=merge_file)
    return source


def _require_vocabulary_file(path: Path) -> None:
    """ValueError naming the right flag if `path` is some other file of a tokenizer."""
    if path.is_dir():
        raise ValueError(f"`--vocab-file` must be a file, but {path} is a folder. Give a folder by --tokenizer {path}.")
    if not path.is_file():
        raise ValueError(f"`--vocab-file` must be an existing file, but {path} is none.")
    if zipfile.is_zipfile(path):
        raise ValueError(
            f"`--vocab-file` must be a vocab.txt or vocab.json, but {path} is a zip archive. Unpack it and give the "
            "folder with its vocab.txt by --tokenizer."
        )
    names_folder = path.name in (MODEL_FILE, CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "config.json")
    if names_folder or (path.suffix == ".json" and _is_tokenizer_json(path)):
        raise ValueError(
            f"`--vocab-file` must be a vocab.txt or vocab.json, but {path} is a file of a tokenizer folder. Give the "
            f"folder that holds its {MODEL_FILE} by --tokenizer {path.parent}."
        )
    if path.name in ("merges.txt", "vocab.bpe"):
        raise ValueError(
            f"`--vocab-file` must be a vocabulary, but {path} holds merges. Give it by --merge-file, and the "
            "vocab.json that belongs to it by --vocab-file."
        )


def _is_tokenizer_json(path: Path) -> bool:
    """Whether a file of another name is a tokenizer.json: the words of a vocabulary have numbers, not parts."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("model"), dict)


def _read_vocab_lines(path: Path) -> list[str]:
    """Entries of a vocab.txt in id order; ValueError when it cannot be a vocabulary."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`--vocab-file` must be UTF-8 text, but {path} is not: {error}. A SentencePiece model or the weights of a "
            "model are not a vocabulary: give a Hugging Face folder by --tokenizer."
        ) from error
    entries = [line.strip(" \t\r") for line in lines]  # as Google's reader does
    while entries and entries[-1] == "":
        entries.pop()
    if not set(BERT_SPECIALS) & set(entries):
        found = f"begins with {entries[0][:40]!r}" if entries else "is empty"
        raise ValueError(
            f"`--vocab-file` must be a vocabulary, one entry a line and among them {', '.join(BERT_SPECIALS)}, but "
            f"{path} {found}. Give the vocab.txt of a BERT, or train one by megatron-alum train-tokenizer."
        )
    if len(set(entries)) != len(entries):
        twice = next(entry for position, entry in enumerate(entries) if entry in entries[:position])
        raise ValueError(f"`--vocab-file` must list each entry once, but {path} has {twice!r} more than once.")
    _require_specials(BERT_SPECIALS, entries, path)
    return entries


def _require_specials(specials: Sequence[str], entries: Any, path: Path) -> None:
    missing = [token for token in specials if token not in entries]
    if missing:
        raise ValueError(
            f"`--vocab-file` must contain {', '.join(specials)}, but {path} lacks {', '.join(missing)}. "
            "Use a vocabulary made for masked language modelling, or train one by megatron-alum train-tokenizer."
        )


def require_all_ids(vocab: dict[str, Any], path: Path) -> None:
    """Refuse gaps in the ids: an id at or above the number of entries has no row in an embedding of that size."""
    ids = {number for number in vocab.values() if isinstance(number, int)}
    missing = next((number for number in range(len(vocab)) if number not in ids), None)
    if missing is not None:
        raise ValueError(
            f"`{path}` must number its {len(vocab)} entries from 0 to {len(vocab) - 1}, but has none with id "
            f"{missing}. Add an entry for every id left out (RoBERTa's own file has madeupword0000 and others)."
        )


def _wordpiece_from_file(source: TokenizerSource) -> Vocabulary:
    assert source.vocab_file is not None
    entries = _read_vocab_lines(source.vocab_file)
    has_upper = any(entry != entry.lower() for entry in entries if not _is_bracketed(entry))
    lower = source.case == "lower" if source.case else not has_upper
    return Vocabulary({entry: i for i, entry in enumerate(entries)}, lower=lower, strip_accents=source.strip_accents)


def _is_bracketed(entry: str) -> bool:
    """[PAD], [UNK], [unused12]: control entries say nothing about the case of a vocabulary."""
    return entry.startswith("[") and entry.endswith("]")


def _byte_level_from_files(source: TokenizerSource) -> Vocabulary:
    assert source.vocab_file is not None
    if source.merge_file is None or not source.merge_file.is_file():
        raise ValueError(
            f"`--merge-file` must name the merges.txt that belongs to {source.vocab_file}, but is "
            f"{source.merge_file} instead."
        )
    if source.case == "lower" or source.strip_accents:
        raise ValueError("`--case` must be keep for a byte-level BPE vocabulary, but lower-casing was asked for.")
    try:
        vocab = json.loads(source.vocab_file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`--vocab-file` must be a JSON map, but {source.vocab_file} is not: {error}.") from error
    if not isinstance(vocab, dict):
        raise ValueError(f"`--vocab-file` must be a JSON map, but {source.vocab_file} is a {type(vocab).__name__}.")
    _require_specials(ROBERTA_SPECIALS, vocab, source.vocab_file)
    require_all_ids(vocab, source.vocab_file)
    try:
        lines = source.merge_file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"`--merge-file` must be UTF-8 text, but {source.merge_file} is binary data.") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"`--merge-file` must hold two symbols per line, but {source.merge_file} does not.")
    return Vocabulary(vocab, [(left, right) for left, right in pairs])
