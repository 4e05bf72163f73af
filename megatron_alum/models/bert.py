"""BERT on megatron-core, split where ALUM needs it: embed, encode, heads.

    x = model.embed(inputs)                                      [T, 1, H] float32
    hidden = model.encode(x + delta, inputs)                     [T, 1, H]
    mlm_logits, nsp_logits = model.heads(hidden, inputs)         [N, V/tp], [B, 2]

`level` says what x is: "word" (word vectors, the paper's choice), "encoder_input" (after positions, LayerNorm and
dropout, the released code's), or a number of layers (their hidden state). Both calls must use the same level. A
micro-batch is one row of tokens, megatron-core's `thd` layout, whose batch dimension is 1. Under sequence parallelism
x, delta and hidden are this rank's part of the tokens, [T/tp, 1, H]. Dimensions: T tokens of B sequences, H hidden,
N masked positions, V padded vocabulary.
"""

from typing import Literal, NamedTuple

import torch
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_alum.config.model import ModelConfig
from megatron_alum.models.embedding import SplitEmbedding, at_least_float32
from megatron_alum.models.encoder import Encoder
from megatron_alum.models.heads import HeadOutputs, MlmTransform, Pooler, decoder, pick_rows
from megatron_alum.models.inputs import ModelInputs
from megatron_alum.models.layers import block_spec
from megatron_alum.models.parts import Parts
from megatron_alum.parallel.groups import ProcessGroups

Level = Literal["word", "encoder_input"] | int


class EncodedRows(NamedTuple):
    """The rows of the encoder's output that the heads read, when the last MLP ran on no others."""

    masked: Tensor
    """[N, H], at the masked positions"""
    first: Tensor | None
    """[B, H], at the first tokens; None for a network without next-sentence head"""


