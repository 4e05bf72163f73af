"""Embeddings in two halves, so that a perturbation can be added between them or after them.

    words(inputs)               word vectors, x of the paper ("sub-word embedding")
    complete(words, inputs)     + positions + token types [, LayerNorm], dropout: the encoder's input

Everything here is summed in float32, even with 16-bit parameters: a perturbation of 1e-5 only survives there.
Under sequence parallelism both halves hold this rank's tokens [T/tp, 1, H]; the tables of positions and types then see
those tokens only, and are marked so that megatron-core sums their gradients over the tensor-parallel group.
"""

import contextlib
from collections.abc import Callable

import torch
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.config.model import ModelConfig
from megatron_alum.models.inputs import ModelInputs
from megatron_alum.models.normalization import LayerNorm, mark_sequence_parallel
from megatron_alum.ops import dropout
from megatron_alum.parallel.groups import ProcessGroups


class SplitEmbedding(LanguageModelEmbedding):
    """Word, position and token-type tables of BERT, with the post-LayerNorm networks' `layer_norm`."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        config: TransformerConfig,
        padded_vocab_size: int,
        groups: ProcessGroups,
        lookup: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Tables of `padded_vocab_size` words (split over the tensor-parallel group), positions and token types, read
        by `lookup` (parts.py).
        """
        super().__init__(
            config=config,
            vocab_size=padded_vocab_size,
            max_sequence_length=model.num_position_rows,
            num_tokentypes=model.num_token_types,
            tp_group=groups.tp,
        )
        self.groups = groups
        self.lookup = lookup
        self.first_position = model.first_position
        self.layer_norm = (
            LayerNorm(config, config.hidden_size, config.layernorm_epsilon) if model.post_layernorm else None
        )
        self.word_embeddings.reduce_scatter_embeddings = groups.sequence_parallel
        mark_sequence_parallel(self.position_embeddings, groups.sequence_parallel)
        mark_sequence_parallel(self.tokentype_embeddings, groups.sequence_parallel)

    def words(self, inputs: ModelInputs) -> Tensor:
        """float32 [T, 1, H] ([T/tp, 1, H] under sequence parallelism)."""
        tokens = inputs.tokens[None]
        whole_table = self.groups.tp_size == 1
        vectors = self.lookup(tokens, self.word_embeddings.weight) if whole_table else self.word_embeddings(tokens)
        if not self.groups.sequence_parallel:  # the reduce-scatter has already transposed
            vectors = vectors.transpose(0, 1)
        return at_least_float32(vectors).contiguous()

    def complete(self, words: Tensor, inputs: ModelInputs) -> Tensor:
        """float32 [T(/tp), 1, H] -> float32 encoder input, same shape."""
        rows = self.groups.local_tokens(inputs.position + self.first_position)
        positions = at_least_float32(self.lookup(rows, self.position_embeddings.weight))[:, None]
        hidden = words + positions + self._types(inputs)
        if self.layer_norm is not None:
            weight, bias = at_least_float32(self.layer_norm.weight), at_least_float32(self.layer_norm.bias)
            hidden = F.layer_norm(hidden, self.layer_norm.normalized_shape, weight, bias, self.layer_norm.eps)
        split = self.groups.sequence_parallel and self.training
        with tensor_parallel.get_cuda_rng_tracker().fork() if split else contextlib.nullcontext():
            return dropout(hidden, self.config.hidden_dropout, training=self.training)

    def _types(self, inputs: ModelInputs) -> Tensor:
        """float32 [T(/tp), 1, H]; a network with a single type adds it everywhere, whatever types the batch has."""
        if self.num_tokentypes == 1:
            return at_least_float32(self.tokentype_embeddings.weight)  # [1, H], broadcast
        rows = self.groups.local_tokens(inputs.token_types)
        return at_least_float32(self.lookup(rows, self.tokentype_embeddings.weight))[:, None]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast to the dtype in which x + delta is summed: float32 for 16-bit networks."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
