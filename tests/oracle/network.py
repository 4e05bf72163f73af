"""A masked language model in plain torch, float64: one sequence at a time, no batch, no padding, no project code.

Three architectures from their definitions: `megatron-bert` (pre-LayerNorm, arXiv 1909.08053), `bert` (post-LayerNorm,
arXiv 1810.04805) and `roberta` (arXiv 1907.11692). Weights are a dict of transformers' names, as a state dict of
MegatronBertForPreTraining, BertForPreTraining or RobertaForMaskedLM has them; tied copies are not read.

x, the tensor that ALUM perturbs, cuts the network in two: `below` computes it, `above` continues from it.
    word            rows of the word table
    encoder_input   what the first layer reads
    layer           the hidden state after `layer` layers

Letters: L tokens of the sequence, H hidden, V vocabulary, N masked positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LAYERNORM_EPSILON = {"megatron-bert": 1e-5, "bert": 1e-12, "roberta": 1e-5}
FIRST_POSITION = {"megatron-bert": 0, "bert": 0, "roberta": 2}


@dataclass(frozen=True)
class Sequence:
    """One training example, int64 tensors on the CPU."""

    tokens: Tensor
    """[L]"""
    token_types: Tensor
    """[L]; zeros for RoBERTa"""
    masked_positions: Tensor
    """[N], positions in the sequence"""
    masked_labels: Tensor
    """[N]"""
    nsp_label: int | None
    """0 or 1; None where the sequence has no sentence-pair label"""
    start: Tensor | None = None
    """[L, H] random start of delta; None for a sequence that takes no adversarial branch"""


@dataclass(frozen=True)
class Network:
    """Weights, and the settings that they do not determine."""

    model_type: str
    weights: Mapping[str, Tensor]
    num_heads: int
    layernorm_epsilon: float | None = None
    """None for the architecture's usual one"""
    first_position: int | None = None
    """Row of the position table that the first token takes; None for the architecture's usual one"""

    def below(self, sequence: Sequence, level: str, layer: int) -> Tensor:
        """x, [L, H]."""
        x = self._base("embeddings.word_embeddings.weight")[sequence.tokens]
        if level == "word":
            return x
        x = self._encoder_input(x, sequence)
        return x if level == "encoder_input" else self._layers(x, 0, layer)

    def above(self, x: Tensor, sequence: Sequence, level: str, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Last hidden state [L, H], MLM logits at the masked positions [N, V], NSP logits [2] or None."""
        if level == "word":
            x = self._encoder_input(x, sequence)
        x = self._layers(x, layer if level == "layer" else 0, self.num_layers)
        if self.model_type == "megatron-bert":
            x = self._norm(x, self._prefix + "encoder.ln")
        return x, self._mlm_logits(x[sequence.masked_positions]), self._nsp_logits(x)

    @property
    def num_layers(self) -> int:
        """Layers that the weights have."""
        return 1 + max(int(name.split(".layer.")[1].split(".")[0]) for name in self.weights if ".layer." in name)

    @property
    def _prefix(self) -> str:
        return "roberta." if self.model_type == "roberta" else "bert."

    def _base(self, name: str) -> Tensor:
        return self.weights[self._prefix + name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        epsilon = self.layernorm_epsilon or LAYERNORM_EPSILON[self.model_type]
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _encoder_input(self, words: Tensor, sequence: Sequence) -> Tensor:
        first = FIRST_POSITION[self.model_type] if self.first_position is None else self.first_position
        positions = self._base("embeddings.position_embeddings.weight")[first : first + len(sequence.tokens)]
        x = words + positions + self._base("embeddings.token_type_embeddings.weight")[sequence.token_types]
        return x if self.model_type == "megatron-bert" else self._norm(x, self._prefix + "embeddings.LayerNorm")

    def _layers(self, x: Tensor, begin: int, end: int) -> Tensor:
        for index in range(begin, end):
            x = self._layer(x, f"{self._prefix}encoder.layer.{index}.")
        return x

    def _layer(self, x: Tensor, name: str) -> Tensor:
        if self.model_type == "megatron-bert":
            x = x + self._attention(self._norm(x, name + "attention.ln"), name)
            return x + self._mlp(self._norm(x, name + "ln"), name)
        x = self._norm(x + self._attention(x, name), name + "attention.output.LayerNorm")
        return self._norm(x + self._mlp(x, name), name + "output.LayerNorm")

    def _attention(self, x: Tensor, name: str) -> Tensor:
        size = x.shape[-1] // self.num_heads
        query, key, value = (self._linear(x, f"{name}attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for head in range(self.num_heads):
            columns = slice(head * size, (head + 1) * size)
            scores = query[:, columns] @ key[:, columns].T / math.sqrt(size)
            heads.append(scores.softmax(-1) @ value[:, columns])
        return self._linear(torch.cat(heads, -1), name + "attention.output.dense")

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        return self._linear(_gelu(self._linear(x, name + "intermediate.dense")), name + "output.dense")

    def _mlm_logits(self, rows: Tensor) -> Tensor:
        dense, norm, bias = (
            ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
            if self.model_type == "roberta"
            else ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
        )
        rows = self._norm(_gelu(self._linear(rows, dense)), norm)
        return rows @ self._base("embeddings.word_embeddings.weight").T + self.weights[bias]

    def _nsp_logits(self, x: Tensor) -> Tensor | None:
        if self.model_type == "roberta" or "cls.seq_relationship.weight" not in self.weights:
            return None
        return self._linear(self._linear(x[0], "bert.pooler.dense").tanh(), "cls.seq_relationship")


def _gelu(x: Tensor) -> Tensor:
    """x Phi(x), exact."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