class SplitBert(BertModel):
    """BERT or RoBERTa whose forward pass can be entered after the embedding and whose heads run on chosen positions.

    Module names are BertModel's, so that Megatron's checkpoints and tools find them. Built by `build_model`.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        *,
        config: TransformerConfig,
        vocab_size: int,
        padded_vocab_size: int,
        groups: ProcessGroups,
        parts: Parts,
    ) -> None:
        """`vocab_size` real tokens, `padded_vocab_size` rows of the tables; `config` is megatron-core's own."""
        # BertModel's constructor cannot be used: its MLM head refuses sequence parallelism and its layers their own
        # attention.
        super(BertModel, self).__init__(config=config)
        self.model_config = model_config
        self.groups = groups
        self.parts = parts
        self.real_vocab_size = vocab_size
        self.vocab_size = padded_vocab_size
        self.pre_process, self.post_process = groups.is_first_stage, groups.is_last_stage
        self.share_embeddings_and_output_weights = True
        self.add_binary_head = model_config.has_nsp_head
        self.model_type = ModelType.encoder_or_decoder
        if self.pre_process:
            self.embedding = SplitEmbedding(
                model_config,
                config=config,
                padded_vocab_size=padded_vocab_size,
                groups=groups,
                lookup=parts.lookup,
            )
        self.encoder = Encoder(
            config=config,
            spec=block_spec(
                config.num_layers // groups.pp_size,
                post_layernorm=model_config.post_layernorm,
                parts=parts,
            ),
            pre_process=self.pre_process,
            post_process=self.post_process,
        )
        if self.post_process:
            self.lm_head = MlmTransform(config)
            self.output_layer = decoder(config, padded_vocab_size, groups)
            if self.add_binary_head:
                self.pooler = Pooler(config)
                self.binary_head = torch.nn.Linear(config.hidden_size, 2)
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()

    def embed(self, inputs: ModelInputs, *, level: Level = "word") -> Tensor:
        """x float32 [T(/tp), 1, H], what a perturbation is added to: the part of the network below it."""
        words = self.embedding.words(inputs)
        if level == "word":
            return words
        hidden: Tensor = self.embedding.complete(words, inputs)
        if level == "encoder_input":
            return hidden
        assert 1 <= level < len(self.encoder.layers), level
        below: Tensor = self.encoder(hidden, sequences=inputs.sequences, end=level)
        return at_least_float32(below)

    def encode(self, x: Tensor | None, inputs: ModelInputs, *, level: Level = "word") -> Tensor:
        """x (+ delta) float32 [T(/tp), 1, H] -> hidden [T(/tp), 1, H] in the model's dtype: the part above x.

        On a later pipeline stage `x` is None: the schedule has set what the previous stage sent (`set_input_tensor`),
        which has the shape of this stage's output.
        """
        return self._above(x, inputs, level, None)

    def encode_rows(self, x: Tensor, inputs: ModelInputs, *, level: Level = "word") -> EncodedRows:
        """As `encode`, for heads that read only masked positions and first tokens.

        The same values; saves 8 / 12 of a layer's products on all other tokens. Not for sequence parallelism or
        pipeline stages.
        """
        assert not self.groups.sequence_parallel and self.pre_process and self.post_process
        hidden = self._above(x, inputs, level, self._read_positions(inputs, slice(None))).squeeze(1)
        num_masked = inputs.masked_positions.numel()
        return EncodedRows(hidden[:num_masked], hidden[num_masked:] if self.add_binary_head else None)

    def heads(self, hidden: Tensor | EncodedRows, inputs: ModelInputs, *, masked: slice = slice(None)) -> HeadOutputs:
        """Output of `encode` or `encode_rows` -> MLM logits of this rank's vocabulary rows, NSP logits.

        `masked` chooses among the N masked positions.
        """
        mlm_hidden, nsp_logits = self.heads_before_decoder(hidden, inputs, masked=masked)
        return HeadOutputs(self.parts.linear(mlm_hidden, self.decoder_weight(), self.decoder_bias()), nsp_logits)

    def heads_before_decoder(
        self, hidden: Tensor | EncodedRows, inputs: ModelInputs, *, masked: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        """As `heads`, with the decoder's input [N, H] instead of MLM logits, for losses that compute them in chunks.

        Its gradient need only come from this rank's vocabulary rows: it is summed over the tensor-parallel group here.
        """
        if isinstance(hidden, EncodedRows):
            masked_rows, first_rows = hidden.masked[masked], hidden.first
        else:  # one gather for both heads
            positions = self._read_positions(inputs, masked)
            num_first = inputs.first_tokens.numel() if self.add_binary_head else 0
            masked_rows, first_rows = pick_rows(hidden, positions, self.groups).split(
                (positions.numel() - num_first, num_first)
            )
        nsp_logits = self.binary_head(self.pooler(first_rows)) if self.add_binary_head else None
        return copy_to_tensor_model_parallel_region(self.lm_head(masked_rows), group=self.groups.tp), nsp_logits

    def leading(self, x: Tensor, num_tokens: int) -> Tensor:
        """The first `num_tokens` of all T tokens of x [T(/tp), 1, H], as this rank's part of a shorter row.

        Under sequence parallelism tokens move between ranks, and back again in the backward pass.
        """
        if not self.groups.sequence_parallel:
            return x[:num_tokens]
        whole = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=self.groups.tp)
        local: Tensor = scatter_to_sequence_parallel_region(whole[:num_tokens], group=self.groups.tp)
        return local

    def trailed(self, delta: Tensor, num_tokens: int, total: int) -> Tensor:
        """The first `num_tokens` of delta [T'(/tp), 1, H], a constant, followed by zeros up to `total` tokens: [T(/tp),
        1, H].
        """
        if self.groups.sequence_parallel:
            delta = gather_from_sequence_parallel_region(delta, group=self.groups.tp)
        longer = torch.nn.functional.pad(delta[:num_tokens], (0, 0, 0, 0, 0, total - num_tokens))
        return self.groups.local_tokens(longer)

    def decoder_weight(self) -> Tensor:
        """[V/tp, H], tied to the word embeddings."""
        return self.shared_embedding_or_output_weight()

    def decoder_bias(self) -> Tensor:
        """[V/tp]."""
        return self.output_layer.bias

    def forward(self, inputs: ModelInputs) -> HeadOutputs:
        """The whole network without perturbation."""
        return self.heads(self.encode(self.embed(inputs), inputs), inputs)

    def _above(self, x: Tensor | None, inputs: ModelInputs, level: Level, rows: Tensor | None) -> Tensor:
        """The layers above x, the last of them only for `rows` if given."""
        if level == "word" and x is not None:
            x = self.embedding.complete(x, inputs)
        begin = level if isinstance(level, int) else 0
        hidden: Tensor = self.encoder(x, sequences=inputs.sequences, begin=begin, rows=rows)
        return hidden

    def _read_positions(self, inputs: ModelInputs, masked: slice) -> Tensor:
        """int64, what the heads read: masked positions, then first tokens if there is a head for them."""
        masked_positions = inputs.masked_positions[masked]
        return torch.cat((masked_positions, inputs.first_tokens)) if self.add_binary_head else masked_positions
