"""What the network reads of a micro-batch, on its device: T tokens of B sequences back to back, and the rows of the
heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_alum.models.sequences import PackedSequences


@dataclass(frozen=True)
class ModelInputs:
    """Only integers; the same on every rank of a model."""

    tokens: Tensor
    """int64 [T]"""
    token_types: Tensor
    """int64 [T]"""
    position: Tensor
    """int64 [T], position in its sequence, from 0"""
    sequences: PackedSequences
    """where the sequences lie"""
    masked_positions: Tensor
    """int64 [N], positions in T whose tokens are predicted"""
    first_tokens: Tensor
    """int64 [B], positions in T of the sequences' first tokens"""

    @classmethod
    def of(
        cls,
        *,
        tokens: Tensor,
        token_types: Tensor,
        position: Tensor,
        lengths: Sequence[int],
        masked_positions: Tensor,
        device: torch.device,
    ) -> ModelInputs:
        """Tensors as in the fields, on any device, and the `lengths` of the sequences, which the host must know.

        Sequences are stored back to back; nothing reads the tokens beyond the last one.
        """
        sequences = PackedSequences(lengths, tokens.numel(), device)
        return cls(
            tokens=tokens.to(device, non_blocking=True),
            token_types=token_types.to(device, non_blocking=True),
            position=position.to(device, non_blocking=True),
            sequences=sequences,
            masked_positions=masked_positions.to(device, non_blocking=True),
            first_tokens=torch.tensor(sequences.starts).to(device, non_blocking=True),
        )
