"""Sentences to token ids at many times the library's speed, with the library's ids: a bounded table of words.

The pre-tokenizers of BERT, RoBERTa and SentencePiece all cut at the plain space, so the ids of a cleaned sentence are
the ids of its space-separated words, one after the other. Words are looked up in a table (C++, csrc/data/word_table.h;
a dictionary where the extension is not built); those it lacks are encoded by the tokenizers library in batches and
learnt. With a BERT tokenizer, the C++ table splits words of plain ASCII, nearly all of English, by itself. Text that
does not fit this scheme (white space other than single spaces, a tokenizer whose pieces span words) goes to the library
unchanged. The tests compare every id with it.

Literal special tokens in the text ("[MASK]" in an article about BERT) are text here, not control ids, however the
model treats them (a unigram model has them among its pieces): the encoding tokenizer has them under other names.
"""

import importlib
import json
import logging
import os
from array import array
from functools import cache
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes; the library's threads would compete

import numpy as np
from tokenizers import Tokenizer

from megatron_alum.data.tokenizers.accents import LATIN_MARKS

MAX_TABLE_BYTES = 64 << 20
"""Size of the table above which it is emptied, between two chunks: about a million words."""
WORDS_AT_ONCE = 10_000
"""Words in one call of the library, whose results take about a kilobyte each."""
SHORT_IDS_BELOW = 65_500
"""megatron-core's bound for uint16 token ids (DType.optimal_dtype)."""

_WORDWISE_NORMALIZERS = {
    "BertNormalizer",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "Nmt",
    "Precompiled",
}

logger = logging.getLogger(__name__)


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of token ids in a shard, by megatron-core's rule."""
    return np.dtype("uint16") if vocab_size < SHORT_IDS_BELOW else np.dtype("int32")


class WordCache:
    """Encodes sentences without special tokens.

    `tokenizer` is a tokenizer.json as the tokenizers library writes it; `native=False` takes the dictionary.
    """

    def __init__(self, tokenizer: str, *, max_bytes: int = MAX_TABLE_BYTES, native: bool = True) -> None:
        self.max_bytes = max_bytes
        spec = without_special_words(json.loads(tokenizer)) | {"truncation": None, "padding": None}
        self.tokenizer = Tokenizer.from_str(json.dumps(spec))
        self.tokenizer.encode_special_tokens = True
        self.dtype = token_dtype(self.tokenizer.get_vocab_size(with_added_tokens=True))
        self._typecode = "H" if self.dtype.itemsize == 2 else "i"
        self.scheme = word_scheme(spec)
        self.strips_all_marks = any(_strips_marks(step) for step in _steps(spec["normalizer"], "normalizers"))
        prefixed = self.scheme == "prefixed"
        extension = _extension() if native else None
        if extension is None:
            self._table: Any = _DictTable(prefixed, self._typecode)
        else:
            self._table = extension.WordTable(prefixed=prefixed, token_bytes=self.dtype.itemsize)
            if (wordpiece := _bert_wordpiece(spec)) is not None:
                self._table.use_wordpiece(**wordpiece)

    @property
    def num_words(self) -> int:
        """Words in the table."""
        return len(self._table)

    def encode(self, sentences: list[str]) -> list[bytes]:
        """Packed ids (of `self.dtype`) of each sentence; empty bytes for a sentence without tokens."""
        if self.scheme is None:
            return self._by_library(sentences)
        packed, missing = self._table.encode(sentences)
        open_ones = [i for i, ids in enumerate(packed) if ids is None]
        if missing:
            # White space inside a word is never learnt: such sentences stay open and go to the library.
            self._learn([word for word in missing if word.isprintable()])
            again, _missing = self._table.encode([sentences[i] for i in open_ones])
            for i, ids in zip(open_ones, again, strict=True):
                packed[i] = ids
            open_ones = [i for i in open_ones if packed[i] is None]
        for i, ids in zip(open_ones, self._by_library([sentences[i] for i in open_ones]), strict=True):
            packed[i] = ids
        if self._table.num_bytes > self.max_bytes:
            self._table.clear()
        return packed

    def _learn(self, words: list[str]) -> None:
        for first in range(0, len(words), WORDS_AT_ONCE):
            some = words[first : first + WORDS_AT_ONCE]
            encodings = self.tokenizer.encode_batch_fast(some, add_special_tokens=False)
            self._table.learn(some, [encoding.ids for encoding in encodings])

    def _by_library(self, texts: list[str]) -> list[bytes]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [array(self._typecode, encoding.ids).tobytes() for encoding in encodings]


@cache
def _extension() -> Any:
    """megatron_alum._data, or None if it is not built."""
    try:
        return importlib.import_module("megatron_alum._data")
    except ImportError as error:
        logger.warning("Words are looked up in Python, preprocessing is about a third as fast: %s.", error)
        return None


