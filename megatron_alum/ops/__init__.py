"""Public functions of the fused operators: perturbation step and divergence of logits, each with a pure-torch reference
in megatron_alum/reference.

Read in this order: rows.py, rows_from_hidden.py, perturbation.py, noise.py, cpu_dropout.py, cpu_attention.py;
row_autograd.py serves the first two, dispatch.py chooses the implementation, registration.py gives torch shapes and
derivatives; large_pages.py saves time, allocator.py time or memory. Importing this needs neither a GPU nor the compiled
extension; the kernels are in csrc/ (csrc/README.md).
"""

from megatron_alum.ops import registration  # noqa: F401  (runs when the extension is loaded)
from megatron_alum.ops.cpu_attention import sequence_attention
from megatron_alum.ops.cpu_dropout import attention_with_dropout, draw_dropout, dropout
from megatron_alum.ops.dispatch import build_info
from megatron_alum.ops.large_pages import empty_in_large_pages
from megatron_alum.ops.noise import NoiseKey, gaussian_noise
from megatron_alum.ops.perturbation import (
    PerturbationStatistics,
    ascend_and_project,
    perturb_embeddings,
    perturbation_statistics,
)
from megatron_alum.ops.rows import RowLosses, kl_divergence, mlm_symmetric_kl, row_losses, symmetric_kl, weighted_sum
from megatron_alum.ops.rows_from_hidden import mlm_symmetric_kl_from_hidden, row_losses_from_hidden

__all__ = [
    "NoiseKey",
    "PerturbationStatistics",
    "RowLosses",
    "ascend_and_project",
    "attention_with_dropout",
    "build_info",
    "draw_dropout",
    "dropout",
    "empty_in_large_pages",
    "gaussian_noise",
    "kl_divergence",
    "mlm_symmetric_kl",
    "mlm_symmetric_kl_from_hidden",
    "perturb_embeddings",
    "perturbation_statistics",
    "row_losses",
    "row_losses_from_hidden",
    "sequence_attention",
    "symmetric_kl",
    "weighted_sum",
]
