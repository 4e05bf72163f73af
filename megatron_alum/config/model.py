"""The shape of the network: architecture, sizes, dropout, initialisation, and the presets behind `--model-size`.

A preset fills in what no flag names; flags win. Sizes tiny, mini and small are Google's BERT miniatures
(google-research/bert), base and large those of the BERT paper (arXiv 1810.04805). Three architectures:
  megatron-bert  pre-LayerNorm, as Megatron trains BERT; exported as transformers' MegatronBert
  bert           post-LayerNorm, as Google trained it; transformers' Bert
  roberta        post-LayerNorm, positions after the padding id, one token type, no next-sentence head; transformers'
                 Roberta
"""

from dataclasses import dataclass
from typing import Literal

from megatron_alum.config.checks import Count, Positive, ShareBelowOne, check_fields, flag_of

ModelType = Literal["megatron-bert", "bert", "roberta"]
ModelSize = Literal["tiny", "mini", "small", "base", "large"]

PRESETS: dict[ModelSize, tuple[int, int, int]] = {  # num_layers, hidden_size, num_attention_heads
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}

_LAYERNORM_EPSILON = {"megatron-bert": 1e-5, "bert": 1e-12, "roberta": 1e-5}
_NUM_TOKEN_TYPES = {"megatron-bert": 2, "bert": 2, "roberta": 1}
# fairseq's RoBERTa counts positions from its padding id 1 plus one, and keeps rows 0 and 1 of the table unused.
_FIRST_POSITION = {"megatron-bert": 0, "bert": 0, "roberta": 2}


@dataclass(frozen=True)
class ModelConfig:
    """The network

    A value that is left out comes from --model-size or follows from the others.
    """

    model_type: ModelType = "megatron-bert"
    """architecture: megatron-bert (pre-LayerNorm), bert or roberta (post-LayerNorm)"""
    model_size: ModelSize | None = None
    """preset for layers, width and heads; a flag of their own wins"""
    num_layers: Count = None  # type: ignore[assignment]
    """Transformer layers; those of --model-size by default"""
    hidden_size: Count = None  # type: ignore[assignment]
    """width of the residual stream; that of --model-size by default"""
    num_attention_heads: Count = None  # type: ignore[assignment]
    """attention heads; must divide --hidden-size; those of --model-size by default"""
    ffn_hidden_size: Count = None  # type: ignore[assignment]
    """width inside the MLP; 4 x --hidden-size by default"""
    seq_length: Count = 512
    """tokens of the longest sample, special tokens included"""
    max_position_embeddings: Count = None  # type: ignore[assignment]
    """tokens of the longest sample that the position table serves; --seq-length by default. RoBERTa's table has
    --first-position more rows"""
    first_position: int = None  # type: ignore[assignment]
    """row of the position table that the first token takes: 0, and for roberta one more than the model's padding id
    (by default 2, or that of --init-from)"""
    hidden_dropout: ShareBelowOne = 0.1
    """dropout probability after the embeddings, attention and MLP"""
    attention_dropout: ShareBelowOne = 0.1
    """dropout probability of attention weights"""
    layernorm_epsilon: Positive = None  # type: ignore[assignment]
    """added to the variance in LayerNorm; by default 1e-5 for megatron-bert and roberta, 1e-12 for bert, as their
    authors have it"""
    init_method_std: Positive = 0.02
    """standard deviation of initial weights"""
    make_vocab_size_divisible_by: Count = 128
    """the vocabulary is padded to a multiple of this that all tensor-parallel ranks share equally; the added entries
    never enter a softmax"""

    def __post_init__(self) -> None:
        """Check what is given, fill in the rest; raises ValueError naming the flag."""
        check_fields(self)
        self._fill_in()
        self._check_first_position()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"--hidden-size must be a multiple of --num-attention-heads {self.num_attention_heads}, "
                f"but is {self.hidden_size} instead."
            )
        if self.seq_length > self.max_position_embeddings:
            raise ValueError(
                f"--seq-length must be at most --max-position-embeddings {self.max_position_embeddings}, "
                f"but is {self.seq_length} instead. Shorten the sequences or enlarge the position table."
            )

    @property
    def post_layernorm(self) -> bool:
        """Whether LayerNorm follows attention and MLP (BERT, RoBERTa) instead of preceding them."""
        return self.model_type != "megatron-bert"

    @property
    def num_token_types(self) -> int:
        """Rows of the token-type table."""
        return _NUM_TOKEN_TYPES[self.model_type]

    @property
    def num_position_rows(self) -> int:
        """Rows of the position table, unused ones included (512 + 2 for the usual RoBERTa)."""
        return self.max_position_embeddings + self.first_position

    @property
    def has_nsp_head(self) -> bool:
        """Whether there is a pooler with a next-sentence head."""
        return self.model_type != "roberta"

    def _check_first_position(self) -> None:
        counted_from_padding = _FIRST_POSITION[self.model_type] > 0
        if self.first_position < 1 if counted_from_padding else self.first_position != 0:
            wanted = "at least 1" if counted_from_padding else "0"
            raise ValueError(
                f"--first-position must be {wanted} for --model-type {self.model_type}, "
                f"but is {self.first_position} instead."
            )

    def _fill_in(self) -> None:
        if self.model_size is not None:
            for name, value in zip(
                ("num_layers", "hidden_size", "num_attention_heads"), PRESETS[self.model_size], strict=True
            ):
                self._default(name, value)
        for name in ("num_layers", "hidden_size", "num_attention_heads"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"{flag_of(ModelConfig, name)} must be given when there is no --model-size ({', '.join(PRESETS)})."
                )
        self._default("ffn_hidden_size", 4 * self.hidden_size)
        self._default("max_position_embeddings", self.seq_length)
        self._default("first_position", _FIRST_POSITION[self.model_type])
        self._default("layernorm_epsilon", _LAYERNORM_EPSILON[self.model_type])

    def _default(self, name: str, value: float) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else
