"""Which tokens begin a word, found by asking the tokenizer: what whole-word masking stands on.

A probe text is encoded, made of the vocabulary's own pieces, so that most of its words take several tokens. The offsets
show which tokens begin a space-separated word and which stand inside one. What sets the two apart in writing is the
tokenizer's mark, of one of four kinds:

    before a first token       "\\u0120the" (byte-level BPE), "\\u2581the" (SentencePiece, unigram or BPE)
    before every other one     "##ing" (WordPiece)
    after a last token         "the</w>" (BPE with a suffix)
    after every other one      "th@@"

A mark counts only if it explains every token of the probe; what the tokenizer itself declares is tried first. Between
the words of the probe a pre-tokenizer may cut further (BERT's at punctuation and at Chinese characters): such tokens
may begin a word or not, as their marks say.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LETTERS = re.compile(r"[^\W\d_]{2,12}")
_PROBE_PIECES = 300
_FIXED_WORDS = ("qzxjvk", "wvutsrq", "zyxwab", "mnbvcxz", "plokij")
"""Unlike any word, for vocabularies with few pieces."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WordMarks:
    """A token begins a word where `starts` is true of it or `ends` of the token before it; both [V]."""

    starts: Flags
    ends: Flags


@dataclass(frozen=True)
class _Observed:
    """A token of the probe; `begins` is None where either would do."""

    token: str
    begins: bool | None
    is_known: bool
    """False for [UNK], which hides the mark of what it stands for"""


@dataclass(frozen=True)
class _Mark:
    """One way of writing words."""

    text: str
    at_end: bool
    """the mark stands behind a token, not before it"""
    on_edge: bool
    """it stands on a word's first (last) token, not on all the others"""

    def __call__(self, token: str) -> bool:
        """Whether `token` begins a word, or with `at_end`, ends one."""
        has = token.endswith(self.text) if self.at_end else token.startswith(self.text)
        return has == self.on_edge


def word_marks(tokenizer: Any) -> WordMarks | None:
    """The marks of a Hugging Face fast tokenizer; None where the probe does not show them."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = set(tokenizer.added_tokens_decoder)  # special tokens too
    observed = _observe(tokenizer, [i for i in range(len(tokens)) if i not in added])
    mark = next((mark for mark in _candidates(tokenizer, observed) if _explains(mark, observed)), None)
    if mark is None:
        return None
    if mark.on_edge and not mark.at_end:
        added.discard(tokenizer.unk_token_id)  # an unknown first letter leaves the mark a token of its own
    marked = np.array([i in added or mark(token) for i, token in enumerate(tokens)], dtype=np.bool_)
    alone = added - {tokenizer.unk_token_id}  # an unknown letter begins no word after a token that ends none
    others = np.array([i in alone for i in range(len(tokens))], dtype=np.bool_)
    return WordMarks(others, marked) if mark.at_end else WordMarks(marked, np.zeros_like(marked))


def _probe(tokenizer: Any, ids: Sequence[int]) -> str:
    """Words of one and two pieces, drawn evenly over the vocabulary, after a first word that tokenizers treat apart."""
    step = max(1, len(ids) // _PROBE_PIECES)
    surfaces = (tokenizer.backend_tokenizer.decode([i]) for i in ids[::step])
    pieces = list(dict.fromkeys(found[0] for surface in surfaces if (found := _LETTERS.search(surface))))
    pairs = [first + second for first, second in zip(pieces, reversed(pieces), strict=True)]
    return " ".join(["a", *_FIXED_WORDS, *pairs, *pieces, *_FIXED_WORDS])


def _observe(tokenizer: Any, ids: Sequence[int]) -> list[_Observed]:
    """The tokens of the probe after its first word."""
    text = _probe(tokenizer, ids)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    word_starts = {found.start() for found in re.finditer(r"\S+", text)}
    observed: list[_Observed] = []
    taken: set[int] = {0}
    previous_piece = None
    parts = zip(encoding.tokens, encoding.ids, encoding.offsets, encoding.word_ids, strict=True)
    for token, number, (begin, end), piece in parts:
        visible = begin + len(text[begin:end]) - len(text[begin:end].lstrip())
        if visible == end:  # a token for the space alone belongs to the word that follows
            visible = next((i for i in (end, end + 1) if i in word_starts), -1)
        begins: bool | None = False
        if visible in word_starts and visible not in taken:
            taken.add(visible)
            begins = True
        elif piece != previous_piece:
            begins = None
        previous_piece = piece
        if number == tokenizer.unk_token_id:
            begins = None
        if visible > 0:
            observed.append(_Observed(token, begins, number != tokenizer.unk_token_id))
    return observed


def _candidates(tokenizer: Any, observed: list[_Observed]) -> Iterator[_Mark]:
    """What model and pre-tokenizer declare, then what the tokens have in common that begin, continue, end, or do not
    end words."""
    model, cutter = tokenizer.backend_tokenizer.model, tokenizer.backend_tokenizer.pre_tokenizer
    if prefix := getattr(model, "continuing_subword_prefix", None):
        yield _Mark(prefix, at_end=False, on_edge=False)
    if suffix := getattr(model, "end_of_word_suffix", None):
        yield _Mark(suffix, at_end=True, on_edge=True)
    cutting = json.loads(cutter.__getstate__()) if cutter else {}
    for step in cutting.get("pretokenizers", [cutting]):
        if space := {"ByteLevel": "\u0120", "Metaspace": step.get("replacement")}.get(step.get("type")):
            yield _Mark(space, at_end=False, on_edge=True)
    edges: tuple[tuple[bool, bool], ...] = ((False, True), (True, True), (False, False), (True, False))
    for at_end, on_edge in edges:
        flags = [item.begins for item in observed]
        if at_end:  # what follows a token says whether that one ends a word
            flags = [*flags[1:], True] if flags else []
        chosen = [item.token for item, flag in zip(observed, flags, strict=True) if flag is on_edge]
        if len(set(chosen)) > 1 and (text := _common(chosen, at_end)):
            yield _Mark(text, at_end=at_end, on_edge=on_edge)


def _common(tokens: list[str], at_end: bool) -> str:
    turn: Callable[[str], str] = (lambda token: token[::-1]) if at_end else str
    return turn(os.path.commonprefix([turn(token) for token in tokens]))  # noqa: RUF071 - of any strings


def _explains(mark: _Mark, observed: list[_Observed]) -> bool:
    """Whether `mark` says of every token what was observed."""
    before: bool | None = True
    for item in observed:
        begins = before if mark.at_end else mark(item.token)
        if begins is not None and item.begins not in (None, begins):
            return False
        before = mark(item.token) if item.is_known else None
    return True
