"""Core attention over sequences stored back to back, in place of megatron-core's DotProductAttention.

    native   the CPU: our own kernel, one sequence and head after the other (ops/cpu_attention.py)
    jagged   CUDA: torch's scaled_dot_product_attention on nested tensors, which runs its flash or memory-efficient
             kernel for them
    flash    CUDA with the flash-attn package, 16-bit numbers: its kernel for sequences of different lengths

All three drop attention weights; torch's own function for packed sequences (torch.nn.attention.varlen) and
flex_attention do not, so BERT cannot be trained with them. Dropout draws from the device's default generator; the
encoder sees to it that ranks which share the heads have streams of their own.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.models.sequences import PackedSequences
from megatron_alum.ops import sequence_attention

AttentionName = Literal["native", "jagged", "flash"]
_WITHIN_SEQUENCES = (AttnMaskType.padding, AttnMaskType.no_mask)


class AttentionBackend(NamedTuple):
    """How attention is computed here, and why."""

    name: AttentionName
    reason: str


def attention_backend(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> AttentionBackend:
    """The fastest backend available on `device` for queries of `dtype`."""
    if device.type == "cpu":
        return AttentionBackend("native", "torch has no kernel for packed sequences on the CPU")
    function, problem = _flash_attention()
    if function is None:
        return AttentionBackend("jagged", problem)
    if dtype not in (torch.bfloat16, torch.float16):
        return AttentionBackend("jagged", f"flash-attn has no kernel for {dtype}")
    return AttentionBackend("flash", "flash-attn is installed")


class PackedAttention(MegatronModule):
    """softmax(q k^T / sqrt(head size)) v within each sequence for the heads of this rank: `core_attention` of a layer
    spec.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int = 1,
        attn_mask_type: AttnMaskType = AttnMaskType.padding,
        attention_type: str = "self",
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        *,
        backend: AttentionName,
    ) -> None:
        """The arguments are megatron-core's, except `backend`. The layer number and the groups are ignored. Raises
        ValueError for arguments that cannot be honoured.
        """
        super().__init__(config=config)
        _refuse_unless(attn_mask_type in _WITHIN_SEQUENCES, "attn_mask_type", "padding or no_mask", attn_mask_type)
        _refuse_unless(attention_type == "self", "attention_type", "'self'", attention_type)
        _refuse_unless(softmax_scale is None, "softmax_scale", "None, 1 / sqrt(head size)", softmax_scale)
        _refuse_unless(config.context_parallel_size == 1, "context_parallel_size", "1", config.context_parallel_size)
        _refuse_unless(config.window_size is None, "window_size", "None", config.window_size)
        self.backend: AttentionName = backend
        self.probability: float = config.attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query, key, value [T, heads, D] -> [T, heads x D]. Values for tokens of the tail are undefined.

        Raises ValueError for what cannot be honoured: masks, biases, other layouts than PackedSequences.
        """
        _refuse_unless(attention_mask is None, "attention_mask", "None", type(attention_mask))
        _refuse_unless(attention_bias is None, "attention_bias", "None", type(attention_bias))
        _refuse_unless(
            attn_mask_type is None or attn_mask_type in _WITHIN_SEQUENCES,
            "attn_mask_type",
            "padding or no_mask",
            attn_mask_type,
        )
        sequences = packed_seq_params
        if not isinstance(sequences, PackedSequences):
            raise ValueError(f"`packed_seq_params` must be PackedSequences, but is {type(sequences)} instead.")
        if not (query.shape == key.shape == value.shape and query.shape[0] == sequences.num_tokens):
            raise ValueError(
                f"`query, key, value` must be of {sequences.num_tokens} tokens, but are {tuple(query.shape)}, "
                f"{tuple(key.shape)}, {tuple(value.shape)} instead."
            )
        probability = self.probability if self.training else 0.0
        return _BACKENDS[self.backend](query, key, value, sequences, probability).flatten(1)


class NativeAttention(PackedAttention):
    """PackedAttention into which torch.compile does not look: lengths of a batch would be constants of the graph."""

    forward = torch.compiler.disable(PackedAttention.forward)


def core_attention(backend: AttentionName) -> Callable[..., PackedAttention]:
    """The entry of a layer's spec."""
    return partial(NativeAttention if backend == "native" else PackedAttention, backend=backend)


def _refuse_unless(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {expected}, but is {value} instead.")


def _native(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences, probability: float) -> Tensor:
    return sequence_attention(query, key, value, sequences.lengths, probability)


def _jagged(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences, probability: float) -> Tensor:
    def nested(tensor: Tensor) -> Tensor:
        """[T, heads, D] -> [sequences, heads, lengths, D]."""
        rows = torch.nested.nested_tensor_from_jagged(
            tensor.contiguous(),  # it is a slice of the QKV product, which these kernels do not accept
            offsets=sequences.cu_seqlens_q,
            min_seqlen=sequences.shortest,
            max_seqlen=sequences.max_seqlen_q,
        )
        return rows.transpose(1, 2)

    context = F.scaled_dot_product_attention(nested(query), nested(key), nested(value), dropout_p=probability)
    values: Tensor = context.transpose(1, 2).values()
    return values


def _flash(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences, probability: float) -> Tensor:
    function, problem = _flash_attention()
    assert function is not None, problem
    boundaries, longest = sequences.cu_seqlens_q, sequences.max_seqlen_q
    context: Tensor = function(
        query, key, value, boundaries, boundaries, longest, longest, dropout_p=probability, causal=False
    )
    return context


_BACKENDS: dict[AttentionName, Callable[..., Tensor]] = {"native": _native, "jagged": _jagged, "flash": _flash}


@functools.cache
def _flash_attention() -> tuple[Callable[..., Tensor] | None, str]:
    """flash-attn's function for sequences of different lengths, or None and what is wrong with the package."""
    try:
        if importlib.util.find_spec("flash_attn") is None:
            return None, "flash-attn is not installed"
        function: Callable[..., Tensor] = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, OSError, AttributeError) as error:  # built for another torch or CUDA
        return None, f"flash-attn cannot be imported ({error})"
    return function, ""
