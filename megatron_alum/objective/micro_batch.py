"""A micro-batch on the device: all of its sequences, and the leading ones that take the adversarial branch.

Everything that the host must know (numbers of tokens, sequences and rows) is computed before the move to the device, so
that no step waits for it. Letters: T tokens, A sequences of the part, M masked positions in them, tp tensor-parallel
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.batch import PretrainingBatch
from megatron_alum.data.sampling.placement import BatchPlan
from megatron_alum.models import ModelInputs
from megatron_alum.parallel import ProcessGroups


@dataclass(frozen=True)
class Part:
    """Some sequences as the network takes them."""

    batch: PretrainingBatch
    """tensors on the device"""
    inputs: ModelInputs
    """what the network reads of it"""
    row_share: Tensor
    """float32 [M]: 1 / masked positions of the row's own sequence, so that the rows of a sequence add up to 1"""

    @classmethod
    def load(cls, batch: PretrainingBatch, device: torch.device) -> Part:
        """Prepare on the host, then move to `device`."""
        inputs = ModelInputs.of(
            tokens=batch.tokens,
            token_types=batch.token_types,
            position=batch.position,
            lengths=batch.lengths,
            masked_positions=batch.masked_positions,
            device=device,
        )
        counts = torch.tensor(batch.masked_counts)
        row_share = (1 / counts).repeat_interleave(counts)
        return cls(batch.to(device, non_blocking=True), inputs, row_share.to(device, non_blocking=True))

    @property
    def row_sequence(self) -> Tensor:
        """int64 [M]: the sequence that each masked position lies in."""
        return self.batch.sequence[self.batch.masked_positions]

    @property
    def is_real(self) -> Tensor | None:
        """bool [T]: False in the tail that pads T; None without a tail."""
        batch = self.batch
        return None if batch.num_tokens == batch.tokens.numel() else batch.sequence < batch.num_sequences

    @property
    def sample_of_token(self) -> Tensor:
        """int64 [T]: global index of each token's sample (in the tail, that of the last one)."""
        return self.batch.sample_index[self.batch.sequence.clamp(max=self.batch.num_sequences - 1)]


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch and its part."""

    whole: Part
    """all sequences"""
    adversarial: Part | None
    """the first A, as a batch of their own; None where A = 0"""

    @classmethod
    def load(cls, batch: PretrainingBatch, device: torch.device, *, multiple: int, is_adversarial: bool) -> MicroBatch:
        """T becomes a multiple of `multiple`; without `is_adversarial` (the standard phase) there is no part."""
        whole = Part.load(batch, device)
        num_adversarial = batch.num_adversarial if is_adversarial else 0
        if num_adversarial == batch.num_sequences:
            return cls(whole, whole)
        if num_adversarial == 0:
            return cls(whole, None)
        return cls(whole, Part.load(batch.leading(num_adversarial, multiple), device))


def load_all(
    batches: Sequence[PretrainingBatch], config: RunConfig, device: torch.device, *, is_adversarial: bool
) -> list[MicroBatch]:
    """The micro-batches of an iteration on `device`.

    Pipeline stages exchange tensors of one shape, so with them all micro-batches are padded to the longest.
    """
    multiple = config.token_multiple
    if config.parallel.pipeline_model_parallel_size > 1:
        longest = max(batch.tokens.numel() for batch in batches)
        batches = [batch.leading(batch.num_sequences, longest) for batch in batches]
    return [MicroBatch.load(batch, device, multiple=multiple, is_adversarial=is_adversarial) for batch in batches]


def batch_plan(config: RunConfig, groups: ProcessGroups) -> BatchPlan:
    """Which samples this rank takes."""
    return BatchPlan(
        micro_batch_size=config.training.micro_batch_size,
        global_batch_size=config.training.global_batch_size,
        dp_rank=groups.dp_rank,
        dp_size=groups.dp_size,
        alum_batch_fraction=config.alum.batch_fraction,
        token_multiple=config.token_multiple,
    )
