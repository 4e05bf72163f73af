"""The paper: adversarial regularisation on embeddings, for any model with an embed / encode split. Torch only.

Reading order: `kernels.py` (what a step computes on tensors), `dropout.py` (independent or shared masks),
`regularizer.py` (Algorithm 1). Nothing here knows Megatron, Hugging Face or the fused ops; they are handed in.
"""

from megatron_alum.alum.dropout import DropoutState, TorchDropoutState
from megatron_alum.alum.kernels import Kernels, reference_divergence, reference_kernels, reference_perturb
from megatron_alum.alum.regularizer import AlumOutput, AlumRegularizer, Ascent, adversarial_count, frozen
from megatron_alum.config.alum import AlumConfig

__all__ = [
    "AlumConfig",
    "AlumOutput",
    "AlumRegularizer",
    "Ascent",
    "DropoutState",
    "Kernels",
    "TorchDropoutState",
    "adversarial_count",
    "frozen",
    "reference_divergence",
    "reference_kernels",
    "reference_perturb",
]
