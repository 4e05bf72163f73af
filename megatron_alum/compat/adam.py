"""Makes megatron-core use torch's fused Adam, although it prefers that of Transformer Engine or apex if installed.

Those decide on the host whether to skip a step whose gradient is not finite, so the host would wait for the device in
each iteration; torch's kernel reads a flag on the device. It also divides by the clipping factor as it reads.
"""

import torch


def use_torch_adam() -> None:
    """Redirect the choice that megatron-core makes at import; may be called any number of times."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, True
    distrib_optimizer.HAVE_APEX_OR_TE = False
    distrib_optimizer.USING_TE_OPTIMIZER = distrib_optimizer.USING_APEX_OPTIMIZER = False
