"""Core attention through torch's scaled_dot_product_attention, in the place of megatron-core's DotProductAttention.

The mask names keys only, [B, 1, 1, S], and is absent for a batch without padding: an explicit mask rules out flash
attention on the GPU, and a padded query's output is never read. Dropout runs inside megatron-core's RNG tracker, so
that the heads of each tensor-parallel rank draw their own masks and activation recomputation can replay them. On the
CPU torch's kernel is slow with dropout; that case is ops/cpu_dropout.py's.
"""

import contextlib
from typing import Any

from megatron.core import tensor_parallel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.ops import attention_with_dropout


class SdpaCoreAttention(MegatronModule):
    """softmax(q k^T / sqrt(head size)) v for the heads of this rank; the `core_attention` of a layer spec."""

    def __init__(self, config: TransformerConfig, **_unused: Any) -> None:
        """Reads the dropout probability and the layout from `config`; other arguments of the spec have no bearing
        here.
        """
        super().__init__(config=config)
        self.probability: float = config.attention_dropout
        # Under sequence parallelism the transformer block has forked the tracker already.
        self.fork_rng = not config.sequence_parallel

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_unused: Any
    ) -> Tensor:
        """query, key, value [S, B, heads, D], mask bool [B, 1, 1, S], True = ignore this key -> [S, B, heads x D]."""
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [B, heads, S, D]
        keep = None if attention_mask is None else attention_mask.logical_not()
        probability = self.probability if self.training else 0.0
        fork = (
            tensor_parallel.get_cuda_rng_tracker().fork() if probability and self.fork_rng else contextlib.nullcontext()
        )
        with fork:
            if probability and not q.is_cuda:
                context = attention_with_dropout(q, k, v, keep, probability)
            else:
                context = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=probability)
        return context.permute(2, 0, 1, 3).flatten(2)
