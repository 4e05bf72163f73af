"""What the pre-training samples are made of: shards, split, sentence-pair objective, masking and the sampler.

The checks here need nothing but the values themselves; what depends on the files (does a shard exist, does its split
hold two documents) is checked where they are opened, `megatron_alum/data/sampling/dataset.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_alum.config.checks import Count, Range, Share, check_fields
from megatron_alum.config.places import InputPrefix, OutputFolder

MaskRate = Annotated[float, Range(0, 1, low_open=True, high_open=True)]


@dataclass(frozen=True)
class DataConfig:
    """Pre-training data

    Shards written by megatron-alum preprocess, and how samples are drawn from them.
    """

    data_path: tuple[InputPrefix, ...]
    """prefixes of shards (--output-prefix of megatron-alum preprocess), or WEIGHT PREFIX pairs for a weighted blend;
    without weights, several prefixes are drawn from in proportion to their tokens"""
    split: str = "949,50,1"
    """shares of the documents for training, validation and test, by position in the shard; normalised to their sum"""
    objective: Literal["auto", "nsp", "sop", "none"] = "auto"
    """sentence-pair question: nsp (Google's BERT), sop (ALBERT), none (RoBERTa full sentences); auto: none for roberta,
    nsp for the others"""
    short_seq_prob: Share = 0.1
    """probability that a pair gets a random shorter target length instead of the full one (nsp and sop)"""
    masking: Literal["token", "whole_word", "ngram"] = "token"
    """what is masked together: single tokens (BERT), whole words, or runs of 1 to --max-ngram words (p(n) ~ 1/n)"""
    max_ngram: Count = 3
    """longest run of words masked together with --masking ngram"""
    mask_rate_start: MaskRate = 0.05
    """share of the tokens masked in the first step of the curriculum (ALUM section 4.2: 5 %)"""
    mask_rate_end: MaskRate = 0.25
    """share of the tokens masked in the last step of the curriculum (ALUM section 4.2: 25 %)"""
    mask_rate_steps: Count = 5
    """number of equal steps of the run over which the rate rises linearly (ALUM section 4.2: 5); 1 keeps it constant,
    for which start and end must be equal"""
    data_cache_path: OutputFolder | None = None
    """folder for the pair indices, one file per epoch; `index-cache` beside the shard by default"""
    sampler: Literal["auto", "cpp", "python"] = "auto"
    """implementation that assembles batches; both give bit-identical results. auto: cpp if the extension is built"""
    sampler_threads: Count = 1
    """threads per process that prepare micro-batches and build pair indices"""
    prefetch_batches: Count = 8
    """micro-batches that each process prepares ahead in the background, rounded up to whole iterations"""

    def __post_init__(self) -> None:
        """Refuse values that would be wrong with any data."""
        if not self.data_path:
            raise ValueError("--data-path must name at least one shard prefix, but is empty instead.")
        check_fields(self)
        if self.mask_rate_steps == 1 and self.mask_rate_start != self.mask_rate_end:
            raise ValueError(
                f"--mask-rate-steps must be at least 2 to go from {self.mask_rate_start} to {self.mask_rate_end}, "
                "but is 1 instead. Set --mask-rate-start and --mask-rate-end to one value for a constant rate."
            )
        self.split_shares  # noqa: B018  (a malformed --split is refused now, not at the first use)

    @property
    def split_shares(self) -> tuple[float, float, float]:
        """Shares of training, validation and test documents, summing to 1.

        Raises: ValueError unless `split` is one to three numbers >= 0 with a positive sum.
        """
        try:
            shares = [float(part) for part in self.split.replace("/", ",").split(",")]
        except ValueError:
            shares = []
        if not 1 <= len(shares) <= 3 or any(not s >= 0 or math.isinf(s) for s in shares) or not sum(shares) > 0:
            raise ValueError(f'--split must be up to three numbers like "949,50,1", but is {self.split!r} instead.')
        train, valid, test = (share / sum(shares) for share in shares + [0.0] * (3 - len(shares)))
        return train, valid, test

    @property
    def mask_rates(self) -> tuple[float, ...]:
        """Mask rate of each step of the curriculum, in order."""
        steps = max(self.mask_rate_steps - 1, 1)
        rise = self.mask_rate_end - self.mask_rate_start
        # Rounded so that 5 -> 25 % gives 0.15 and not 0.15000000000000002: the value is logged and compared.
        return tuple(round(self.mask_rate_start + rise * i / steps, 12) for i in range(self.mask_rate_steps))

    def objective_for(self, model_type: str) -> str:
        """The objective that `auto` means for this model type."""
        if self.objective != "auto":
            return self.objective
        return "none" if model_type == "roberta" else "nsp"
