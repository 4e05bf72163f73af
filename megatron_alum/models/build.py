"""From a ModelConfig to a network on this rank's device: the one place that fills in megatron-core's
TransformerConfig.
"""

import math
from typing import Literal

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F

from megatron_alum.compat.versions import no_cuda_graphs
from megatron_alum.config.model import ModelConfig
from megatron_alum.models.attention import AttentionName
from megatron_alum.models.bert import SplitBert
from megatron_alum.models.initialize import initialize_weights
from megatron_alum.models.parts import parts_of
from megatron_alum.parallel.groups import ProcessGroups

Recompute = Literal["none", "selective", "full"]


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """`vocab_size` rounded up to a multiple of `divisible_by` that `tensor_parallel_size` ranks can share.

    Megatron-LM rounds to a multiple of the product of the two. The least common multiple does not grow with the usual
    tensor-parallel sizes (powers of two up to 128), so that one shape serves them all, optimizer states included.
    """
    multiple = math.lcm(divisible_by, tensor_parallel_size)
    return -(-vocab_size // multiple) * multiple


def build_model(
    model_config: ModelConfig,
    *,
    vocab_size: int,
    groups: ProcessGroups,
    dtype: torch.dtype = torch.float32,
    seed: int = 1234,
    recompute: Recompute = "none",
    torch_compile: bool = False,
    attention: AttentionName | None = None,
) -> SplitBert:
    """The network with fresh weights, on this rank's device in `dtype`.

    `vocab_size` counts the tokenizer's entries; the padded size is `SplitBert.vocab_size`. `recompute` trades memory
    for time: "selective" recomputes the attention core, "full" every layer; either one makes `torch.autograd.grad`
    impossible, so the inner pass must call `.backward()`. `torch_compile` compiles each encoder layer on its first use,
    which takes a minute or two. `attention` overrides the choice of `parts_of`. Raises ValueError when a size does not
    divide by the tensor-parallel size.
    """
    _check_divisible("--num-attention-heads", model_config.num_attention_heads, groups.tp_size)
    _check_divisible("--ffn-hidden-size", model_config.ffn_hidden_size, groups.tp_size)
    parts = parts_of(groups.device, dtype)
    with torch.random.fork_rng(devices=[]):  # torch's modules draw weights on construction, to be overwritten below
        model = SplitBert(
            model_config,
            config=transformer_config(model_config, groups=groups, dtype=dtype, recompute=recompute),
            vocab_size=vocab_size,
            padded_vocab_size=padded_vocab_size(vocab_size, model_config.make_vocab_size_divisible_by, groups.tp_size),
            groups=groups,
            parts=parts if attention is None else parts._replace(attention=attention),
        )
    initialize_weights(model, model_config, vocab_size=vocab_size, seed=seed, groups=groups)
    if torch_compile:
        model.encoder.compile_layers()
    return model.to(device=groups.device, dtype=dtype)


def transformer_config(
    model_config: ModelConfig, *, groups: ProcessGroups, dtype: torch.dtype, recompute: Recompute = "none"
) -> TransformerConfig:
    """megatron-core's configuration of the encoder, with the fusions off that need CUDA or change the function."""
    return TransformerConfig(
        num_layers=model_config.num_layers,
        hidden_size=model_config.hidden_size,
        num_attention_heads=model_config.num_attention_heads,
        ffn_hidden_size=model_config.ffn_hidden_size,
        hidden_dropout=model_config.hidden_dropout,
        attention_dropout=model_config.attention_dropout,
        layernorm_epsilon=model_config.layernorm_epsilon,
        activation_func=F.gelu,  # exact
        bias_activation_fusion=False,  # megatron-core's fused GELU is the tanh form
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        tensor_model_parallel_size=groups.tp_size,
        pipeline_model_parallel_size=groups.pp_size,
        sequence_parallel=groups.sequence_parallel,
        params_dtype=torch.float32,  # drawn in float32, cast by build_model
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu_initialization=True,
        init_method=_leave,  # initialize_weights fills in all parameters
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        **no_cuda_graphs(),
        recompute_granularity=None if recompute == "none" else recompute,
        recompute_method="uniform" if recompute == "full" else None,
        recompute_num_layers=1 if recompute == "full" else None,
    )


def _leave(parameter: torch.Tensor) -> torch.Tensor:
    return parameter


def _check_divisible(flag: str, value: int, tensor_parallel_size: int) -> None:
    if value % tensor_parallel_size:
        raise ValueError(
            f"{flag} must be a multiple of --tensor-model-parallel-size {tensor_parallel_size}, but is {value} instead."
        )
