"""Sentences to token ids at many times the library's speed, with the library's ids: a bounded cache of words.

The pre-tokenizers of BERT, RoBERTa and SentencePiece all cut at the plain space, so the ids of a cleaned sentence are
the ids of its space-separated words, one after the other. A word's ids are looked up as packed bytes; the words of a
chunk that are not cached are encoded by the tokenizers library in one batch. What does not fit this scheme (white
space other than single spaces, a tokenizer whose pieces span words) goes to the library as it is. The tests compare
every id with it.

Literal special tokens in the text ("[MASK]" in an article about BERT) are text here, not control ids.
"""

import json
import os
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes; the library's threads would compete

import numpy as np
from tokenizers import Tokenizer

MAX_WORDS = 400_000
"""Cached words of each kind: about 70 MB. Frequent words come early, so a full cache keeps what it has."""
MAX_WORD_CHARS = 64
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


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of token ids in a shard, by megatron-core's rule."""
    return np.dtype("uint16") if vocab_size < SHORT_IDS_BELOW else np.dtype("int32")


class WordCache:
    """Encodes sentences without special tokens; `tokenizer` is a tokenizers.Tokenizer, set to split specials as
    text."""

    def __init__(self, tokenizer: Tokenizer, *, max_words: int = MAX_WORDS) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.max_words = max_words
        self.dtype = token_dtype(tokenizer.get_vocab_size(with_added_tokens=True))
        self.scheme = word_scheme(json.loads(tokenizer.to_str()))
        self._first: dict[str, bytes] = {}
        # A word after a space has other ids than the same word without one: in byte-level vocabularies only.
        self._later: dict[str, bytes] = {} if self.scheme == "prefixed" else self._first

    @property
    def num_words(self) -> int:
        """Words kept."""
        return len(self._first) + (len(self._later) if self._later is not self._first else 0)

    def encode(self, sentences: list[str]) -> list[bytes]:
        """Packed ids (of `self.dtype`) of each sentence; empty bytes for a sentence without tokens."""
        if self.scheme is None:
            return self._by_library(sentences)
        split = [sentence.split() for sentence in sentences]
        odd = [i for i, words in enumerate(split) if " ".join(words) != sentences[i] or not words]
        packed = self._by_words([words or ["."] for words in split])
        for i, ids in zip(odd, self._by_library([sentences[i] for i in odd]), strict=True):
            packed[i] = ids
        return packed

    def _by_library(self, texts: list[str]) -> list[bytes]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype).tobytes() for encoding in encodings]

    def _by_words(self, split: list[list[str]]) -> list[bytes]:
        if self.scheme == "uniform":
            surplus = self._fill(self._first, {word for words in split for word in words}, "")
            ids_of = self._first.__getitem__
            packed = [b"".join(map(ids_of, words)) for words in split]
        else:
            surplus = self._fill(self._first, {words[0] for words in split}, "")
            surplus_later = self._fill(self._later, {word for words in split for word in words[1:]}, " ")
            first, ids_of = self._first, self._later.__getitem__
            packed = [first[words[0]] + b"".join(map(ids_of, words[1:])) for words in split]
            _remove(self._later, surplus_later)
        _remove(self._first, surplus)
        return packed

    def _fill(self, cache: dict[str, bytes], words: set[str], prefix: str) -> list[str]:
        """Put all of `words` into `cache`; returns those that must not stay: too long, or without room."""
        missing = sorted(words - cache.keys(), key=len)
        room = max(0, self.max_words - len(cache))
        stay = min(room, sum(len(word) <= MAX_WORD_CHARS for word in missing))
        cache.update(zip(missing, self._by_library([prefix + word for word in missing]), strict=True))
        return missing[stay:]


def _remove(cache: dict[str, bytes], words: list[str]) -> None:
    for word in words:
        del cache[word]


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


def _keeps_words(step: dict[str, Any]) -> bool:
    """Whether a normalizer treats words alone as it treats them in their sentence."""
    if step["type"] == "Replace":
        return " " not in step["pattern"].get("String", " ")
    return step["type"] in _WORDWISE_NORMALIZERS
