"""The micro-batches that whole training steps are timed on: real text as placement by length divides it, or full
rows."""

import argparse
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.batch import PretrainingBatch
from megatron_alum.data.sampling.loader import IterationBatches
from megatron_alum.data.sampling.placement import BatchPlan, Counts

NO_LABEL = -1


def padded_rows(batch: PretrainingBatch, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, token types, 1 at real tokens, and labels (NO_LABEL where there is none), [B, length] each."""
    labels = torch.full_like(batch.tokens, NO_LABEL)
    labels[batch.masked_positions] = batch.masked_labels
    columns = ((batch.tokens, 0), (batch.token_types, 0), (torch.ones_like(batch.tokens), 0), (labels, NO_LABEL))

    def rows(values: Tensor, filler: int) -> Tensor:
        parts = values[: batch.num_tokens].split(batch.lengths)
        return torch.stack([pad(part, (0, length - len(part)), value=filler) for part in parts])

    tokens, types, is_real, labels = (rows(values, filler) for values, filler in columns)
    return tokens, types, is_real, labels


def one_micro_batch(arguments: argparse.Namespace, config: RunConfig) -> IterationBatches:
    """The micro-batch of a row with its counts, as the loader gives them."""
    size, length = arguments.micro_batch_size, arguments.seq_length
    if arguments.data:
        from megatron_alum.data.sampling.dataset import open_datasets  # random tokens need no tokenizers

        datasets = open_datasets(
            config.data, model_type=config.model.model_type, seq_length=length, train_samples=16 * size, seed=1234
        )
        # One of sixteen micro-batches that placement has made nearly equal.
        plan = BatchPlan(size, 16 * size).iteration(datasets.train, 0)
        batch = datasets.train.batch(
            plan.micro_batches[0], num_adversarial=plan.num_adversarial[0], multiple=config.token_multiple
        )
    else:
        batch = _random_batch(arguments)
    part = max(1, round(config.alum.batch_fraction * batch.num_sequences))
    batch = replace(batch, num_adversarial=part)
    counts = Counts(
        masked=batch.num_masked_tokens,
        labelled=batch.num_sequences,
        adversarial_masked=batch.num_adversarial_masked,
        adversarial_sequences=part,
        tokens=batch.num_tokens,
        squared_lengths=sum(n * n for n in batch.lengths),
    )
    return IterationBatches([batch], counts, 0.0)


def _random_batch(arguments: argparse.Namespace) -> PretrainingBatch:
    """Random tokens in full rows, with the given number of each masked."""
    generator = torch.Generator().manual_seed(0)
    size, length = arguments.micro_batch_size, arguments.seq_length
    masked = int(arguments.mask_rate * length)
    places = [torch.randperm(length, generator=generator)[:masked].sort().values + b * length for b in range(size)]
    draw = lambda count: torch.randint(5, arguments.vocab_size, (count,), generator=generator)  # noqa: E731
    return PretrainingBatch(
        tokens=draw(size * length),
        token_types=(torch.arange(length) > length // 2).long().repeat(size),
        position=torch.arange(length).repeat(size),
        sequence=torch.arange(size).repeat_interleave(length),
        cu_seqlens=torch.arange(size + 1, dtype=torch.int32) * length,
        masked_positions=torch.cat(places),
        masked_labels=draw(size * masked),
        nsp_labels=torch.arange(size) % 2,
        sample_index=torch.arange(size),
        lengths=(length,) * size,
        masked_counts=(masked,) * size,
        pad_token=0,
    )
