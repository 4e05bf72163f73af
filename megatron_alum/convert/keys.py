"""The key tables: which Megatron tensor is which Hugging Face tensor, one table per architecture, read in both
directions.

A row names the Megatron parameter (`{i}` is the layer), the Hugging Face tensors it is made of, the Megatron shape in
letters and the dimension that tensor parallelism splits. Rows of the part "encoder" and "pooler" carry the name inside
the base model: `prefix` stands before them in a model with heads ("bert.", "roberta.") and is absent in a bare encoder.

    V vocabulary   P position rows   Y token types   H hidden   F feed-forward   L linear_qkv rows (3 H)   2 NSP classes

Three kinds of row follow from the shape: L is merged from query, key and value, head by head; V is padded in Megatron
(`tensors.py`); all others are copied. The layers of `megatron-bert` are pre-LN (arXiv 1909.08053, figure 7), those of
`bert` and `roberta` post-LN. Sources of the names: megatron-core 0.16.1 and transformers 5.x state dicts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Part = Literal["encoder", "pooler", "mlm", "nsp"]
QKV_LETTER = "L"
VOCAB_LETTER = "V"


@dataclass(frozen=True)
class Row:
    """One Megatron parameter and the Hugging Face tensors that hold the same numbers."""

    megatron: str
    """Name in the Megatron state dict; `{i}` stands for the layer."""
    hf: tuple[str, ...]
    """Hugging Face names: one, or query, key, value."""
    shape: str
    """Megatron's unpadded global shape, one letter per dimension."""
    split: int | None = None
    """Dimension that tensor parallelism splits; None when every rank holds all of it."""
    part: Part = "encoder"
    """Which piece of the model it belongs to; pieces other than the encoder may be missing in a source."""
    alias: str | None = None
    """The Megatron name under the Transformer Engine spec, which folds LayerNorms into the linear that follows."""

    @property
    def is_qkv(self) -> bool:
        """Whether the row merges query, key and value."""
        return QKV_LETTER in self.shape

    @property
    def is_vocabulary(self) -> bool:
        """Whether dimension 0 counts the vocabulary, which Megatron pads."""
        return self.shape[0] == VOCAB_LETTER

    def at_layer(self, index: int) -> Row:
        """The row with `{i}` filled in."""
        filled = tuple(name.format(i=index) for name in self.hf)
        alias = None if self.alias is None else self.alias.format(i=index)
        return replace(self, megatron=self.megatron.format(i=index), hf=filled, alias=alias)


@dataclass(frozen=True)
class Architecture:
    """A `--model-type`: its table and the names of its Hugging Face classes and configuration."""

    model_type: Literal["megatron-bert", "bert", "roberta"]
    """The name used by both megatron_alum and transformers: megatron-bert, bert or roberta."""
    prefix: str
    """Name of the base model inside a model with heads, with the dot."""
    rows: tuple[Row, ...]
    """The table."""
    classes: dict[str, str]
    """transformers class of each kind of export: pretraining (MLM and NSP), masked-lm, encoder."""
    aliases: dict[str, str]
    """Tensors that a Hugging Face file may repeat: {name of the copy: name of the original}."""


def _row(megatron: str, hf: str, shape: str, split: int | None = None, **rest: str) -> list[Row]:
    """Weight and bias of one linear layer or LayerNorm; `shape` is the weight's, the bias has its first dimension."""
    rows = []
    for ending in ("weight", "bias"):
        names = tuple(f"{name}.{ending}" for name in hf.split())
        alias = f"{rest['alias']}_{ending}" if "alias" in rest else None
        bias_split = split if split == 0 else None
        rows.append(
            Row(
                f"{megatron}.{ending}",
                names,
                shape if ending == "weight" else shape[0],
                split if ending == "weight" else bias_split,
                rest.get("part", "encoder"),  # type: ignore[arg-type]
                alias,
            )
        )
    return rows


