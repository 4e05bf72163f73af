"""`row_losses` with weights: sums, gradients formed in forward, against the sums of the losses of every row."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_alum import ops
from tests.helpers.pairs import pairs
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


@pytest.mark.parametrize(
    *pairs(dtype=DTYPES, detach=[True, False], overwrite=[False, True], factor=[1.0, 0.25]), ids=str
)
def test_equals_the_weighted_row_losses(device, impl, dtype, detach, overwrite, factor):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device, dtype)
    options = {"detach_targets": detach, "impl": impl, "factor": factor}

    def both(a, b, **rest):
        mlm, kl = ops.mlm_symmetric_kl(a, b, labels, **rest)
        return (mlm * mlm_weight).sum(), (kl * kl_weight).sum()

    weights = {"mlm_weight": mlm_weight, "kl_weight": kl_weight}
    expected = differentiated(both, clean, adv, **options)

    def weighted(a, b, **rest):
        return ops.row_losses(a, b, labels, **weights, **rest)[:2]

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
        return ops.row_losses(clean, b, kl_weight=weight, divergence="symmetric" if symmetric else "one_way", **rest).kl

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
        return ops.row_losses(a, None, labels, mlm_weight=weight, **rest).mlm

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
    total = ops.row_losses(a, b, kl_weight=torch.ones(3, device=device), impl=impl).kl
    grads = torch.autograd.grad(total, (a, b))
    assert total.item() == pytest.approx(truth.kl.sum().item(), rel=tolerances.FLOAT32)
    for mine, exact in zip(grads, truth[1:], strict=True):
        assert oracle.worst_row(mine, exact) <= tolerances.FLOAT32


def test_rows_that_are_not_numbers(device, impl):
    """A bad row of weight 0 disappears; with a weight it makes the sum NaN. The MLM loss depends only on the clean
    side."""
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    adv[5, 77] = torch.nan  # its divergence has weight 0
    call = {"mlm_weight": mlm_weight, "kl_weight": kl_weight, "impl": impl}
    a, b = clean.requires_grad_(), adv.requires_grad_()
    mlm, kl = ops.row_losses(a, b, labels, **call)[:2]
    (mlm + kl).backward()
    assert torch.isfinite(mlm) and torch.isfinite(kl) and torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()
    bad = clean.detach().clone()
    bad[0, 3] = torch.nan
    assert ops.row_losses(bad.requires_grad_(), None, labels, mlm_weight=mlm_weight, impl=impl).mlm.isnan()
    assert ops.row_losses(bad, adv, kl_weight=mlm_weight, impl=impl).kl.isnan()


def test_overwriting_happens_in_the_logits_memory(device, kernel_only):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    leaves = clean.requires_grad_(), adv.requires_grad_()
    a, b = (x * 1.0 for x in leaves)
    where = [x.detach().data_ptr() for x in (a, b)]
    weights = {"mlm_weight": mlm_weight, "kl_weight": kl_weight}
    mlm, kl = ops.row_losses(a, b, labels, overwrite_logits=True, **weights)[:2]
    seen = []
    for x in (a, b):
        x.register_hook(lambda grad: seen.append(grad.data_ptr()))
    torch.autograd.grad(mlm + kl, leaves)
    assert sorted(seen) == sorted(where)


@pytest.mark.parametrize("weighted", [True, False])
def test_autograd_notices_overwritten_logits_that_are_still_needed(device, kernel_only, weighted):
    """exp saves its output, here the logits: autograd must notice instead of using a gradient in their place."""
    clean, adv, _, _, weight = inputs(device)
    logits = clean.requires_grad_().exp()
    if weighted:
        total = ops.row_losses(logits, adv, kl_weight=weight, overwrite_logits=True).kl
    else:
        total = ops.symmetric_kl(logits, adv, overwrite_logits=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_the_sums_of_a_call_share_a_factor(device, kernel_only):
    if device.type == "cuda":
        pytest.skip("a GPU asserts it, which ends the process")
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    weights = {"mlm_weight": mlm_weight, "kl_weight": kl_weight}
    a, b = clean.requires_grad_(), adv.requires_grad_()
    mlm, kl = ops.row_losses(a, b, labels, **weights)[:2]
    with pytest.raises(RuntimeError, match="same factor"):
        (mlm + 10.0 * kl).backward()
    mlm, kl = ops.row_losses(a, b, labels, **weights)[:2]
    ((mlm + kl) * float("nan")).backward()  # how a step marks a loss that is not finite
    assert a.grad.isnan().any() and b.grad.isnan().any()


def test_without_a_gradient_nothing_is_overwritten(device, impl):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    a, b = (x.clone().requires_grad_() * 1.0 for x in (clean, adv))
    with torch.no_grad():
        ops.row_losses(a, b, kl_weight=kl_weight, overwrite_logits=True, impl=impl)
        ops.row_losses(a, None, labels, mlm_weight=mlm_weight, overwrite_logits=True, impl=impl)
    assert torch.equal(a, clean) and torch.equal(b, adv)


def test_compiled_in_one_graph(device, kernel_only):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    weights = {"mlm_weight": mlm_weight, "kl_weight": kl_weight}

    def loss(a, b):
        return (
            sum(ops.row_losses(a, b, labels, **weights)[:2])
            + ops.row_losses(a, None, labels, mlm_weight=mlm_weight).mlm
        )

    leaves = clean.requires_grad_(), adv.requires_grad_()
    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        assert oracle.worst_row(mine[:3], theirs[:3]) <= 2 * tolerances.FLOAT32


def test_wrong_weights_are_refused(device, impl):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    with pytest.raises(ValueError, match=r"`kl_weight` must have shape \[7\], but is \[6\] instead"):
        ops.row_losses(clean, adv, kl_weight=kl_weight[1:], impl=impl)
    with pytest.raises(ValueError, match="`mlm_weight` must have shape"):
        ops.row_losses(clean, None, labels, mlm_weight=mlm_weight[:, None], impl=impl)


@pytest.mark.parametrize("divergence", ["symmetric", "one_way"])
def test_constants_for_logs_come_with_the_pass(device, impl, divergence):
    """Every row once, whatever its weight: the divergence itself and KL(P||Q)."""
    clean, adv, labels, mlm_weight, kl_weight = inputs(device, difference=0.1)
    call = {"divergence": divergence, "valid_vocab_size": VALID, "impl": impl}
    rows = ops.row_losses(clean, adv, labels, **call)
    exact = [x[:, :VALID].double() for x in (clean, adv)]
    one_way = oracle.one_sided_kl(*exact).where(labels != -100, 0.0)
    assert (rows.logged_one_way - one_way).abs().max() <= 1e-7 and torch.equal(rows.logged_kl, rows.kl)
    weights = {"mlm_weight": mlm_weight, "kl_weight": kl_weight}
    for a, b in ((clean.requires_grad_(), adv), (clean.detach(), adv)):  # with and without a gradient
        sums = ops.row_losses(a, b, labels, **weights, **call)
        assert sums.logged_one_way.item() == pytest.approx(one_way.sum().item(), rel=1e-4)
        assert sums.logged_kl.item() == pytest.approx(rows.kl.sum().item(), rel=1e-6)
        assert not sums.logged_one_way.requires_grad and not sums.logged_kl.requires_grad


def test_a_loss_and_its_weight_come_together(device, impl):
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    with pytest.raises(ValueError, match="`mlm_weight` must come with labels, but is missing instead"):
        ops.row_losses(clean, adv, labels, kl_weight=kl_weight, impl=impl)
    with pytest.raises(ValueError, match="`kl_weight` must come with adversarial logits, but is given without them"):
        ops.row_losses(clean, None, labels, mlm_weight=mlm_weight, kl_weight=kl_weight, impl=impl)
    with pytest.raises(ValueError, match="`divergence` must be symmetric or one_way, but is 'both' instead"):
        ops.row_losses(clean, adv, divergence="both", impl=impl)


class Passes(TorchDispatchMode):
    """Times a logit tensor is read or written by the row ops under it."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("megatron_alum::")
        sides = 1 if name in ("row_statistics", "row_gradients", "row_gradients_") and args[1] is None else 2
        if name == "row_statistics":
            self.total += sides
        elif name in ("row_gradients", "row_gradients_"):
            self.total += sides + sum(args[-2:])
        return function(*args, **(kwargs or {}))


def test_a_step_passes_over_logit_tensors_seven_times(device, kernel_only):
    """One ascent step: inner divergence 2 reads and 1 write, all losses of the outer pass 2 reads and 2 writes."""
    clean, adv, labels, mlm_weight, kl_weight = inputs(device)
    a, b = (x.requires_grad_() * 1.0 for x in (clean, adv))
    with Passes() as passes:
        inner = ops.row_losses(
            a.detach(), b, kl_weight=kl_weight, divergence="one_way", detach_targets=False, overwrite_logits=True
        )
        torch.autograd.grad(inner.kl, adv)
        b = adv * 1.0
        outer = ops.row_losses(
            a, b, labels, mlm_weight=mlm_weight, kl_weight=kl_weight, detach_targets=True, overwrite_logits=True
        )
        torch.autograd.grad(outer.mlm + outer.kl, (clean, adv))
    assert torch.isfinite(outer.logged_one_way) and passes.total == 7
    with Passes() as passes:
        loss = ops.row_losses(clean * 1.0, None, labels, mlm_weight=mlm_weight, overwrite_logits=True).mlm
        torch.autograd.grad(loss, clean)
    assert passes.total == 2
