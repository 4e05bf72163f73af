"""One rule for the tokenizer of a folder, whatever it holds: a tokenizer.json, or a bare vocabulary.

BioBERT, SciBERT and ClinicalBERT consist of config.json, weights and vocab.txt, older RoBERTas have vocab.json
and merges.txt. Nothing there says whether text is lower-cased, and transformers lower-cases: a cased vocabulary then
never meets an entry with an upper-case letter. Here a folder that says nothing is lower-cased when no entry has one, as
for `--vocab-file`. A folder with only a SentencePiece model is refused: its tokenizer.json must be made with that
library.
"""

import codecs
import json
from pathlib import Path
from typing import Any

from megatron_alum.data.tokenizers.vocabulary import BERT_SPECIALS, TokenizerSource, read_vocabulary

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",  # SentencePiece
)
"""Patterns of the files that a tokenizer is kept in."""
_WORDPIECE_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")
_BYTE_LEVEL_CLASSES = (None, "RobertaTokenizer", "RobertaTokenizerFast")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary in any form, a SentencePiece model included."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
    return any(path.is_file() for name in names for path in folder.glob(name))


def open_tokenizer(folder: Path) -> Any:
    """transformers' fast tokenizer of a folder, offline, its special tokens not checked.

    Raises: ValueError for a SentencePiece model alone and an unfit vocabulary; what transformers raises for the rest.
    """
    from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

    options: dict[str, Any] = {"local_files_only": True}
    if not (folder / "tokenizer.json").is_file():
        config = _config(folder)
        maker = config.get("tokenizer_class")
        if maker in _WORDPIECE_CLASSES and _is_bert(folder / "vocab.txt"):
            lower = config.get("do_lower_case")
            if lower is None:
                lower = read_vocabulary(TokenizerSource(vocab_file=folder / "vocab.txt")).lower
            return BertTokenizer.from_pretrained(str(folder), do_lower_case=bool(lower), **options)
        if maker in _BYTE_LEVEL_CLASSES and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            read_vocabulary(TokenizerSource(vocab_file=folder / "vocab.json", merge_file=folder / "merges.txt"))
            return RobertaTokenizer.from_pretrained(str(folder), **options)
        _refuse_sentencepiece(folder)
        _refuse_half_a_vocabulary(folder)
    return AutoTokenizer.from_pretrained(str(folder), **options)


def _is_bert(path: Path) -> bool:
    """Whether a vocab.txt has BERT's special tokens (MPNet's has RoBERTa's)."""
    if not path.is_file():
        return False
    entries = set(path.read_text(encoding="utf-8", errors="replace").split())
    return entries.issuperset(BERT_SPECIALS)


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, {} where there is none."""
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"`{path}` must be JSON, but does not parse ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"`{path}` must be a JSON object, but is a {type(config).__name__} instead.")
    return config


def _refuse_half_a_vocabulary(folder: Path) -> None:
    """Raise for what transformers would make another vocabulary of."""
    words, table = folder / "vocab.txt", folder / "vocab.json"
    if words.is_file() and words.read_bytes().startswith(codecs.BOM_UTF8):
        raise ValueError(
            f"`{words}` must not begin with a byte order mark, which would belong to its first entry, but does. "
            "Save it as UTF-8 without one."
        )
    if table.is_file() and not words.is_file() and not (folder / "merges.txt").is_file():
        raise ValueError(f"`{table}` must have its merges.txt beside it, but has not. Fetch that file too.")


def _refuse_sentencepiece(folder: Path) -> None:
    models = sorted(path.name for path in folder.glob("*.model"))
    if models and not any((folder / name).is_file() for name in ("vocab.txt", "vocab.json")):
        raise ValueError(
            f"`{folder}` must hold a tokenizer.json, but has only the SentencePiece model {models[0]}, which is not "
            "read here. Where transformers and sentencepiece are installed, save the folder's tokenizer again "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...)), which writes one."
        )
