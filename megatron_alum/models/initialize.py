"""Initial weights that depend only on the seed and the parameter's name.

Every matrix is drawn whole, from a generator of its own, and each rank keeps its part: networks built with different
tensor-parallel sizes or vocabulary padding start from the same weights, bit for bit, and drawing does not touch the
dropout streams. Normal with standard deviation `init_method_std`; in the pre-LayerNorm network the two projections that
write to the residual stream get std / sqrt(2 x layers) (Megatron-LM, GPT-2), in the post-LayerNorm ones the same as all
others (BERT).
"""

import hashlib
import math
import re

import torch

from megatron_alum.config.model import ModelConfig
from megatron_alum.parallel.groups import ProcessGroups

_RESIDUAL_PROJECTIONS = ("linear_proj.weight", "linear_fc2.weight")


@torch.no_grad()
def initialize_weights(
    model: torch.nn.Module, config: ModelConfig, *, vocab_size: int, seed: int, groups: ProcessGroups
) -> None:
    """Fills in every parameter of `model`; rows of the word table beyond `vocab_size` are zero."""
    for name, parameter in model.named_parameters():
        name = _name_in_whole(name, config, groups)
        if name.endswith("bias"):
            parameter.zero_()
        elif "layernorm" in name.replace("_", ""):
            parameter.fill_(1.0)
        else:
            parameter.copy_(_draw(name, parameter, config=config, vocab_size=vocab_size, seed=seed, groups=groups))


def _draw(
    name: str,
    parameter: torch.Tensor,
    *,
    config: ModelConfig,
    vocab_size: int,
    seed: int,
    groups: ProcessGroups,
) -> torch.Tensor:
    """This rank's part of the matrix `name`."""
    shape = list(parameter.shape)
    dim = getattr(parameter, "partition_dim", 0) if getattr(parameter, "tensor_model_parallel", False) else None
    if dim is not None:
        shape[dim] *= groups.tp_size
    num_rows = min(shape[0], vocab_size) if "word_embeddings" in name else shape[0]
    std = config.init_method_std
    if not config.post_layernorm and name.endswith(_RESIDUAL_PROJECTIONS):
        std /= math.sqrt(2.0 * config.num_layers)
    generator = torch.Generator().manual_seed(_seed_of(seed, name))
    whole = torch.zeros(shape)
    whole[:num_rows].normal_(0.0, std, generator=generator)
    return whole if dim is None else whole.chunk(groups.tp_size, dim=dim)[groups.tp_rank]


def _name_in_whole(name: str, config: ModelConfig, groups: ProcessGroups) -> str:
    """The parameter's name in the network without pipeline stages."""
    if name == "output_layer.weight":  # the last stage's copy of the tied table
        return "embedding.word_embeddings.weight"
    first = groups.pp_rank * (config.num_layers // groups.pp_size)
    return re.sub(r"(?<=encoder\.layers\.)\d+", lambda match: str(first + int(match[0])), name)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