class _DictTable:
    """The table of the extension as a dictionary, with the same methods."""

    def __init__(self, prefixed: bool, typecode: str) -> None:
        self._prefixed, self._typecode = prefixed, typecode
        self.clear()

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, sentences: list[str]) -> tuple[list[bytes | None], list[str]]:
        """(packed ids, None where a word is missing or spaces are irregular; the missing words, each once)."""
        packed: list[bytes | None] = []
        missing: dict[str, None] = {}
        known = self._ids.__getitem__
        for sentence in sentences:
            words = sentence.split(" ")
            regular = "" not in words
            if self._prefixed:
                words[1:] = [" " + word for word in words[1:]]
            try:
                packed.append(b"".join(map(known, words)) if regular else None)
            except KeyError:
                packed.append(None)
                missing.update((word, None) for word in words if word not in self._ids)
        return packed, list(missing)

    def learn(self, words: list[str], ids: list[list[int]]) -> None:
        """Add `words` with their `ids`."""
        for word, own in zip(words, ids, strict=True):
            self._ids[word] = array(self._typecode, own).tobytes()
            self.num_bytes += 160 + len(word)  # two objects and their dictionary entry

    def clear(self) -> None:
        """Forget all words."""
        self._ids: dict[str, bytes] = {}
        self.num_bytes = 0


def _bert_wordpiece(spec: dict[str, Any]) -> dict[str, Any] | None:
    """What the extension needs to spell ASCII words like BERT, None for every other kind of tokenizer."""
    model, normalizer = spec["model"], spec["normalizer"] or {}
    pre_tokenizer = (spec["pre_tokenizer"] or {}).get("type")
    if normalizer.get("type") == "Sequence" and _strips_latin(normalizer["normalizers"][1:]):
        normalizer = normalizer["normalizers"][0]  # the rest changes no ASCII character
    kinds = (model["type"], normalizer.get("type"), pre_tokenizer)
    is_bert = kinds == ("WordPiece", "BertNormalizer", "BertPreTokenizer")
    prefix = model.get("continuing_subword_prefix", "")
    if not is_bert or prefix.isalnum() or not prefix or model["unk_token"] not in model["vocab"]:
        return None
    return {
        "vocabulary": model["vocab"],
        "prefix": prefix,
        "unknown": model["vocab"][model["unk_token"]],
        "max_run_chars": model["max_input_chars_per_word"],
        "lower": normalizer["lowercase"],
    }


def without_special_words(spec: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with the same ids, whose special tokens no text can spell: their names begin with NUL."""
    hidden = {token["content"]: "\0" + token["content"] for token in spec["added_tokens"] if token["special"]}

    def name(token: str) -> str:
        return hidden.get(token, token)

    model = dict(spec["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name(token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[name(piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = name(model["unk_token"])
    if model.get("merges"):  # a merge that makes a special token, and those that go on from it, would have no entry
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & hidden.keys()]
    added = [{**token, "content": name(token["content"])} for token in spec["added_tokens"]]
    return {**spec, "model": model, "added_tokens": added, "post_processor": None}


def word_scheme(spec: dict[str, Any]) -> str | None:
    """How the pieces of a tokenizer.json relate to space-separated words.

    "uniform": a word has the same ids anywhere; "prefixed": the first word is encoded bare, the others with their
    space; None: pieces may span words, or it is not known that they cannot.
    """
    if any(not token["special"] for token in spec["added_tokens"]):
        return None
    steps = _steps(spec["pre_tokenizer"], "pretokenizers")
    kinds = [step["type"] for step in steps]
    if not all(_keeps_words(step) for step in _steps(spec["normalizer"], "normalizers")):
        return None
    if kinds == ["BertPreTokenizer"]:
        return "uniform"
    if kinds == ["ByteLevel"] and steps[0]["use_regex"] and spec["normalizer"] is None:
        return "uniform" if steps[0]["add_prefix_space"] else "prefixed"
    if kinds == ["WhitespaceSplit", "Metaspace"] and steps[1]["prepend_scheme"] == "always":
        return "uniform"
    return None


def _steps(part: dict[str, Any] | None, list_name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, whether it is none, one or a sequence."""
    if part is None:
        return []
    return part[list_name] if part["type"] == "Sequence" else [part]


def _strips_latin(steps: list[dict[str, Any]]) -> bool:
    """Whether `steps` are those of `accents.latin_strip`."""
    kinds = [step["type"] for step in steps]
    return kinds == ["NFD", "Replace", "NFC"] and steps[1]["pattern"] == {"Regex": LATIN_MARKS}


def _strips_marks(step: dict[str, Any]) -> bool:
    """Whether a normalizer takes the marks of every script."""
    if step["type"] != "BertNormalizer":
        return bool(step["type"] == "StripAccents")
    return bool(step["lowercase"] if step["strip_accents"] is None else step["strip_accents"])


def _keeps_words(step: dict[str, Any]) -> bool:
    """Whether a normalizer treats words alone as it treats them in their sentence."""
    if step["type"] == "Replace":
        return step["pattern"] == {"Regex": LATIN_MARKS} or " " not in step["pattern"].get("String", " ")
    return step["type"] in _WORDWISE_NORMALIZERS
