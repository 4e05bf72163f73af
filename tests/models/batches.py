"""Small batches of pairs, back to back and padded, shared by the model tests."""

import dataclasses

import torch

from megatron_alum.config.model import ModelConfig
from megatron_alum.models import ModelInputs

VOCAB_SIZE = 77
LENGTHS = (16, 13, 10)
"""39 tokens, padded to 40"""
PAD = {"megatron-bert": 0, "bert": 0, "roberta": 1}
MASKED_COLUMNS = (1, 4, 6)


def small_config(model_type="megatron-bert", **changes):
    """Two layers of width 24, rows of 16, no dropout."""
    sizes = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "seq_length": 16}
    return ModelConfig(model_type=model_type, **{**sizes, "hidden_dropout": 0.0, "attention_dropout": 0.0, **changes})


@dataclasses.dataclass
class Batch:
    """Sequences back to back; `sequence` numbers them, and the tail after them."""

    model_type: str
    tokens: torch.Tensor
    token_types: torch.Tensor
    position: torch.Tensor
    sequence: torch.Tensor
    lengths: tuple[int, ...]
    masked_positions: torch.Tensor
    labels: torch.Tensor

    @property
    def inputs(self) -> ModelInputs:
        return ModelInputs.of(
            tokens=self.tokens,
            token_types=self.token_types,
            position=self.position,
            lengths=self.lengths,
            masked_positions=self.masked_positions,
            device=torch.device("cpu"),
        )

    @property
    def is_real(self) -> torch.Tensor:
        """bool [T]: False in the tail."""
        return self.sequence < len(self.lengths)

    def alone(self, index: int, multiple: int = 8) -> "Batch":
        """The sequence `index` as a batch of its own."""
        start = sum(self.lengths[:index])
        own = slice(start, start + self.lengths[index])
        labels = self.labels[index * len(MASKED_COLUMNS) : (index + 1) * len(MASKED_COLUMNS)]
        return flat(self.model_type, [self.tokens[own]], [self.token_types[own]], labels, multiple)

    def padded(self, values: torch.Tensor | None = None, fill: int | None = None) -> torch.Tensor:
        """`values` [T, ...], the tokens by default, as rows [B, S, ...] padded at the right."""
        values = self.tokens if values is None else values
        fill = (PAD[self.model_type] if values is self.tokens else 0) if fill is None else fill
        rows = torch.full((len(self.lengths), max(self.lengths), *values.shape[1:]), fill, dtype=values.dtype)
        for row, part in zip(rows, values.split([*self.lengths, len(values) - sum(self.lengths)]), strict=False):
            row[: len(part)] = part
        return rows

    @property
    def padding_mask(self) -> torch.Tensor:
        """bool [B, S]: True for the real tokens of `padded`."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]

    @property
    def padded_positions(self) -> torch.Tensor:
        """int64 [N], row * S + column of the masked positions in `padded`."""
        sequence, column = self.sequence[self.masked_positions], self.position[self.masked_positions]
        return sequence * max(self.lengths) + column


def flat(model_type, tokens, token_types, labels, multiple=8) -> Batch:
    """The sequences (lists of tensors) back to back, with a tail up to a multiple of `multiple`."""
    lengths = tuple(len(one) for one in tokens)
    tail = -sum(lengths) % multiple
    pieces = [*lengths, tail]
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    return Batch(
        model_type,
        tokens=torch.cat([*tokens, torch.full((tail,), PAD[model_type])]),
        token_types=torch.cat([*token_types, torch.zeros(tail, dtype=torch.int64)]),
        position=torch.cat([torch.arange(length) for length in lengths] + [torch.zeros(tail, dtype=torch.int64)]),
        sequence=torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor(pieces)),
        lengths=lengths,
        masked_positions=torch.tensor([start + column for start in starts for column in MASKED_COLUMNS]),
        labels=labels,
    )


def make_batch(model_type: str, lengths: tuple[int, ...] = LENGTHS, multiple: int = 8, seed: int = 5) -> Batch:
    """Random tokens; the second half of each sequence has token type 1 (except for RoBERTa)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(5, VOCAB_SIZE, (length,), generator=generator) for length in lengths]
    types = [torch.arange(length) // (-(-length // 2)) * (model_type != "roberta") for length in lengths]
    labels = torch.randint(5, VOCAB_SIZE, (len(lengths) * len(MASKED_COLUMNS),), generator=generator)
    return flat(model_type, tokens, types, labels, multiple)
