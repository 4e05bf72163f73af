"""One micro-batch of pre-training samples as a single row of tokens without padding.

Letters: T tokens of the row, B sequences of the micro-batch, N masked positions.
Two sequences back to back (BERT layout, masked positions 3 and 12, T rounded up to a multiple of 8):

    text          [CLS] the cat sat down [SEP] it slept [SEP] [CLS] he  ran far  [SEP] so  [SEP]
    tokens        [CLS] the cat [MASK] ...                    [CLS] he  ran [MASK] ...            (that is all: 16)
    token_types     0    0   0   0   0     0    1   1     1     0    0   0   0     0    1   1
    position        0    1   2   3   4     5    6   7     8     0    1   2   3     4    5   6
    sequence        0    0   0   0   0     0    0   0     0     1    1   1   1     1    1   1
    cu_seqlens      0, 9, 16

Where T exceeds the real tokens, the rest is the tail: an extra sequence (number B, pad tokens, type and position 0)
that no cu_seqlens entry, no masked position and no loss refers to.
Sequences that take the adversarial branch come first, so that they can be split off as a batch: `leading`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORED_LABEL = -100
"""NSP label of a sample whose objective has no sentence-pair question (the index torch's cross-entropy ignores)."""
DEFAULT_TOKEN_MULTIPLE = 8
"""T is a multiple of this: matrix units need rows in multiples of 8."""


def rounded_up(num_tokens: int, multiple: int) -> int:
    """The first multiple of `multiple` that is not below `num_tokens`."""
    return -(-num_tokens // multiple) * multiple


@dataclass(frozen=True, eq=False)
class PretrainingBatch:
    """Tensors of one micro-batch, all on one device (CPU when fresh from the loader), and what the host knows about
    them.

    Host facts are plain integers, fixed before the batch moves: asking for one never waits for a device.
    """

    tokens: Tensor
    """int64 [T]: token ids with masked positions already replaced; the tail holds pad tokens"""
    token_types: Tensor
    """int64 [T]: 0 for `[CLS] A [SEP]` and the tail, 1 for `B [SEP]`; all 0 where the model has one type"""
    position: Tensor
    """int64 [T]: place of each token in its own sequence, from 0; 0 in the tail"""
    sequence: Tensor
    """int64 [T]: which of the B sequences a token belongs to, ascending from 0; B in the tail"""
    cu_seqlens: Tensor
    """int32 [B + 1]: first token of each sequence, and the end of the last, where the tail begins"""
    masked_positions: Tensor
    """int64 [N]: ascending indices into T"""
    masked_labels: Tensor
    """int64 [N]: original token ids at `masked_positions`"""
    nsp_labels: Tensor
    """int64 [B]: nsp: 0 true next, 1 random; sop: 0 in order, 1 swapped; -100 if the objective has none"""
    sample_index: Tensor
    """int64 [B]: global index of each sample in the run, from 0; independent of the data-parallel layout"""
    lengths: tuple[int, ...]
    """tokens of each of the B sequences, special tokens included"""
    masked_counts: tuple[int, ...]
    """masked positions of each of the B sequences"""
    pad_token: int
    """id that fills the tail"""
    num_adversarial: int = 0
    """number of leading sequences that take the adversarial branch: 0 .. B"""

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Real tokens: T without the tail."""
        return sum(self.lengths)

    @property
    def num_masked_tokens(self) -> int:
        """N."""
        return sum(self.masked_counts)

    @property
    def num_adversarial_masked(self) -> int:
        """Masked positions of the sequences that take the adversarial branch; they come first among
        `masked_positions`."""
        return sum(self.masked_counts[: self.num_adversarial])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PretrainingBatch:
        """Return the batch on `device`; `non_blocking` has an effect for pinned memory only."""
        return replace(
            self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors().items()}
        )

    def pin_memory(self) -> PretrainingBatch:
        """Return the batch in page-locked memory, from which copies to a GPU overlap with compute."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Any]:
        """The fields that are tensors, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def leading(self, num_sequences: int, multiple: int) -> PretrainingBatch:
        """The first `num_sequences` sequences as a separate batch, with T a multiple of `multiple`."""
        assert 0 <= num_sequences <= self.num_sequences
        num_tokens, num_masked = sum(self.lengths[:num_sequences]), sum(self.masked_counts[:num_sequences])
        tail = rounded_up(num_tokens, multiple) - num_tokens
        if num_sequences == self.num_sequences and num_tokens + tail == len(self.tokens):
            return self

        def ended(values: Tensor, filler: int) -> Tensor:
            return torch.nn.functional.pad(values[:num_tokens], (0, tail), value=filler)

        return PretrainingBatch(
            tokens=ended(self.tokens, self.pad_token),
            token_types=ended(self.token_types, 0),
            position=ended(self.position, 0),
            sequence=ended(self.sequence, num_sequences),
            cu_seqlens=self.cu_seqlens[: num_sequences + 1],
            masked_positions=self.masked_positions[:num_masked],
            masked_labels=self.masked_labels[:num_masked],
            nsp_labels=self.nsp_labels[:num_sequences],
            sample_index=self.sample_index[:num_sequences],
            lengths=self.lengths[:num_sequences],
            masked_counts=self.masked_counts[:num_sequences],
            pad_token=self.pad_token,
            num_adversarial=min(self.num_adversarial, num_sequences),
        )
