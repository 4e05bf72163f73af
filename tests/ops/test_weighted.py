"""Weighted sums of the row losses, gradients formed in forward, against the sums of the row losses themselves."""

import pytest
import torch

from megatron_alum import ops
from tests.ops import oracle, tolerances

N, V, VALID = 7, 1024, 1000
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(device, dtype=torch.float32, difference=0.5):
    clean, adv = (x.to(device, dtype) for x in oracle.logits(N, V, difference=difference))
    generator = torch.Generator().manual_seed(4)
    labels = torch.tensor([0, 999, 5, -100, 17, 512, 3], device=device)
    weights = [torch.rand(N, generator=generator).to(device) for _ in range(2)]
    weights[1][5] = 0.0
    return clean, adv, labels, *weights


def differentiated(function, *leaves, factor=1.0, overwrite=False, **options):
    """(sums, gradients of `factor` times their total) with the logits made by an op, as a matrix product makes them."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    sums = function(*(x * 1.0 for x in leaves), overwrite_logits=overwrite, valid_vocab_size=VALID, **options)
    sums = sums if isinstance(sums, tuple) else (sums,)
    return [x.detach() for x in sums], torch.autograd.grad(factor * sum(sums), leaves)


def assert_alike(found, expected, dtype):
    for mine, theirs in zip(found[0], expected[0], strict=True):
        assert mine.item() == pytest.approx(theirs.item(), rel=2 * tolerances.FLOAT32)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        difference = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert difference <= 2 * tolerances.GRADIENT[dtype], difference


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_weighted_row_losses(device, impl, dtype, detach, overwrite, factor):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device, dtype)
    options = {"detach_targets": detach, "impl": impl, "factor": factor}

    def both(a, b, **rest):
        mlm, kl = ops.mlm_symmetric_kl(a, b, labels, **rest)
        return (mlm * mlm_weight).sum(), (kl * kl_weight).sum()

    weights = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}
    expected = differentiated(both, clean, adv, **options)

    def weighted(a, b, **rest):
        return ops.weighted_mlm_symmetric_kl(a, b, labels, **weights, **rest)

    found = differentiated(weighted, clean, adv, overwrite=overwrite, **options)
    assert_alike(found, expected, dtype)
    assert not found[1][0][3].any() and not found[1][1][5].any() and not found[1][0][:, VALID:].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_constant_side_is_left_alone(device, impl, symmetric, overwrite):
    """The inner pass: the clean logits are constants that the outer pass still needs."""
    clean, adv, _, _, weight = inputs(device)
    rows = ops.symmetric_kl if symmetric else ops.kl_divergence
    options = {"detach_targets": False, "impl": impl}
    before = clean.clone()

    def plain(b, **rest):
        return (rows(clean, b, **rest) * weight).sum()

    def weighted(b, **rest):
        return ops.weighted_kl(clean, b, row_weight=weight, symmetric=symmetric, **rest)

    expected = differentiated(plain, adv, **options)
    assert_alike(differentiated(weighted, adv, overwrite=overwrite, **options), expected, torch.float32)
    assert torch.equal(clean, before)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mlm_alone_against_cross_entropy(device, impl, dtype, overwrite):
    clean, _, labels, weight, _ = inputs(device, dtype)
    clean[1, 3] = -torch.inf  # a masked column

    def plain(a, **_):
        loss = torch.nn.functional.cross_entropy(a[:, :VALID], labels, reduction="none", ignore_index=-100)
        return (loss * weight.to(a.dtype)).sum()

    def weighted(a, **rest):
        return ops.weighted_mlm(a, labels, row_weight=weight, **rest)

    exact = differentiated(plain, clean.double())
    found = differentiated(weighted, clean, overwrite=overwrite, impl=impl)
    assert found[0][0].item() == pytest.approx(exact[0][0].item(), rel=2 * tolerances.MLM)
    assert oracle.worst_row(found[1][0][[0, 1, 2, 4]], exact[1][0][[0, 1, 2, 4]]) <= 2 * tolerances.GRADIENT[dtype]
    assert not found[1][0][3].any() and found[1][0][1, 3] == 0


def test_rows_longer_than_a_block(device, impl):
    """131072 columns are two blocks, whose weights are not kept but formed twice."""
    clean, adv = (x.to(device) for x in oracle.logits(3, 131072, difference=0.1))
    truth = oracle.differentiate(oracle.detached_kl, clean, adv, dtype=torch.float64)
    a, b = clean.requires_grad_(), adv.requires_grad_()
    total = ops.weighted_kl(a, b, row_weight=torch.ones(3, device=device), impl=impl)
    grads = torch.autograd.grad(total, (a, b))
    assert total.item() == pytest.approx(truth.kl.sum().item(), rel=tolerances.FLOAT32)
    for mine, exact in zip(grads, truth[1:], strict=True):
        assert oracle.worst_row(mine, exact) <= tolerances.FLOAT32


def test_rows_that_are_not_numbers(device, impl):
    """A bad row of weight 0 disappears; with a weight it makes the sum NaN. The MLM loss sees the clean side alone."""
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    adv[5, 77] = torch.nan  # its divergence has weight 0
    call = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "impl": impl}
    a, b = clean.requires_grad_(), adv.requires_grad_()
    mlm, kl = ops.weighted_mlm_symmetric_kl(a, b, labels, **call)
    (mlm + kl).backward()
    assert torch.isfinite(mlm) and torch.isfinite(kl) and torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()
    bad = clean.detach().clone()
    bad[0, 3] = torch.nan
    assert ops.weighted_mlm(bad.requires_grad_(), labels, row_weight=mlm_weight, impl=impl).isnan()
    assert ops.weighted_kl(bad, adv, row_weight=mlm_weight, impl=impl).isnan()


def test_overwriting_happens_in_the_logits_memory(device, kernel_only):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    leaves = clean.requires_grad_(), adv.requires_grad_()
    a, b = (x * 1.0 for x in leaves)
    where = [x.detach().data_ptr() for x in (a, b)]
    weights = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}
    mlm, kl = ops.weighted_mlm_symmetric_kl(a, b, labels, overwrite_logits=True, **weights)
    seen = []
    for x in (a, b):
        x.register_hook(lambda grad: seen.append(grad.data_ptr()))
    torch.autograd.grad(mlm + kl, leaves)
    assert sorted(seen) == sorted(where)


@pytest.mark.parametrize("weighted", [True, False])
def test_what_still_needs_the_overwritten_logits_is_told(device, kernel_only, weighted):
    """exp saves its output, here the logits: autograd must notice, never go on with a gradient in their place."""
    clean, adv, _, _, weight = inputs(device)
    logits = clean.requires_grad_().exp()
    if weighted:
        total = ops.weighted_kl(logits, adv, row_weight=weight, overwrite_logits=True)
    else:
        total = ops.symmetric_kl(logits, adv, overwrite_logits=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_the_sums_of_a_call_share_a_factor(device, kernel_only):
    if device.type == "cuda":
        pytest.skip("row losses on CUDA know every factor")
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    weights = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}
    a, b = clean.requires_grad_(), adv.requires_grad_()
    mlm, kl = ops.weighted_mlm_symmetric_kl(a, b, labels, **weights)
    with pytest.raises(RuntimeError, match="same factor"):
        (mlm + 10.0 * kl).backward()
    mlm, kl = ops.weighted_mlm_symmetric_kl(a, b, labels, **weights)
    ((mlm + kl) * float("nan")).backward()  # how a step marks a loss that is not finite
    assert a.grad.isnan().any() and b.grad.isnan().any()


def test_without_a_gradient_nothing_is_overwritten(device, impl):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    a, b = (x.clone().requires_grad_() * 1.0 for x in (clean, adv))
    with torch.no_grad():
        ops.weighted_kl(a, b, row_weight=kl_weight, overwrite_logits=True, impl=impl)
        ops.weighted_mlm(a, labels, row_weight=mlm_weight, overwrite_logits=True, impl=impl)
    assert torch.equal(a, clean) and torch.equal(b, adv)


def test_compiled_in_one_graph(device, kernel_only):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    weights = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}

    def loss(a, b):
        return sum(ops.weighted_mlm_symmetric_kl(a, b, labels, **weights)) + ops.weighted_mlm(
            a, labels, row_weight=mlm_weight
        )

    leaves = clean.requires_grad_(), adv.requires_grad_()
    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        assert oracle.worst_row(mine[:3], theirs[:3]) <= 2 * tolerances.FLOAT32


def test_wrong_weights_are_refused(device, impl):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    with pytest.raises(ValueError, match=r"the KL row weight must have shape \[7\], but is \[6\] instead"):
        ops.weighted_kl(clean, adv, row_weight=kl_weight[1:], impl=impl)
    with pytest.raises(ValueError, match="the MLM row weight must have shape"):
        ops.weighted_mlm(clean, labels, row_weight=mlm_weight[:, None], impl=impl)
