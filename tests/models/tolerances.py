"""How far results in the model tests may differ, each with its reason. Everything else must be equal."""

import torch

# Two implementations of one network in float32: sums of a few hundred products of order 1 in another order.
LOGITS_ATOL = 1e-5
# Losses are means of a few rows: the same rounding, relative.
LOSS_RTOL = 1e-5
# Gradients on two layouts: sums over tokens and vocabulary in another order; entries reach from 1e-4 to 10.
GRADIENT_TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
# Gradients of two implementations, relative to the largest entry of the parameter.
GRADIENT_RTOL = 1e-4
# A bias of the keys shifts all scores of a query equally, which softmax ignores: its gradient is rounding around 0.
KEY_BIAS_ATOL = 1e-5
# delta sums noise and step of order 0.05, and the step divides by the largest gradient of a token.
DELTA_ATOL = 1e-5
# Attention alone: one softmax and two products.
ATTENTION_ATOL = 1e-6
# Losses of a bfloat16 network on two layouts: partial sums are rounded to 8 bits at other places.
BFLOAT16_LOSS_RTOL = 0.03
# Logits of a 16-bit network against float32: 2 layers of roundings of 2^-9 (bfloat16) and 2^-12 of values of order 1.
HALF_LOGITS_ATOL = {torch.bfloat16: 0.1, torch.float16: 0.02}
# Hidden states of two implementations, or of two shapes of a product: 2 layers, the last LayerNorm's values of order 1.
HIDDEN_ATOL = 5e-6
# A sequence alone and in a batch through nested tensors, relative to its largest entry: the products of the attention
# have other shapes.
JAGGED_RTOL = 3e-6
# One gradient whose four parts are added up in another order, relative to its largest entry.
ORDER_RTOL = 1e-6
