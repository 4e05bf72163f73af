"""Small batches with pairs and padding, shared by the model tests."""

import dataclasses

import torch

VOCAB_SIZE = 77


@dataclasses.dataclass
class Batch:
    tokens: torch.Tensor
    token_types: torch.Tensor
    padding_mask: torch.Tensor
    masked_positions: torch.Tensor
    labels: torch.Tensor


def make_batch(model_type: str, *, batch_size: int = 3, length: int = 16, padded: bool = True) -> Batch:
    """Random tokens; row i ends in 3 i padding tokens, its second half has token type 1 (but for RoBERTa)."""
    generator = torch.Generator().manual_seed(5)
    pad_id = 1 if model_type == "roberta" else 0
    tokens = torch.randint(5, VOCAB_SIZE, (batch_size, length), generator=generator)
    mask = torch.ones(batch_size, length, dtype=torch.bool)
    for row in range(batch_size if padded else 0):
        mask[row, length - 3 * row :] = False
    tokens = torch.where(mask, tokens, pad_id)
    types = torch.zeros_like(tokens)
    if model_type != "roberta":
        types[:, length // 2 :] = 1
    positions = torch.tensor([row * length + column for row in range(batch_size) for column in (1, 4, 6)])
    labels = torch.randint(5, VOCAB_SIZE, positions.shape, generator=generator)
    return Batch(tokens, types, mask, positions, labels)
