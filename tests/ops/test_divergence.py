"""symmetric_kl, kl_divergence and mlm_symmetric_kl against float64 autograd: implementations x dtypes x shapes x
options."""

import pytest
import torch

from megatron_alum import ops
from tests.helpers.pairs import pairs
from tests.ops import oracle, tolerances

SHAPES = [(1, 5), (7, 5), (123, 5), (1, 1000), (123, 1000), (7, 30522), (29, 30592), (3, 50265), (1, 131072)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIFFERENCES = [1e-6, 1e-5, 1e-3, 1e-1, 2.0]


def run(function, clean, adv, **options):
    """(value, gradient to clean, gradient to adv) of the sum of `function`'s value."""
    a, b = clean.detach().requires_grad_(), adv.detach().requires_grad_()
    kl = function(a, b, **options)
    return oracle.Divergence(kl.detach(), *torch.autograd.grad(kl.sum(), (a, b), allow_unused=True))


def assert_close(found, truth, plain, dtype):
    """Within the tolerance of `dtype` beyond the error that eager torch makes in that dtype."""
    for name, tolerance in (
        ("kl", tolerances.VALUE),
        ("to_clean", tolerances.GRADIENT),
        ("to_adv", tolerances.GRADIENT),
    ):
        mine, exact, eager = (getattr(x, name).double() for x in (found, truth, plain))
        allowed = tolerance[dtype] + (oracle.worst_row(eager, exact) if dtype != torch.float32 else 0.0)
        if dtype == torch.float16 and name != "kl":
            mine = torch.where((mine - exact).abs() <= tolerances.SUBNORMAL_FLOAT16, exact, mine)
        error = oracle.worst_row(mine, exact)
        assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize(*pairs(shape=SHAPES, dtype=DTYPES, detach=[True, False]), ids=str)
def test_value_and_gradients(device, impl, shape, dtype, detach):
    clean, adv = (x.to(device, dtype) for x in oracle.logits(*shape, difference=1.0))
    plainly = oracle.detached_kl if detach else oracle.full_kl
    truth = oracle.differentiate(plainly, clean, adv, dtype=torch.float64)
    plain = oracle.differentiate(plainly, clean, adv, dtype=dtype)
    found = run(ops.symmetric_kl, clean, adv, detach_targets=detach, impl=impl)
    assert found.kl.dtype == torch.float32 and found.to_clean.dtype == dtype
    assert_close(found, truth, plain, dtype)


@pytest.mark.parametrize(
    *pairs(difference=DIFFERENCES, shift=[0.0, 5.0, -40.0], columns=[1000, 30522], detach=[True, False])
)
def test_nearly_equal_logits_keep_their_digits(device, impl, difference, shift, columns, detach):
    clean, adv = (x.to(device) for x in oracle.logits(7, columns, difference=difference, shift=shift))
    truth = oracle.differentiate(oracle.detached_kl if detach else oracle.full_kl, clean, adv, dtype=torch.float64)
    truth = truth._replace(kl=oracle.full_kl(clean.double(), adv.double()))
    found = run(ops.symmetric_kl, clean, adv, detach_targets=detach, impl=impl)
    assert_close(found, truth, truth, torch.float32)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_one_sided_value_and_gradient(device, impl, difference):
    clean, adv = (x.to(device) for x in oracle.logits(7, 1000, difference=difference))
    found = run(ops.kl_divergence, clean, adv, detach_targets=False, impl=impl)
    truth = oracle.differentiate(oracle.one_sided_kl, clean, adv, dtype=torch.float64)
    limit = tolerances.FLOAT32 if difference < 1 else tolerances.ONE_SIDED_LARGE
    assert oracle.worst_row(found.kl, truth.kl) <= limit
    assert oracle.worst_row(found.to_adv, truth.to_adv) <= tolerances.FLOAT32
    assert oracle.worst_row(found.to_clean, truth.to_clean) <= limit
    detached = run(ops.kl_divergence, clean, adv, impl=impl)
    assert torch.equal(detached.kl, found.kl) and torch.equal(detached.to_adv, found.to_adv)
    assert detached.to_clean is None or not detached.to_clean.any()


def test_one_sided_arguments_are_not_swapped(device, impl):
    clean = torch.tensor([[2.0, 0.0, -1.0]], device=device)
    adv = torch.zeros(1, 3, device=device)
    p = clean.double().softmax(1)
    expected = (p * (p.log() - torch.log(torch.tensor(1 / 3, dtype=torch.float64)))).sum()
    assert ops.kl_divergence(clean, adv, impl=impl).item() == pytest.approx(expected.item(), rel=1e-6)
    assert ops.kl_divergence(adv, clean, impl=impl).item() != pytest.approx(expected.item(), rel=1e-2)


def test_two_columns_by_hand(device, impl):
    # P = (3/4, 1/4), Q = (1/2, 1/2): KL both ways = (3/4 - 1/2) ln 3 = 0.25 ln 3; p - q = (1/4, -1/4).
    clean, adv = torch.tensor([[3.0, 1.0]], device=device).log(), torch.zeros(1, 2, device=device)
    found = run(ops.symmetric_kl, clean, adv, impl=impl)
    assert found.kl.item() == pytest.approx(0.25 * 1.0986122886681098, rel=1e-6)
    assert found.to_clean[0].tolist() == pytest.approx([0.25, -0.25], rel=1e-6)
    assert found.to_adv[0].tolist() == pytest.approx([-0.25, 0.25], rel=1e-6)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padded_columns_do_not_count(device, impl, dtype, detach):
    clean, adv = (x.to(device, dtype) for x in oracle.logits(7, 1024, difference=0.5))
    alone = run(ops.symmetric_kl, clean[:, :1000], adv[:, :1000], detach_targets=detach, impl=impl)
    for padding in (3.0, 1e4, float("nan"), float("inf")):
        clean[:, 1000:], adv[:, 1000:] = padding, -padding
        found = run(ops.symmetric_kl, clean, adv, valid_vocab_size=1000, detach_targets=detach, impl=impl)
        assert torch.equal(found.kl, alone.kl)
        assert not found.to_clean[:, 1000:].any() and not found.to_adv[:, 1000:].any()
        assert torch.equal(found.to_clean[:, :1000], alone.to_clean) and torch.equal(
            found.to_adv[:, :1000], alone.to_adv
        )


def test_columns_masked_by_minus_infinity_on_both_sides(device, impl):
    clean, adv = (x.to(device) for x in oracle.logits(7, 1000, difference=1e-3))
    masked = torch.zeros(1000, dtype=torch.bool, device=device)
    masked[[0, 3, 17, 500, 999]] = True
    truth = oracle.differentiate(oracle.detached_kl, clean[:, ~masked], adv[:, ~masked], dtype=torch.float64)
    clean[:, masked] = adv[:, masked] = -torch.inf
    found = run(ops.symmetric_kl, clean, adv, impl=impl)
    assert oracle.worst_row(found.kl, truth.kl) <= tolerances.FLOAT32
    assert oracle.worst_row(found.to_adv[:, ~masked], truth.to_adv) <= tolerances.FLOAT32
    assert not found.to_adv[:, masked].any() and not found.to_clean[:, masked].any()


LAYOUTS = ["transposed", "every other row", "every other column", "part of the columns"]


@pytest.mark.parametrize(*pairs(layout=LAYOUTS, dtype=DTYPES, detach=[True, False]), ids=str)
def test_non_contiguous_logits(device, impl, layout, dtype, detach):
    clean, adv = (x.to(device, dtype) for x in oracle.logits(6, 1000, difference=0.5))

    def strided(x):
        if layout == "transposed":
            return x.T.contiguous().T
        if layout == "every other row":
            return x.repeat_interleave(2, dim=0)[::2]
        if layout == "every other column":
            return x.repeat_interleave(2, dim=1)[:, ::2]
        return torch.cat([x, x], dim=1)[:, :1000]

    expected = run(ops.symmetric_kl, clean, adv, detach_targets=detach, impl=impl)
    found = run(ops.symmetric_kl, strided(clean), strided(adv), detach_targets=detach, impl=impl)
    for mine, theirs in zip(found, expected, strict=True):  # torch's own sums depend on the layout
        allowed = tolerances.GRADIENT[mine.dtype]
        assert oracle.worst_row(mine, theirs) <= (allowed if impl == "reference" else 0.0)


SHARED = {
    "the first row against every row": lambda x: (x[:1].expand_as(x), x),
    "every row against the first": lambda x: (x, x[:1].expand_as(x)),
    "neighbouring columns": lambda x: (x[:, :-1], x[:, 1:]),
    "overlapping rows": lambda x: (x.as_strided(x.shape, (1, 1)), x),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHARED)
def test_logits_that_share_memory_are_two_tensors(device, impl, name, dtype):
    """Where both begin at the same address, only the strides tell them from one tensor given twice."""
    clean, adv = SHARED[name](oracle.logits(5, 1001, difference=0.0)[0].to(device, dtype))
    found = run(ops.symmetric_kl, clean, adv, impl=impl)
    alone = run(ops.symmetric_kl, clean.clone(), adv.clone(), impl=impl)
    assert found.kl.count_nonzero() >= 4
    for mine, theirs in zip(found, alone, strict=True):
        assert oracle.worst_row(mine, theirs) <= (tolerances.GRADIENT[mine.dtype] if impl == "reference" else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identical_logits_give_exactly_zero(device, impl, dtype):
    clean = oracle.logits(7, 1000, difference=0.0)[0].to(device, dtype)
    for detach in (True, False):
        for function in (ops.symmetric_kl, ops.kl_divergence):
            found = run(function, clean, clean.clone(), detach_targets=detach, impl=impl)
            assert not found.kl.any() and not found.to_adv.any()
            assert found.to_clean is None or not found.to_clean.any()


@pytest.mark.parametrize("columns", [1000, 131072])  # the kernel merges blocks of the longer row
@pytest.mark.parametrize("scale", [30.0, 300.0, 1e4])
def test_logits_far_apart(device, impl, scale, columns):
    clean, adv = (x.to(device) for x in oracle.far_apart(7, columns, scale=scale))
    exact = clean.double().softmax(1) - adv.double().softmax(1)
    found = run(ops.symmetric_kl, clean, adv, impl=impl)
    allowed = tolerances.FAR_APART * clean.abs().max()
    tolerances.check_far_apart(found.kl, oracle.full_kl(clean.double(), adv.double()), clean)
    assert (found.to_clean - exact).abs().max() <= allowed
    assert (found.to_adv + exact).abs().max() <= allowed
    one_sided = run(ops.kl_divergence, clean, adv, impl=impl)
    tolerances.check_far_apart(one_sided.kl, oracle.one_sided_kl(clean.double(), adv.double()), clean)
    assert (one_sided.to_adv + exact).abs().max() <= allowed


def test_the_two_branches_agree_at_their_seam(device, impl):
    """Rows whose centre is an outlier by 0 to 60: the sums change form in between, the error must not."""
    for outlier in [0.0, 0.5, 1.3, 1.5, 3.8, 4.2, 10.0, 19.0, 21.0, 60.0, -1.0, -1.5, -3.0, -19.0, -21.0, -60.0]:
        clean, adv = oracle.logits(3, 1000, difference=0.1, scale=0.5)
        top = clean.argmax(1, keepdim=True)
        adv.scatter_add_(1, top, torch.full((3, 1), outlier))
        clean, adv = clean.to(device), adv.to(device)
        truth = oracle.differentiate(oracle.detached_kl, clean, adv, dtype=torch.float64)
        found = run(ops.symmetric_kl, clean, adv, impl=impl)
        assert oracle.worst_row(found.kl, oracle.full_kl(clean.double(), adv.double())) <= tolerances.FLOAT32, outlier
        assert oracle.worst_row(found.to_adv, truth.to_adv) <= tolerances.FLOAT32, outlier


@pytest.mark.parametrize(
    *pairs(
        value=[float("nan"), float("inf"), -float("inf")],
        dtype=DTYPES,
        side=["clean", "adv"],
        function=[ops.symmetric_kl, ops.kl_divergence],
    ),
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_rows_that_are_not_numbers_are_reported(device, impl, value, side, dtype, function):
    """One bad logit makes its row NaN and leaves the others alone; a row of weight 0 gets zero gradients anyway."""
    clean, adv = (x.to(device, dtype) for x in oracle.logits(5, 1000, difference=0.5))
    expected = function(clean, adv, impl=impl)
    (clean if side == "clean" else adv)[2, 77] = value
    a, b = clean.requires_grad_(), adv.requires_grad_()
    kl = function(a, b, detach_targets=False, impl=impl)
    if side == "clean" and value == -float("inf") and function is ops.kl_divergence:  # p log(p / q) of p = 0 is 0
        p, q = (x[2].double().log_softmax(0) for x in (clean, adv))
        assert kl[2].item() == pytest.approx((p.exp() * (p - q)).where(p.exp() > 0, 0.0).sum().item(), rel=1e-4)
        return
    assert kl[2].isnan() and torch.equal(kl[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    torch.where(kl.isnan(), 0.0, kl).sum().backward()
    for grad in (a.grad, b.grad):
        assert torch.isfinite(grad).all() and not grad[2].any() and grad[1].any()


@pytest.mark.parametrize("value", [float("nan"), -float("inf")], ids=str)
def test_a_row_without_any_number_is_nan(device, impl, value):
    clean, adv = torch.full((2, 40), value, device=device), torch.full((2, 40), value, device=device)
    assert ops.symmetric_kl(clean, adv, impl=impl).isnan().all()


def test_no_rows(device, impl):
    clean = torch.zeros(0, 1000, device=device, requires_grad=True)
    adv = torch.zeros(0, 1000, device=device, requires_grad=True)
    kl = ops.symmetric_kl(clean, adv, impl=impl)
    mlm, kl_too = ops.mlm_symmetric_kl(clean, adv, torch.zeros(0, dtype=torch.int64, device=device), impl=impl)
    (kl.sum() + mlm.sum() + kl_too.sum()).backward()
    assert kl.shape == (0,) and clean.grad.shape == adv.grad.shape == (0, 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mlm_loss_comes_along(device, impl, dtype):
    clean, adv = (x.to(device, dtype) for x in oracle.logits(7, 1024, difference=0.5))
    labels = torch.tensor([0, 999, 5, -100, 17, 512, 3], device=device)
    mlm_weight = torch.rand(7, device=device) + 0.5
    a, b = clean.requires_grad_(), adv.requires_grad_()
    mlm, kl = ops.mlm_symmetric_kl(a, b, labels, valid_vocab_size=1000, impl=impl)
    ((mlm * mlm_weight).sum() + 3.0 * kl.sum()).backward()
    a64, b64 = (x.detach().double().requires_grad_() for x in (clean, adv))
    mlm64 = torch.nn.functional.cross_entropy(a64[:, :1000], labels, reduction="none", ignore_index=-100)
    kept = labels != -100
    kl64 = torch.where(kept, oracle.detached_kl(a64[:, :1000], b64[:, :1000]), 0.0)
    ((mlm64 * mlm_weight.double()).sum() + 3.0 * kl64.sum()).backward()
    assert mlm[3] == 0 and kl[3] == 0 and not a.grad[3].any() and not b.grad[3].any()
    assert oracle.worst_row(mlm[kept], mlm64[kept].detach()) <= tolerances.MLM
    for mine, exact in ((a.grad, a64.grad), (b.grad, b64.grad)):
        mine = torch.where((mine - exact).abs() <= tolerances.SUBNORMAL_FLOAT16, exact, mine.double())
        assert oracle.worst_row(mine[kept], exact[kept]) <= tolerances.GRADIENT[dtype]


def test_mlm_alone_ignores_adversarial_numbers(device, impl):
    """With no weight on the divergence the adversarial logits may be anything."""
    clean, adv = (x.to(device) for x in oracle.logits(3, 100, difference=0.5))
    adv[:] = float("nan")
    a, b = clean.requires_grad_(), adv.requires_grad_()
    mlm, _ = ops.mlm_symmetric_kl(a, b, torch.tensor([1, 2, 3], device=device), impl=impl)
    mlm.sum().backward()
    expected = clean.detach().double().softmax(1)
    expected[range(3), [1, 2, 3]] -= 1
    assert oracle.worst_row(a.grad, expected) <= tolerances.FLOAT32 and not b.grad.any()


@pytest.mark.parametrize("detach", [True, False])
def test_reference_passes_gradcheck_in_double(detach):
    a = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    b = (a + 0.5 * torch.randn(3, 7, dtype=torch.float64)).detach().requires_grad_()
    labels = torch.tensor([1, -100, 4])
    if detach:  # each side alone: the targets are constants of the check
        clean, adv = a.detach(), b.detach()

        def to_adv(x):
            return ops.kl_divergence(clean, x)

        def to_clean(x):
            return ops.kl_divergence(adv, x)

        assert torch.autograd.gradcheck(to_adv, (b,)) and torch.autograd.gradcheck(to_clean, (a,))
        both = run(ops.symmetric_kl, clean, adv)
        one = torch.autograd.grad(ops.kl_divergence(clean, b).sum(), b)[0]
        other = torch.autograd.grad(ops.kl_divergence(adv, a).sum(), a)[0]
        assert torch.allclose(both.to_adv, one, rtol=1e-12) and torch.allclose(both.to_clean, other, rtol=1e-12)
        return
    assert torch.autograd.gradcheck(lambda x, y: ops.symmetric_kl(x, y, detach_targets=False), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: ops.kl_divergence(x, y, detach_targets=False), (a, b))
    options = {"detach_targets": False, "valid_vocab_size": 5}
    assert torch.autograd.gradcheck(lambda x, y: ops.mlm_symmetric_kl(x, y, labels, **options), (a, b))
