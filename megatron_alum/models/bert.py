"""BERT on megatron-core, split where ALUM needs it: embed, encode, heads.

    x = model.embed(tokens, token_types=types)                     [S, B, H] float32
    hidden = model.encode(x + delta, token_types=types, padding_mask=mask)   [S, B, H]
    mlm_logits, nsp_logits = model.heads(hidden, masked_positions)           [N, V/tp], [B, 2]

`level` says where x lies: "word" (word vectors, the paper's choice) or "encoder_input" (after positions, LayerNorm and
dropout, the released code's). Both calls must name the same one. Under sequence parallelism x, delta and hidden hold
this rank's part of the sequence, [S/tp, B, H]. Dimensions: B micro-batch, S sequence, H hidden, N masked positions, V
padded vocabulary.
"""

from typing import Literal, NamedTuple

import torch
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_alum.config.model import ModelConfig
from megatron_alum.models.embedding import SplitEmbedding
from megatron_alum.models.heads import HeadOutputs, MlmTransform, Pooler, decoder, flat_rows, pick_rows
from megatron_alum.models.layers import block_spec
from megatron_alum.models.linear import linear
from megatron_alum.parallel.groups import ProcessGroups

Level = Literal["word", "encoder_input"]


class EncodedRows(NamedTuple):
    """The rows of the encoder's output that the heads read, where the last MLP was run on no others."""

    masked: Tensor
    """[N, H], at the masked positions"""
    first: Tensor | None
    """[B, H], at the first tokens; None for a network without next-sentence head"""

    def beyond(self, begin: int) -> "EncodedRows":
        """Without the first `begin` masked positions."""
        return EncodedRows(self.masked[begin:], self.first)