_EMBEDDINGS = (
    Row("embedding.word_embeddings.weight", ("embeddings.word_embeddings.weight",), "VH", split=0),
    Row("embedding.position_embeddings.weight", ("embeddings.position_embeddings.weight",), "PH"),
    Row("embedding.tokentype_embeddings.weight", ("embeddings.token_type_embeddings.weight",), "YH"),
)
_LINEARS = (
    *_row(
        "encoder.layers.{i}.self_attention.linear_qkv",
        "encoder.layer.{i}.attention.self.query encoder.layer.{i}.attention.self.key "
        "encoder.layer.{i}.attention.self.value",
        "LH",
        split=0,
    ),
    *_row("encoder.layers.{i}.self_attention.linear_proj", "encoder.layer.{i}.attention.output.dense", "HH", split=1),
    *_row("encoder.layers.{i}.mlp.linear_fc1", "encoder.layer.{i}.intermediate.dense", "FH", split=0),
    *_row("encoder.layers.{i}.mlp.linear_fc2", "encoder.layer.{i}.output.dense", "HF", split=1),
)
_PRE_LN = (
    *_row(
        "encoder.layers.{i}.input_layernorm",
        "encoder.layer.{i}.attention.ln",
        "H",
        alias="encoder.layers.{i}.self_attention.linear_qkv.layer_norm",
    ),
    *_row(
        "encoder.layers.{i}.pre_mlp_layernorm",
        "encoder.layer.{i}.ln",
        "H",
        alias="encoder.layers.{i}.mlp.linear_fc1.layer_norm",
    ),
    *_row("encoder.final_layernorm", "encoder.ln", "H"),
)
_POST_LN = (
    *_row("embedding.layer_norm", "embeddings.LayerNorm", "H"),
    *_row("encoder.layers.{i}.attention_layernorm", "encoder.layer.{i}.attention.output.LayerNorm", "H"),
    *_row("encoder.layers.{i}.mlp_layernorm", "encoder.layer.{i}.output.LayerNorm", "H"),
)
_BERT_HEADS = (
    *_row("pooler.dense", "pooler.dense", "HH", part="pooler"),
    *_row("lm_head.dense", "cls.predictions.transform.dense", "HH", part="mlm"),
    *_row("lm_head.layer_norm", "cls.predictions.transform.LayerNorm", "H", part="mlm"),
    Row("output_layer.bias", ("cls.predictions.bias",), "V", split=0, part="mlm"),
    *_row("binary_head", "cls.seq_relationship", "2H", part="nsp"),
)
_ROBERTA_HEADS = (
    *_row("pooler.dense", "pooler.dense", "HH", part="pooler"),
    *_row("lm_head.dense", "lm_head.dense", "HH", part="mlm"),
    *_row("lm_head.layer_norm", "lm_head.layer_norm", "H", part="mlm"),
    Row("output_layer.bias", ("lm_head.bias",), "V", split=0, part="mlm"),
)
_BERT_ALIASES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        Architecture(
            model_type="megatron-bert",
            prefix="bert.",
            rows=(*_EMBEDDINGS, *_PRE_LN, *_LINEARS, *_BERT_HEADS),
            classes={
                "pretraining": "MegatronBertForPreTraining",
                "masked-lm": "MegatronBertForMaskedLM",
                "encoder": "MegatronBertModel",
            },
            aliases=_BERT_ALIASES,
        ),
        Architecture(
            model_type="bert",
            prefix="bert.",
            rows=(*_EMBEDDINGS, *_POST_LN, *_LINEARS, *_BERT_HEADS),
            classes={"pretraining": "BertForPreTraining", "masked-lm": "BertForMaskedLM", "encoder": "BertModel"},
            aliases=_BERT_ALIASES,
        ),
        Architecture(
            model_type="roberta",
            prefix="roberta.",
            rows=(*_EMBEDDINGS, *_POST_LN, *_LINEARS, *_ROBERTA_HEADS),
            classes={"masked-lm": "RobertaForMaskedLM", "encoder": "RobertaModel"},
            aliases={
                "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
                "lm_head.decoder.bias": "lm_head.bias",
            },
        ),
    )
}


def expand_rows(architecture: Architecture, num_layers: int) -> list[Row]:
    """The table with every `{i}` row repeated for `num_layers` layers."""
    rows: list[Row] = []
    for row in architecture.rows:
        rows += [row.at_layer(i) for i in range(num_layers)] if "{i}" in row.megatron else [row]
    return rows
