"""What decides the samples of one run, resolved from configuration and tokenizer; plain values that C++ takes as well.

`SampleSettings` is everything but the text: objective, lengths, mask curriculum, seed. `SpecialTokens` is what the
sampler must know of the vocabulary: the ids around the text, which ids may stand in for a masked token, and which ids
begin a word. Both are immutable and say nothing of ranks or batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_alum.data.shards.corpus import SPLITS
from megatron_alum.data.tokenizers.word_marks import word_marks

Objective = Literal["nsp", "sop", "none"]
MAX_SEQUENCE_LENGTH = 1 << 15
"""Lengths are stored in 16 bits in the pair index."""


@dataclass(frozen=True)
class SampleSettings:
    """How text becomes samples."""

    objective: Objective
    """sentence-pair question"""
    seq_length: int
    """S, special tokens included"""
    seed: int
    """64 bits; the key of every random decision"""
    train_samples: int
    """length of the training run in samples (iterations x global batch), over which the mask rate rises"""
    mask_rates: tuple[float, ...]
    """share of tokens masked in each equal step of the run"""
    masking: Literal["token", "whole_word", "ngram"] = "token"
    """unit that is masked together"""
    max_ngram: int = 3
    """longest run of words of masking `ngram`"""
    short_seq_prob: float = 0.1
    """probability of a short target length, once a document and epoch"""
    split: Literal["train", "valid", "test"] = "train"
    """part of the documents the samples come from"""

    def __post_init__(self) -> None:
        """Refuse lengths that cannot hold a sample."""
        if not 8 <= self.seq_length <= MAX_SEQUENCE_LENGTH:
            raise ValueError(
                f"--seq-length must be between 8 and {MAX_SEQUENCE_LENGTH}, but is {self.seq_length} instead."
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed must be a whole number from 0 to 2^64 - 1, but is {self.seed} instead.")
        if self.train_samples < 1:
            raise ValueError(
                f"--train-iters x --global-batch-size must be at least 1, but is {self.train_samples} instead."
            )

    def mask_rate(self, sample_index: int) -> float:
        """Share of the tokens masked in this sample.

        Training: a function of the global sample index alone, so that neither a resume nor the data-parallel size
        moves it. Held-out splits: the mean of the curriculum at every point of the run (0.15 for 5 -> 25 %), so that
        their losses compare over time.
        """
        if self.split != "train":
            return round(sum(self.mask_rates) / len(self.mask_rates), 12)
        step = sample_index * len(self.mask_rates) // self.train_samples
        return self.mask_rates[min(step, len(self.mask_rates) - 1)]

    @property
    def split_number(self) -> int:
        """0 training, 1 validation, 2 test: part of the random domain."""
        return SPLITS.index(self.split)


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """What the sampler knows of a vocabulary of V entries."""

    cls: int
    """id before the text: [CLS] or <s>"""
    sep: int
    """id after each text: [SEP] or </s>"""
    mask: int
    """id that replaces a masked token"""
    pad: int
    """id after the end; 0 for BERT, 1 for RoBERTa"""
    pair_separators: int
    """number of `sep` between A and B: 1 for BERT, 2 for RoBERTa"""
    second_type: int
    """token type of B and its `sep`: 1 for BERT, 0 for RoBERTa, which has one type"""
    regular: npt.NDArray[np.int32]
    """[<= V] ids that may replace a masked token: every id but the special ones; [unused...] entries are among them,
    as in create_pretraining_data.py of google-research/bert, which draws from the whole vocabulary"""
    word_start: npt.NDArray[np.bool_]
    """[V] True where a token begins a word"""
    word_end: npt.NDArray[np.bool_]
    """[V] True where the token after this one begins a word: for tokenizers that mark the ends of words"""

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, roberta: bool, masking: str = "token") -> SpecialTokens:
        """Ids of a Hugging Face fast tokenizer with its five special tokens; `roberta` picks the layout of pairs.

        Raises: ValueError when `masking` is by words and it cannot be known where the tokenizer's words begin.
        """
        special = set(tokenizer.all_special_ids)
        marks = word_marks(tokenizer)
        if marks is None and masking != "token":
            raise ValueError(
                f"--masking must be token for this tokenizer, but is {masking} instead: its tokens do not show where "
                "words begin (no ## before, space or U+2581 in front, or </w> behind). Leave --masking out."
            )
        none = np.zeros(len(tokenizer), dtype=np.bool_)
        return cls(
            cls=tokenizer.cls_token_id,
            sep=tokenizer.sep_token_id,
            mask=tokenizer.mask_token_id,
            pad=tokenizer.pad_token_id,
            pair_separators=2 if roberta else 1,
            second_type=0 if roberta else 1,
            regular=np.array([i for i in range(len(tokenizer)) if i not in special], dtype=np.int32),
            word_start=marks.starts if marks else ~none,
            word_end=marks.ends if marks else none,
        )

    def num_special(self, objective: str) -> int:
        """Special tokens a sample always holds; the rest of S is text (full sentences add one a document end)."""
        return 2 if objective == "none" else 2 + self.pair_separators

    @property
    def vocab_size(self) -> int:
        """V, the number of ids the tokenizer knows."""
        return len(self.word_start)
