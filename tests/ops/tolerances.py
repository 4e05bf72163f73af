"""Every tolerance of the op tests, with its reason. Exact comparisons do not appear here: exact means equal."""

import torch

# Relative error of a row against float64, value and gradient norm.
# float32: 2e-6 is what the centred form promises (measured worst 6e-7 in value, 6e-7 in gradients, any instruction
# set).
FLOAT32 = 2e-6
# Gradients in bfloat16 are rounded to 8 bits, in float16 to 11: half a unit in the last place, and the float32 error.
# float16 gradients below 6e-5 are subnormal: their absolute error of 3e-8 is bounded separately.
GRADIENT = {torch.float32: FLOAT32, torch.bfloat16: 2**-8 + FLOAT32, torch.float16: 2**-11 + FLOAT32}
SUBNORMAL_FLOAT16 = 2**-25
# Values are float32 whatever the logits' dtype is.
VALUE = {torch.float32: FLOAT32, torch.bfloat16: FLOAT32, torch.float16: FLOAT32}
# One-way KL at differences of order 1: two numbers of the size of t^2 / 2 cancel against each other (measured 2e-5).
ONE_SIDED_LARGE = 1e-4
# Logits far apart: h is a sum of numbers of their size, and p and q are known to a few roundings of that exponent. A
# row may be off by this much, in value (relative) and gradients (absolute), per unit of size of the logits; most rows
# have their mass in one column and are as good as any others.
FAR_APART = 2**-23
FAR_APART_MOST = 5e-6
# MLM loss m + log Z - a_label: three float32 roundings of numbers near 10, against a loss near 10.
MLM = 1e-6
# Sums over a token's channels and over tokens in float32, order of addition left to the implementation.
STATISTICS = 1e-5
# Sample moments of n = 2^20 Gaussian numbers: 5 standard errors of mean (1/sqrt n), variance (sqrt(2/n)), kurtosis
# (sqrt(24/n)).
MOMENT_ERRORS = 5.0
# Chunked head against the plain head: two float32 matrix products summed in another order, H = 32.
CHUNKED = 1e-5
# Attention written out against torch's fused one: float32 products of 8 and of 6 terms in another order.
ATTENTION = {"rtol": 1e-5, "atol": 1e-6}
# Mean of a 16-bit product over its exact value, over the 128 numbers that bfloat16 has in [1, 2): each is rounded by a
# standard deviation of 1.1e-3, their mean by 1e-4 (measured 6e-5; a scale rounded to 16 bits, 8e-4 and more).
SCALE_RTOL = 3e-4
# Attention within sequences and its gradients against float64, of the largest entry: float32 sums of up to 130 terms;
# with 16 bits the scores, the weights and the gradient of the scores are rounded, each by half of 2^-8 or 2^-11.
SEQUENCE_ATTENTION = {torch.float32: 3e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def check_far_apart(found: torch.Tensor, truth: torch.Tensor, logits: torch.Tensor) -> None:
    """Values [N] of rows of logits far apart: every row within what its size allows, the median one nearly exact."""
    errors = (found.double() - truth).abs() / truth.abs()
    assert errors.max() <= FAR_APART_MOST + FAR_APART * logits.abs().max(), errors
    assert errors.median() <= FAR_APART_MOST, errors