class SplitBert(BertModel):
    """BERT or RoBERTa whose forward pass can be entered after the embedding and whose heads run on chosen positions.

    Module names are BertModel's, so that Megatron's checkpoints and tools find what they know. Built by `build_model`.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        *,
        config: TransformerConfig,
        vocab_size: int,
        padded_vocab_size: int,
        groups: ProcessGroups,
    ) -> None:
        """`vocab_size` real words, `padded_vocab_size` rows of the tables; `config` is megatron-core's own."""
        # BertModel's constructor cannot be used: its MLM head refuses sequence parallelism and its layers their own
        # attention.
        super(BertModel, self).__init__(config=config)
        self.model_config = model_config
        self.groups = groups
        self.real_vocab_size = vocab_size
        self.vocab_size = padded_vocab_size
        self.max_sequence_length = model_config.max_position_embeddings
        self.pre_process, self.post_process = groups.is_first_stage, groups.is_last_stage
        self.share_embeddings_and_output_weights = True
        self.add_binary_head = model_config.has_nsp_head
        self.model_type = ModelType.encoder_or_decoder
        if self.pre_process:
            self.embedding = SplitEmbedding(
                model_config, config=config, padded_vocab_size=padded_vocab_size, groups=groups
            )
        self.encoder = TransformerBlock(
            config=config,
            spec=block_spec(config.num_layers // groups.pp_size, post_layernorm=model_config.post_layernorm),
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

    def embed(self, tokens: Tensor, *, token_types: Tensor, level: Level = "word") -> Tensor:
        """tokens, token_types int64 [B, S] -> x float32 [S(/tp), B, H], what a perturbation is added to."""
        words = self.embedding.words(tokens)
        if level == "word":
            return words
        # RoBERTa's positions count what is not padding, and its padding is the token before the first position.
        first_position = self.model_config.first_position
        padding_mask = tokens != first_position - 1 if first_position else None
        return self.embedding.complete(words, token_types, padding_mask)

    def encode(
        self, embeddings: Tensor | None, *, token_types: Tensor, padding_mask: Tensor | None, level: Level = "word"
    ) -> Tensor:
        """x (+ delta) float32 [S(/tp), B, H] -> hidden [S(/tp), B, H] in the model's dtype.

        `padding_mask` is bool [B, S], True for real tokens, or None for a batch without padding: a mask keeps the GPU
        from using flash attention, so pass None whenever the host knows that there is none. On a later pipeline stage
        `embeddings` is None: the schedule has set what the stage before sent (`set_input_tensor`).
        """
        if level == "word" and embeddings is not None:
            embeddings = self.embedding.complete(embeddings, token_types, padding_mask)
        return self.encoder(hidden_states=embeddings, attention_mask=_ignored_keys(padding_mask))

    def encode_rows(
        self,
        embeddings: Tensor,
        masked_positions: Tensor,
        *,
        token_types: Tensor,
        padding_mask: Tensor | None,
        level: Level = "word",
    ) -> EncodedRows:
        """As `encode`, for heads that read `masked_positions` (int64 [N], b * S + s) and first tokens alone.

        The same values, for 8 / 12 of a layer's products less on all other tokens. Not under sequence parallelism, nor
        on pipeline stages.
        """
        assert not self.groups.sequence_parallel and self.pre_process and self.post_process
        if level == "word":
            embeddings = self.embedding.complete(embeddings, token_types, padding_mask)
        length, batch_size = embeddings.shape[:2]
        rows = flat_rows(self._read_positions(masked_positions, length, batch_size), length, batch_size)
        mask = _ignored_keys(padding_mask)
        hidden = self.encoder(hidden_states=embeddings, attention_mask=mask, context_mask=rows).squeeze(1)
        num_masked = masked_positions.numel()
        return EncodedRows(hidden[:num_masked], hidden[num_masked:] if self.add_binary_head else None)

    def heads(self, hidden: Tensor | EncodedRows, masked_positions: Tensor) -> HeadOutputs:
        """hidden [S(/tp), B, H], masked_positions int64 [N] (b * S + s) -> logits of this rank's vocabulary rows, NSP
        logits. Of EncodedRows the masked positions must be the first, in their order.
        """
        mlm_hidden, nsp_logits = self.heads_before_decoder(hidden, masked_positions)
        return HeadOutputs(linear(mlm_hidden, self.decoder_weight(), self.decoder_bias()), nsp_logits)

    def heads_before_decoder(
        self, hidden: Tensor | EncodedRows, masked_positions: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As `heads`, with what the decoder multiplies, [N, H], for losses that take the MLM logits in chunks.

        Its gradient from this rank's vocabulary rows alone is enough: it is summed over the tensor-parallel group here.
        """
        num_masked = masked_positions.numel()
        if isinstance(hidden, EncodedRows):
            masked, first = hidden.masked[:num_masked], hidden.first
        else:  # one gathering for both heads
            positions = self._read_positions(masked_positions, self._sequence_length(hidden), hidden.size(1))
            masked, first = pick_rows(hidden, positions, self.groups).split(
                (num_masked, positions.numel() - num_masked)
            )
        nsp_logits = self.binary_head(self.pooler(first)) if self.add_binary_head else None
        return copy_to_tensor_model_parallel_region(self.lm_head(masked), group=self.groups.tp), nsp_logits

    def decoder_weight(self) -> Tensor:
        """[V/tp, H], tied to the word embeddings."""
        return self.shared_embedding_or_output_weight()

    def decoder_bias(self) -> Tensor:
        """[V/tp]."""
        return self.output_layer.bias

    def forward(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor | None, masked_positions: Tensor
    ) -> HeadOutputs:
        """The whole network without perturbation."""
        embeddings = self.embed(tokens, token_types=token_types)
        hidden = self.encode(embeddings, token_types=token_types, padding_mask=padding_mask)
        return self.heads(hidden, masked_positions)

    def _read_positions(self, masked_positions: Tensor, length: int, batch_size: int) -> Tensor:
        """b * S + s of what the heads read: masked positions, then first tokens where there is a head for them."""
        if not self.add_binary_head:
            return masked_positions
        first_tokens = torch.arange(batch_size, device=masked_positions.device) * length
        return torch.cat((masked_positions, first_tokens))

    def _sequence_length(self, hidden: Tensor) -> int:
        return hidden.size(0) * (self.groups.tp_size if self.groups.sequence_parallel else 1)


def _ignored_keys(padding_mask: Tensor | None) -> Tensor | None:
    """bool [B, S], True = real -> bool [B, 1, 1, S], True = ignore, as megatron-core has it; None without padding."""
    if padding_mask is None or (padding_mask.device.type == "cpu" and bool(padding_mask.all())):
        return None  # on a GPU the question would stop the host; there the caller passes None
    return padding_mask.logical_not()[:, None, None, :]
