"""One sample from its index row: special tokens set around the text, then masked; Python reference.

    nsp, sop   [CLS] A [SEP] B [SEP]            RoBERTa: <s> A </s></s> B </s>, all of token type 0
    none       [CLS] text [SEP]                 a [SEP] more at every document end inside the text

The C++ twin csrc/data/sampler.cpp writes the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_alum.data.sampling.masking import mask_words, num_to_mask, replacement, select
from megatron_alum.data.sampling.pairs import Row
from megatron_alum.data.sampling.settings import SampleSettings, SpecialTokens
from megatron_alum.data.shards.corpus import Sentences

Text = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One sequence of a batch."""

    tokens: Text
    """[length] ids with the masked ones replaced"""
    token_types: Text
    """[length]"""
    masked: list[int]
    """ascending positions"""
    labels: list[int]
    """original ids there"""


def build_sample(
    texts: list[Text], *, sample_index: int, paired: bool, settings: SampleSettings, special: SpecialTokens
) -> Sample:
    """Assemble and mask; `texts` are A and B (`paired`) or the stretches of text between document ends."""
    between = special.pair_separators if paired else 1
    tokens, types = [special.cls], [0]
    candidates: list[int] = []
    text_first: list[bool] = []
    for i, text in enumerate(texts):
        kind = special.second_type if paired and i == 1 else 0
        candidates += range(len(tokens), len(tokens) + len(text))
        text_first += [True] + [False] * (len(text) - 1)
        # Between A and B the separators belong to A's type; after the last text there is always exactly one.
        closing = [special.sep] * (1 if i == len(texts) - 1 else between)
        tokens += [*text.tolist(), *closing]
        types += [kind] * (len(text) + len(closing))
    original = np.array(tokens, dtype=np.int64)
    words = mask_words(settings, sample_index)
    num = num_to_mask(len(tokens), settings.mask_rate(sample_index), len(candidates))
    text_tokens = original[candidates]
    word_first = special.word_start[text_tokens]
    word_first[1:] |= special.word_end[text_tokens[:-1]]
    chosen = select(settings, words, num, word_first=word_first, text_first=np.array(text_first))
    masked = [candidates[i] for i in chosen]
    for position in masked:
        tokens[position] = replacement(tokens[position], words.word(), special)
    return Sample(
        tokens=np.array(tokens, dtype=np.int64),
        token_types=np.array(types, dtype=np.int64),
        masked=masked,
        labels=original[masked].tolist(),
    )


def row_ranges(row: Row, sentences: Sentences, *, paired: bool) -> list[tuple[int, int]]:
    """[begin, end) in the token file of A and B, or of the stretches of full sentences between document ends."""
    a_start, b_start, a_length, b_length, _ = row
    if paired:
        return [(a_start, a_start + a_length), (b_start, b_start + b_length)]
    ranges, begin = [], a_start
    for document in range(b_start, b_start + b_length):
        document_end = sentences.start(int(sentences.bounds[document + 1]))
        ranges.append((begin, document_end))
        begin = document_end
    return [*ranges, (begin, a_start + a_length)]
