"""Versions of megatron-core that run here, and everything in which they differ for this project.

| | since | before | since then |
|---|---|---|---|
| Python | 0.17 | 3.10 and later | 3.12 and later |
| MLP in a layer's spec (`mlp_submodule`) | 0.18 | ModuleSpec | MLP.as_mlp_submodule; a ModuleSpec is warned about |
| layers inside a spec | 0.18 | classes or specs | anything that can be called: only classes suit both |
| option of CUDA graphs (`no_cuda_graphs`) | 0.18 | cuda_graph_scope | cuda_graph_modules |
| gradients of the norm (`gradients_of_norm`) | 0.19 | get_main_grads_for_grad_norm | get_grads_for_grad_norm |
| how a stored parameter group is found (`training/optimizer.py`) | 0.19 | by decay and kind | by learning rates, too |
| arguments in Megatron-LM's checkpoints (`convert/common_state.py`) | 0.19 | common.pt | an entry among the tensors |
| calls and constants for the CPU (`cpu.py`) | 0.19 | as listed there | two more |

The code checks for the package's own names, never its version, so that a new release need not mean a new entry.
docs/scale.md lists what was run with which version.
"""

import importlib.metadata
from functools import partial
from typing import Any

from packaging.version import Version

SUPPORTED = (Version("0.16.1"), Version("0.19.2"))
"""the oldest and the newest; how far each release between them has been tried stands in docs/scale.md"""


def megatron_version() -> Version | None:
    """The installed megatron-core, or None."""
    try:
        return Version(importlib.metadata.version("megatron-core"))
    except importlib.metadata.PackageNotFoundError:
        return None


def is_supported(version: Version | None) -> bool:
    """Whether this project runs with it."""
    return version is not None and SUPPORTED[0] <= version <= SUPPORTED[1]


def mlp_submodule(submodules: Any) -> Any:
    """The entry of a TransformerLayer's spec for megatron-core's MLP with these `submodules`."""
    from megatron.core.transformer.mlp import MLP
    from megatron.core.transformer.spec_utils import ModuleSpec

    if hasattr(MLP, "as_mlp_submodule"):
        return partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)


def gradients_of_norm(optimizer: Any) -> list[Any]:
    """The gradients of a MegatronOptimizer's parameters on this rank that no other rank counts."""
    renamed = getattr(optimizer, "get_grads_for_grad_norm", None)
    gradients: list[Any] = optimizer.get_main_grads_for_grad_norm() if renamed is None else renamed()
    return gradients


def no_cuda_graphs() -> dict[str, Any]:
    """Arguments of a TransformerConfig without CUDA graphs; the default of either version warns about itself."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    fields = TransformerConfig.__dataclass_fields__
    return {"cuda_graph_modules" if "cuda_graph_modules" in fields else "cuda_graph_scope": []}
