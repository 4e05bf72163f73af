"""The two heads of BERT, computed where the loss needs them: masked positions and the first token.

Rows are picked out of the encoder's output first (about a seventh of the tokens), so logits never exist for the others.
Under sequence parallelism each rank holds a part of the tokens: it fills in the rows it holds, the sum over the group
completes them on every rank, and from there on all ranks compute the same. That makes the gradients of the head's
parameters complete on each rank, so none of them is marked for megatron-core's sequence-parallel all-reduce, and the
decoder works as without sequence parallelism.
"""

from typing import NamedTuple

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.models.normalization import LayerNorm, mark_sequence_parallel
from megatron_alum.parallel.groups import ProcessGroups


class HeadOutputs(NamedTuple):
    """What the losses read: `mlm_logits` [N, V/tp] of this rank's vocabulary rows, `nsp_logits` [B, 2] or None."""

    mlm_logits: Tensor
    nsp_logits: Tensor | None


def pick_rows(hidden: Tensor, positions: Tensor, groups: ProcessGroups) -> Tensor:
    """Rows of hidden [T(/tp), 1, H] at `positions` (int64 [N] into T) -> [N, H] on every rank."""
    rows = hidden.squeeze(1)
    if not groups.sequence_parallel:
        return rows.index_select(0, positions)
    local = positions - groups.tp_rank * len(rows)
    is_local = (local >= 0) & (local < len(rows))
    return reduce_from_tensor_model_parallel_region(
        rows.index_select(0, torch.where(is_local, local, 0)).masked_fill(~is_local[:, None], 0.0), group=groups.tp
    )


class MlmTransform(MegatronModule):
    """dense, exact GELU, LayerNorm: the layers between a masked position and the decoder."""

    def __init__(self, config: TransformerConfig) -> None:
        """Parameters `dense` and `layer_norm`, equal on all tensor-parallel ranks."""
        super().__init__(config=config)
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon)
        mark_sequence_parallel(self.layer_norm, False)

    def forward(self, rows: Tensor) -> Tensor:
        """[N, H] -> [N, H]."""
        transformed: Tensor = self.layer_norm(F.gelu(self.dense(rows)))
        return transformed


class Pooler(MegatronModule):
    """tanh(dense(first token))."""

    def __init__(self, config: TransformerConfig) -> None:
        """Parameter `dense`, equal on all tensor-parallel ranks."""
        super().__init__(config=config)
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_rows: Tensor) -> Tensor:
        """[B, H] -> [B, H]."""
        return torch.tanh(self.dense(first_rows))


def decoder(config: TransformerConfig, padded_vocab_size: int, groups: ProcessGroups) -> ColumnParallelLinear:
    """Holds the bias of this rank's vocabulary rows under BertModel's name; the weight is that of the word embeddings.

    If another pipeline stage holds these, this one gets a copy of them, which megatron-core keeps equal. This module
    does not multiply: `SplitBert.heads` does, with the bias in the product.
    """
    return ColumnParallelLinear(
        config.hidden_size,
        padded_vocab_size,
        config=config,
        init_method=config.init_method,
        bias=True,
        gather_output=False,
        skip_weight_param_allocation=groups.is_first_stage,
        tp_group=groups.tp,
    )
