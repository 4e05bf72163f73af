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
import re
from array import array
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes; the library's threads would compete

import numpy as np
from tokenizers import Tokenizer

MAX_WORDS = 400_000
"""Cached words of each kind: about 70 MB. Frequent words come early, so a full cache keeps what it has."""
MAX_WORD_CHARS = 64
_ASCII_PIECE = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")
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
        self._model = tokenizer.model
        self.max_words = max_words
        self.dtype = token_dtype(tokenizer.get_vocab_size(with_added_tokens=True))
        spec = json.loads(tokenizer.to_str())
        self.scheme = word_scheme(spec)
        self._lower = _ascii_case(spec)
        self._typecode = "H" if self.dtype.itemsize == 2 else "i"
        vocabulary = spec["model"]["vocab"] if self._lower is not None else {}
        limit = spec["model"].get("max_input_chars_per_word", 0)
        # a run that is an entry as a whole is that entry: WordPiece takes the longest match first
        self._whole = {entry: self._pack([number]) for entry, number in vocabulary.items() if len(entry) <= limit}
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
        split = [sentence.split(" ") for sentence in sentences]
        packed, unknown = self._look_up(split)
        # White space inside a word, or an empty word, is never cached: such sentences end up here and go to the
        # library.
        plain = [i for i in unknown if sentences[i].isprintable() and "" not in split[i]]
        odd = sorted(set(unknown).difference(plain))
        for i, ids in zip(odd, self._by_library([sentences[i] for i in odd]), strict=True):
            packed[i] = ids
        for i, ids in zip(plain, self._learn([split[i] for i in plain]), strict=True):
            packed[i] = ids
        return packed

    def _by_library(self, texts: list[str]) -> list[bytes]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._pack(encoding.ids) for encoding in encodings]

    def _pack(self, ids: list[int]) -> bytes:
        return array(self._typecode, ids).tobytes()

    def _look_up(self, split: list[list[str]]) -> tuple[list[bytes], list[int]]:
        """(packed ids, empty where unknown; numbers of the sentences with a word that is not cached)."""
        packed, unknown = [], []
        first, later = self._first.__getitem__, self._later.__getitem__
        uniform = self._first is self._later
        for i, words in enumerate(split):
            try:
                if uniform:
                    packed.append(b"".join(map(first, words)))
                else:
                    packed.append(first(words[0]) + b"".join(map(later, words[1:])))
            except KeyError:
                packed.append(b"")
                unknown.append(i)
        return packed, unknown

    def _learn(self, split: list[list[str]]) -> list[bytes]:
        """Packed ids of plain sentences after caching their words, as far as there is room."""
        surplus_later: list[str] = []
        if self._first is self._later:
            surplus = self._fill(self._first, set().union(*split), "")
        else:
            surplus = self._fill(self._first, {words[0] for words in split}, "")
            surplus_later = self._fill(self._later, set().union(*(words[1:] for words in split)), " ")
        packed, unknown = self._look_up(split)
        assert not unknown
        for cache, words in ((self._first, surplus), (self._later, surplus_later)):
            for word in words:
                del cache[word]
        return packed

    def _fill(self, cache: dict[str, bytes], words: set[str], prefix: str) -> list[str]:
        """Put all of `words` into `cache`; returns those that must not stay: too long, or without room."""
        missing = sorted(words - cache.keys(), key=len)
        room = max(0, self.max_words - len(cache))
        stay = min(room, sum(len(word) <= MAX_WORD_CHARS for word in missing))
        rest = missing
        if self._lower is not None:
            rest = [word for word in missing if not (word.isascii() and word.isprintable())]
            for word in missing:
                if word.isascii() and word.isprintable():
                    cache[word] = self._ascii_word(word)
        cache.update(zip(rest, self._by_library([prefix + word for word in rest]), strict=True))
        return missing[stay:]

    def _ascii_word(self, word: str) -> bytes:
        """BERT on printable ASCII: runs of letters and digits, and every other character alone, straight to the model.

        Skipping the library's normaliser and pre-tokenizer makes a new word several times cheaper.
        """
        ids = []
        for piece in _ASCII_PIECE.findall(word.lower() if self._lower else word):
            packed = self._whole.get(piece)
            if packed is None:
                packed = self._pack([token.id for token in self._model.tokenize(piece)])
            ids.append(packed)
        return b"".join(ids)


def _ascii_case(spec: dict[str, Any]) -> bool | None:
    """Whether a BERT tokenizer lower-cases; None for every other kind of tokenizer."""
    bert = (spec["normalizer"] or {}).get("type") == "BertNormalizer" and spec["model"]["type"] == "WordPiece"
    is_bert = bert and (spec["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
    return bool(spec["normalizer"]["lowercase"]) if is_bert else None


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
