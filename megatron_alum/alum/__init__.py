"""The paper: adversarial regularisation on embeddings, for any model with an embed / encode split.

Reading order: `ascent.py` (Algorithm 1 as a function), `divergence.py` (what is compared), `dropout.py` (independent or
shared masks), `regularizer.py` (the entry point for any model). Nothing but torch, `config` and the torch
`reference` is imported; callers pass in Megatron, Hugging Face models and the fused ops.
"""

from megatron_alum.alum.ascent import Agree, Ascent, InnerLoss, Perturb, Start, ascend, frozen
from megatron_alum.alum.divergence import RowDivergence, Samples, reference_divergence
from megatron_alum.alum.dropout import DropoutState, TorchDropoutState, replayed
from megatron_alum.alum.regularizer import AlumOutput, AlumRegularizer, Kernels, reference_kernels
from megatron_alum.config.alum import AlumConfig

__all__ = [
    "Agree",
    "AlumConfig",
    "AlumOutput",
    "AlumRegularizer",
    "Ascent",
    "DropoutState",
    "InnerLoss",
    "Kernels",
    "Perturb",
    "RowDivergence",
    "Samples",
    "Start",
    "TorchDropoutState",
    "ascend",
    "frozen",
    "reference_divergence",
    "reference_kernels",
    "replayed",
]
