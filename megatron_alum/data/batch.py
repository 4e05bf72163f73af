"""One micro-batch of pre-training samples, as the training step takes it.

Letters: B sequences of the micro-batch, S sequence length, N masked positions of the whole micro-batch.
One row before and after (S = 12, BERT layout, masked positions 3 and 8):

    text        [CLS] the cat sat down [SEP] it slept [SEP]  [PAD] [PAD] [PAD]
    tokens      [CLS] the cat [MASK] down [SEP] it slept ... (position 8 is [SEP]: never a candidate)
    token_types   0    0   0    0     0     0    1    1    1     0     0     0
    padding_mask  T    T   T    T     T     T    T    T    T     F     F     F

Masked positions are flat (`b * S + s`) so that the MLM head can gather exactly N rows of hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

IGNORED_LABEL = -100
"""NSP label of a sample whose objective has no sentence-pair question (the index torch's cross-entropy ignores)."""


@dataclass(frozen=True)
class PretrainingBatch:
    """Tensors of one micro-batch; all on the same device, CPU when fresh from the loader."""

    tokens: torch.Tensor
    """int64 [B, S]: token ids with masked positions already replaced, padded at the end."""
    token_types: torch.Tensor
    """int64 [B, S]: 0 for `[CLS] A [SEP]` and padding, 1 for `B [SEP]`; all 0 where the model has one type."""
    padding_mask: torch.Tensor
    """bool [B, S]: True at real tokens (special tokens included), False at padding."""
    masked_positions: torch.Tensor
    """int64 [N]: flat positions b * S + s, ascending."""
    masked_labels: torch.Tensor
    """int64 [N]: original token ids at `masked_positions`."""
    nsp_labels: torch.Tensor
    """int64 [B]: nsp: 0 true next, 1 random; sop: 0 in order, 1 swapped; -100 where the objective has none."""
    sample_index: torch.Tensor
    """int64 [B]: global index of each sample in the run, from 0; independent of the data-parallel layout."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PretrainingBatch:
        """Return the batch on `device`; `non_blocking` has an effect for pinned memory only."""
        return PretrainingBatch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        )

    def pin_memory(self) -> PretrainingBatch:
        """Return the batch in page-locked memory, from which copies to a GPU overlap with compute."""
        return PretrainingBatch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    @property
    def num_masked_tokens(self) -> int:
        """Number N of masked positions of the micro-batch."""
        return self.masked_positions.numel()

    @property
    def num_sequences(self) -> int:
        """Number B of sequences of the micro-batch."""
        return self.tokens.shape[0]
