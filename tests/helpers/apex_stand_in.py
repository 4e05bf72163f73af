"""A package of apex's names: its Adam with the same options in the same places, in plain torch instead of CUDA.

NVIDIA's apex needs nvcc to be built and a GPU to run. What matters to checkpoints is where its Adam keeps what: a count
of steps in each group, as a plain number, and nothing but the two moments beside a parameter.
"""

from pathlib import Path

FILES = {
    "apex/__init__.py": "",
    "apex/optimizers/__init__.py": "from apex.optimizers.fused_adam import FusedAdam\n\n\nclass FusedSGD: ...\n",
    "apex/optimizers/fused_adam.py": """
import importlib.util

import torch


class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0.0):
        if importlib.util.find_spec("amp_C") is None:
            raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")
        assert adam_w_mode
        options = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, options)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert type(group["step"]) is int, "the kernel takes a plain number"
            (beta1, beta2), rate = group["betas"], group["lr"]
            first, second = 1.0, 1.0
            if group["bias_correction"]:
                first, second = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                p.mul_(1 - rate * group["weight_decay"])
                p.addcdiv_(state["exp_avg"] / first, (state["exp_avg_sq"] / second).sqrt() + group["eps"], value=-rate)
""",
}
EXTENSIONS = {"amp_C.py": "", "fused_layer_norm_cuda.py": ""}
"""what apex's build adds when it is asked for the CUDA extensions"""


def write_apex(folder: Path, *, extensions: bool) -> Path:
    """The package below `folder`, which goes onto the import path; returns it."""
    for name, text in {**FILES, **(EXTENSIONS if extensions else {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
