"""The small models, their inputs and the tolerance that the tests of Algorithm 1 share."""

import torch
from torch import nn

B, S, H, C = 3, 4, 5, 7
# float64 arithmetic of a dozen operations: a few hundred ULP of 2e-16.
EXACT = {"rtol": 1e-12, "atol": 1e-14}
BIG = {"epsilon": 0.1, "noise_std": 0.1, "step_size": 0.05, "projection": "normalized_gradient"}


class TokenModel(nn.Module):
    """Logits of every token from a linear map, with dropout before it when `p` > 0."""

    def __init__(self, p: float = 0.0, depth: int = 1):
        super().__init__()
        self.dropout = nn.Dropout(p)
        self.hidden = nn.Sequential(*[layer for _ in range(depth - 1) for layer in (nn.Linear(H, H), nn.Tanh())])
        self.head = nn.Linear(H, C)

    def forward(self, x):
        return self.head(self.hidden(self.dropout(x)))


def inputs(seed=1):
    torch.manual_seed(seed)
    x = torch.randn(B, S, H, dtype=torch.float64)
    delta = 0.1 * torch.randn(B, S, H, dtype=torch.float64)
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[1, 2:] = False
    return x, delta, mask


def kl_rows(clean, adversarial):
    """KL(clean || adversarial) of every row by its definition."""
    p, q = clean.softmax(-1), adversarial.softmax(-1)
    return (p * (p / q).log()).sum(-1)


class PoisonedGradient(torch.autograd.Function):
    """Identity whose backward is NaN at the tokens where `where` (bool, the leading shape) is true."""

    @staticmethod
    def forward(ctx, x, where):
        ctx.save_for_backward(where)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (where,) = ctx.saved_tensors
        return torch.where(where.unsqueeze(-1), float("nan"), grad), None
