"""Makes megatron-core take torch's fused Adam, although it prefers Transformer Engine's or apex's where there is one.

These decide on the host whether a step with a gradient that is not finite is left out, so that it would wait for the
device in each iteration; torch's kernel reads a flag there. It also divides by the clipping factor as it reads.
"""

import torch


def use_torch_adam() -> None:
    """Redirect megatron-core's choice, which it has made at its import; may be called any number of times."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, True
    distrib_optimizer.HAVE_APEX_OR_TE = False
    distrib_optimizer.USING_TE_OPTIMIZER = distrib_optimizer.USING_APEX_OPTIMIZER = False
