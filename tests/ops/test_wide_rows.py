"""Rows of BERT's vocabulary with everything that training combines: labels, padding, weights, gradients in new memory
and over the logits.

On a GPU of compute capability 9.0 these are the rows that a cluster of blocks shares, 8 in float32 and 4 in 16 bits
(`plan_of` in csrc/ops/cuda/row_kernel.cu); the other tests with labels have rows of one block. They are few, so that
benchmarks/gpu_check.py can run them under compute-sanitizer.
"""

import pytest
import torch

from tests.ops import oracle, tolerances

V, VALID = 30592, 30522
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# In the first part; the last column of the first part of 8 and the first of the second; ignored; in a middle part; the
# first of the second of 4; the last of all.
LABELS = [7, 3815, 3816, -100, 15261, 7632, VALID - 1]
IGNORED, WITHOUT_KL, WITHOUT_MLM = 3, 5, 2  # rows


@pytest.fixture(params=DTYPES, ids=str)
def case(request, device, kernel_only):
    """(clean, adv), labels, MLM weights, KL weights; the padded columns are not numbers."""
    logits = [x.to(device, request.param) for x in oracle.logits(len(LABELS), V, difference=0.1)]
    for x in logits:
        x[:, VALID:] = torch.nan
    generator = torch.Generator().manual_seed(5)
    weights = [torch.rand(len(LABELS), generator=generator) + 0.5 for _ in range(2)]
    weights[0][WITHOUT_MLM] = weights[1][WITHOUT_KL] = 0.0
    return logits, torch.tensor(LABELS, device=device), *(weight.to(device) for weight in weights)


def row_op(name, logits, *arguments, detach=True):
    """One of the row ops with both gradients, on the whole vocabulary; arguments from the records on."""
    return getattr(torch.ops.megatron_alum, name)(*logits, *arguments, 0, VALID, False, detach, True, True)


def statistics(logits, labels):
    return torch.ops.megatron_alum.row_statistics(*logits, labels, 0, VALID, False)


@pytest.mark.parametrize("detach", [True, False])
def test_one_pass_over_wide_rows_equals_two(device, case, detach):
    logits, *rest = case
    records = statistics(logits, rest[0])
    found, *grads = row_op("row_gradients", logits, None, *rest, detach=detach)
    assert torch.equal(found, records)
    expected = row_op("row_gradients", logits, records, *rest, detach=detach)[1:]
    for mine, theirs in zip(grads, expected, strict=True):
        if device.type == "cpu" and not detach and mine.dtype == torch.float32:
            # Full gradients need u = a - b - c beside the weights, which one pass has kept. It rounds u once where two
            # passes, that know the centre to be small, round it twice (`small_shift` in csrc/ops/cpu/row_weights.h):
            # 2^-24 of numbers up to five times u.
            assert oracle.worst_row(mine, theirs) <= tolerances.FLOAT32
        else:
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("detach", [True, False])
def test_wide_rows_overwritten_get_the_same_bits(case, detach):
    logits, *rest = case
    records, *expected = row_op("row_gradients", logits, None, *rest, detach=detach)
    over = [x.clone() for x in logits]
    assert torch.equal(row_op("row_gradients_", over, None, *rest, detach=detach), records)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(over, expected, strict=True))
    expected = row_op("row_gradients", logits, records, *rest, detach=detach)[1:]
    over = [x.clone() for x in logits]
    row_op("row_gradients_", over, records, *rest, detach=detach)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(over, expected, strict=True))


def test_wide_rows_of_the_mlm_loss_alone(case):
    """No adversarial logits: one tensor is read, and overwritten, in both places."""
    (clean, _), labels, weight, _ = case
    rest = None, labels, weight, torch.zeros_like(weight), 0, VALID, False, True, True, False
    records, expected, _ = torch.ops.megatron_alum.row_gradients(clean, None, *rest)
    over = clean.clone()
    assert torch.equal(torch.ops.megatron_alum.row_gradients_(over, None, *rest), records)
    assert torch.equal(over, expected)
    exact = clean[:, :VALID].double().requires_grad_()
    mlm = torch.nn.functional.cross_entropy(exact, labels, reduction="none", ignore_index=-100)
    (mlm * weight).sum().backward()
    check_gradient(expected, exact.grad)


@pytest.mark.parametrize("detach", [True, False])
def test_wide_rows_against_float64(case, detach):
    logits, labels, mlm_weight, kl_weight = case
    records, *grads = row_op("row_gradients", logits, None, labels, mlm_weight, kl_weight, detach=detach)
    exact = [x[:, :VALID].double().requires_grad_() for x in logits]
    kl = (oracle.detached_kl if detach else oracle.full_kl)(*exact).where(labels != -100, 0.0)
    mlm = torch.nn.functional.cross_entropy(exact[0], labels, reduction="none", ignore_index=-100)
    (mlm * mlm_weight + kl * kl_weight).sum().backward()
    losses = torch.ops.megatron_alum.row_losses(*logits, records, labels, 0, VALID, False, detach, False)
    kept = labels != -100
    assert not losses[0][IGNORED] and not losses[1][IGNORED]
    assert oracle.worst_row(losses[0][kept], mlm.detach()[kept]) <= tolerances.MLM
    assert oracle.worst_row(losses[1][kept], kl.detach()[kept]) <= tolerances.VALUE[logits[0].dtype]
    for mine, truth in zip(grads, exact, strict=True):
        check_gradient(mine, truth.grad)


def check_gradient(found, truth):
    """Every row to the tolerance of its type; exactly 0 in the padding and in rows of weight 0."""
    dtype, mine = found.dtype, found[:, :VALID].double()
    assert not found[:, VALID:].any() and not found[IGNORED].any()
    if dtype == torch.float16:
        mine = torch.where((mine - truth).abs() <= tolerances.SUBNORMAL_FLOAT16, truth, mine)
    assert oracle.worst_row(mine, truth) <= tolerances.GRADIENT[dtype]
