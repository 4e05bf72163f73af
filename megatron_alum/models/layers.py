"""Transformer layers: the pre-LayerNorm one of Megatron's BERT and the post-LayerNorm one of Google's BERT and RoBERTa.

Parameters, their names and sharded checkpoints are those of megatron-core's TransformerLayer; its parts are chosen
through its layer spec: LayerNorm that allows sequence parallelism, attention within packed sequences. The
post-LayerNorm layer leaves megatron-core's two norm slots empty and normalises after each sum:
    pre-LN   h = x + attention(LN(x));   y = h + MLP(LN(h));   one more LN after the last layer
    post-LN  h = LN(x + attention(x));   y = LN(h + MLP(h))
After the last attention positions no longer interact, so the last MLP only needs the rows that the heads read: a layer
called with `rows` returns only these.
"""

from typing import Any, NamedTuple

import torch
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_alum.compat.versions import mlp_submodule
from megatron_alum.models.attention import core_attention
from megatron_alum.models.normalization import LayerNorm
from megatron_alum.models.parts import Parts
from megatron_alum.models.sequences import PackedSequences
from megatron_alum.ops import dropout

# Distributed checkpoints of Megatron's BERT name the norms after the linear layer that follows (Transformer Engine
# fuses the two), whichever layer spec wrote them. The same names let those checkpoints load here.
_STOCK_CHECKPOINT_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


class HiddenDropout(NamedTuple):
    """What decides the two dropouts of hidden values in a layer (`ops.draw_dropout`); None: the layer draws it."""

    attention: Tensor | None = None
    """of the attention's output"""
    mlp: Tensor | None = None
    """of the MLP's output, of `rows` if there are any"""


class _Layer(TransformerLayer):
    """What both layers do around their LayerNorms."""

    def _add(self, branch: tuple[Tensor, Tensor | None], residual: Tensor, drawn: Tensor | None) -> Tensor:
        """residual + dropout(output + bias), summed in the wider dtype and returned in that of the output."""
        output, bias = branch
        biased = output if bias is None else output + bias
        kept = dropout(biased, self.config.hidden_dropout, training=self.training, drawn=drawn)
        return (residual + kept).to(output.dtype)


class PreLayerNormTransformerLayer(_Layer):
    """LayerNorm before the attention and before the MLP."""

    def forward(
        self, hidden: Tensor, *, sequences: PackedSequences, rows: Tensor | None, drawn: HiddenDropout
    ) -> Tensor:
        """hidden [T(/tp), 1, H] -> the same shape, or [R, 1, H] for `rows` (int64 [R])."""
        normalized = self.input_layernorm(hidden)
        attended = self.self_attention(normalized, attention_mask=None, packed_seq_params=sequences)
        summed = _chosen(self._add(attended, hidden, drawn.attention), rows)
        return self._add(self.mlp(self.pre_mlp_layernorm(summed)), summed, drawn.mlp)


class PostLayerNormTransformerLayer(_Layer):
    """LayerNorm after each residual sum: parameters `attention_layernorm` and `mlp_layernorm` besides
    TransformerLayer's.
    """

    def __init__(self, config: Any, submodules: TransformerLayerSubmodules, **kwargs: Any) -> None:
        """As TransformerLayer; `submodules` must leave both of its norm slots empty."""
        assert submodules.input_layernorm is IdentityOp and submodules.pre_mlp_layernorm is IdentityOp
        super().__init__(config, submodules, **kwargs)
        self.attention_layernorm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.mlp_layernorm = LayerNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(
        self, hidden: Tensor, *, sequences: PackedSequences, rows: Tensor | None, drawn: HiddenDropout
    ) -> Tensor:
        """As the pre-LayerNorm layer's."""
        attended = self.self_attention(hidden, attention_mask=None, packed_seq_params=sequences)
        summed = self.attention_layernorm(_chosen(self._add(attended, hidden, drawn.attention), rows))
        normalized: Tensor = self.mlp_layernorm(self._add(self.mlp(summed), summed, drawn.mlp))
        return normalized


def _chosen(hidden: Tensor, rows: Tensor | None) -> Tensor:
    """`rows` of hidden [T, 1, H], or all of it."""
    return hidden if rows is None else hidden.index_select(0, rows)


def layer_spec(*, post_layernorm: bool, parts: Parts) -> ModuleSpec:
    """The spec of one layer."""
    norm: type[torch.nn.Module] = IdentityOp if post_layernorm else LayerNorm
    attention = SelfAttentionSubmodules(
        linear_qkv=parts.column,
        core_attention=core_attention(parts.attention),
        linear_proj=parts.row,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    submodules = TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=ModuleSpec(
            module=SelfAttention, params={"attn_mask_type": AttnMaskType.padding}, submodules=attention
        ),
        pre_mlp_layernorm=norm,
        mlp=mlp_submodule(MLPSubmodules(linear_fc1=parts.column, linear_fc2=parts.row)),
        sharded_state_dict_keys_map={} if post_layernorm else _STOCK_CHECKPOINT_KEYS,
    )
    return ModuleSpec(
        module=PostLayerNormTransformerLayer if post_layernorm else PreLayerNormTransformerLayer, submodules=submodules
    )


def block_spec(num_layers: int, *, post_layernorm: bool, parts: Parts) -> TransformerBlockSubmodules:
    """`num_layers` layers, with a final LayerNorm only in the pre-LayerNorm network."""
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(post_layernorm=post_layernorm, parts=parts)] * num_layers,
        layer_norm=None if post_layernorm else LayerNorm,
    )
