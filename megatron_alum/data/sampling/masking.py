"""Which tokens of a sample are masked, and what stands in their place.

Python reference; the C++ twin csrc/data/masking.cpp takes the same words of the stream (seed, global sample index) in
the same order: first those of the selection, then one word for each masked position in ascending order.

    number     max(1, round(length * rate)), length with special tokens, halves to even (create_pretraining_data.py of
               google-research/bert under Python 3); only text tokens are candidates
    token      that many distinct candidates, all sets equally likely
    whole_word words in random order, each taken whole if it still fits
    ngram      the same with runs of 1 .. max_ngram words, p(n) proportional to 1/n (as in ALBERT), cut short at the
               end of a text, at a word already taken and at what still fits
    then       80 % become the mask token, 10 % stay, 10 % become a random token that is not special

If no word fits, the first word drawn is taken whole: a sample is never without a masked token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_alum.data.sampling.rng import Stream, WordStream, domain_word, threshold
from megatron_alum.data.sampling.settings import SampleSettings, SpecialTokens

MASKED_BELOW = threshold(0.8)
"""A word below this replaces the token by the mask token,"""
KEPT_BELOW = threshold(0.9)
"""one from there to this keeps it, the rest replaces it by a random token."""
ROUND_WORDS = 1 << 32


def num_to_mask(length: int, rate: float, num_candidates: int) -> int:
    """Masked tokens of a sample of `length` tokens, special ones included."""
    return min(max(1, round(length * rate)), num_candidates)


def mask_words(settings: SampleSettings, sample_index: int) -> WordStream:
    """The random words of one sample."""
    domain = domain_word(Stream.MASK, split=settings.split_number)
    return WordStream(settings.seed, domain, sample_index & 0xFFFFFFFF, sample_index >> 32)


def ngram_thresholds(max_ngram: int) -> list[int]:
    """Bounds t[n - 1] so that the run length is the number of bounds <= word, plus 1; p(n) proportional to 1/n."""
    weights = [1.0 / n for n in range(1, max_ngram + 1)]
    return [threshold(sum(weights[:n]) / sum(weights)) for n in range(1, max_ngram)]


def select(
    settings: SampleSettings,
    words: WordStream,
    num: int,
    *,
    word_first: npt.NDArray[np.bool_],
    text_first: npt.NDArray[np.bool_],
) -> list[int]:
    """Ascending indices of the masked ones among C candidates.

    word_first [C]: the candidate begins a word; text_first [C]: it begins A, B or the text of a document.
    """
    if settings.masking == "token":
        return _select_tokens(words, num, len(word_first))
    begins = np.flatnonzero(word_first | text_first)
    ends = np.append(begins[1:], len(word_first))
    longest = ngram_thresholds(settings.max_ngram) if settings.masking == "ngram" else []
    taken = _select_runs(words, num, (ends - begins).tolist(), text_first[begins].tolist(), longest)
    return [i for word in taken for i in range(begins[word], ends[word])]


def _select_tokens(words: WordStream, num: int, num_candidates: int) -> list[int]:
    """A uniform subset by Floyd's method: one word an element and no shuffle."""
    chosen: set[int] = set()
    for j in range(num_candidates - num, num_candidates):
        candidate = words.below(j + 1)
        chosen.add(j if candidate in chosen else candidate)
    return sorted(chosen)


def _select_runs(
    words: WordStream, num: int, sizes: list[int], text_first: list[bool], thresholds: list[int]
) -> list[int]:
    """Ascending numbers of the words taken; sizes in tokens; without thresholds every run is one word long."""
    order = list(range(len(sizes)))
    taken = [False] * len(sizes)
    budget = num
    for i in range(len(sizes)):
        if budget == 0:
            break
        j = i + words.below(len(sizes) - i)
        order[i], order[j] = order[j], order[i]
        if taken[order[i]]:
            continue
        run = 1 + sum(bound <= word for word in [words.word()] for bound in thresholds) if thresholds else 1
        for word in range(order[i], min(order[i] + run, len(sizes))):
            crosses = word > order[i] and text_first[word]
            if crosses or taken[word] or sizes[word] > budget:
                break
            taken[word] = True
            budget -= sizes[word]
    if budget == num:
        taken[order[0]] = True
    return [word for word, is_taken in enumerate(taken) if is_taken]


def replacement(token: int, word: int, special: SpecialTokens) -> int:
    """What stands in the place of a masked token: the mask token, itself, or a random regular token."""
    if word < MASKED_BELOW:
        return special.mask
    if word < KEPT_BELOW:
        return token
    return int(special.regular[(word - KEPT_BELOW) * len(special.regular) // (ROUND_WORDS - KEPT_BELOW)])
