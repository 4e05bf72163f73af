"""The losses from hidden states equal the plain head and losses for any chunk, hold no more logits than a chunk and
compute no more products than the gradients need."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_alum import ops
from tests.helpers.distributed import run_ranks
from tests.helpers.pairs import pairs
from tests.ops import oracle, tolerances

N, H, V = 23, 32, 500


def inputs(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

    clean = draw(N, H)
    leaves = [clean, clean + draw(N, H, scale=0.1), draw(V, H, scale=0.2), draw(V, scale=0.1)]
    labels = torch.randint(0, V - 20, (N,), generator=generator)
    labels[4] = -100
    weights = torch.rand(N, generator=generator).to(device), torch.rand(N, generator=generator).to(device)
    return [x.requires_grad_() for x in leaves], labels.to(device), weights


def weighted_kl(*tensors, row_weight, symmetric=True, **options):
    divergence = "symmetric" if symmetric else "one_way"
    return ops.row_losses_from_hidden(*tensors, kl_weight=row_weight, divergence=divergence, **options).kl


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 7, 23, 100])
def test_equals_the_plain_head(device, impl, chunk_rows, detach):
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    clean, adv, weight, bias = leaves
    options = {"valid_vocab_size": V - 12, "detach_targets": detach, "impl": impl}
    mlm, kl = ops.mlm_symmetric_kl(clean @ weight.T + bias, adv @ weight.T + bias, labels, **options)
    plain = (mlm * mlm_weight).sum(), (kl * kl_weight).sum()
    expected = torch.autograd.grad(3.0 * sum(plain), leaves)
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "chunk_rows": chunk_rows}
    chunked = ops.mlm_symmetric_kl_from_hidden(clean, adv, weight, bias, labels, **rows, **options)
    found = torch.autograd.grad(3.0 * sum(chunked), leaves)
    for mine, theirs in zip(chunked, plain, strict=True):
        assert mine.item() == pytest.approx(theirs.item(), rel=tolerances.CHUNKED)
    for mine, theirs in zip(found, expected, strict=True):
        assert ((mine - theirs).norm() / theirs.norm()).item() <= tolerances.CHUNKED


ORACLES = {
    (True, True): oracle.detached_kl,
    (True, False): oracle.full_kl,
    (False, True): lambda a, b: oracle.one_sided_kl(a.detach(), b),
    (False, False): oracle.one_sided_kl,
}


def exact_kl(leaves, weights, symmetric, detach):
    """(value, gradients to the leaves) of the weighted divergence by plain torch in float64."""
    copies = [x.detach().double().requires_grad_() for x in leaves]
    a, b = (torch.nn.functional.linear(x, *copies[2:])[:, : V - 12] for x in copies[:2])
    kl = (ORACLES[symmetric, detach](a, b) * weights.double()).sum()
    return kl.detach(), torch.autograd.grad(kl, copies, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize(*pairs(chunk_rows=[1, 7, 100], symmetric=[True, False], detach=[True, False]))
def test_the_divergence_alone_against_float64(device, impl, chunk_rows, symmetric, detach):
    leaves, _, (weights, _) = inputs(device)
    options = {"symmetric": symmetric, "detach_targets": detach, "valid_vocab_size": V - 12, "impl": impl}
    value, expected = exact_kl(leaves, weights, symmetric, detach)
    kl = weighted_kl(*leaves, row_weight=weights, chunk_rows=chunk_rows, **options)
    found = torch.autograd.grad(3.0 * kl, leaves)
    assert kl.item() == pytest.approx(value.item(), rel=tolerances.CHUNKED)
    cancelled = 1e-7 if symmetric and detach else 0.0  # the parts of the bias's gradient, exactly 0, from both sides
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - 3.0 * exact).norm() <= tolerances.CHUNKED * (3.0 * exact).norm() + cancelled


@pytest.mark.parametrize("symmetric", [True, False])
def test_float64_hidden_states(device, symmetric):
    leaves, _, (weights, _) = inputs(device)
    leaves = [x.detach().double().requires_grad_() for x in leaves]
    value, expected = exact_kl(leaves, weights, symmetric, detach=False)
    options = {"symmetric": symmetric, "detach_targets": False, "valid_vocab_size": V - 12, "chunk_rows": 5}
    kl = weighted_kl(*leaves, row_weight=weights, **options)
    torch.testing.assert_close(kl.detach(), value, rtol=1e-9, atol=0)
    for mine, exact in zip(torch.autograd.grad(kl, leaves), expected, strict=True):
        assert (mine - exact).norm() <= 1e-9 * exact.norm()


@pytest.mark.parametrize("symmetric", [True, False])
def test_nearly_equal_logits_keep_their_digits(device, impl, symmetric):
    """Numbers whose products and sums are exact in float32, so that the logits are, and what is left is the loss."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.randint(-8, 9, (N, H), generator=generator) / 16
    step = torch.randint(-8, 9, (N, H), generator=generator) * 2.0**-17
    weight = torch.randint(-8, 9, (V, H), generator=generator) / 8
    leaves = [x.to(device) for x in (clean, clean + step, weight, torch.zeros(V))]
    ones = torch.ones(N, device=device)
    value, _ = exact_kl(leaves, ones, symmetric, detach=False)
    options = {"chunk_rows": 5, "valid_vocab_size": V - 12, "impl": impl}
    kl = weighted_kl(*leaves, row_weight=ones, symmetric=symmetric, **options)
    assert value / N < 1e-7, "of the size that ALUM meets"
    assert kl.item() == pytest.approx(value.item(), rel=2 * tolerances.FLOAT32)


@pytest.mark.parametrize("differentiated", [True, False])
def test_constants_for_logs_come_with_the_chunks(device, impl, differentiated):
    """They are those of whole logits, with the same weights."""
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    weights = {"mlm_weight": mlm_weight, "kl_weight": kl_weight, "log_weight": kl_weight.flip(0), "impl": impl}
    with torch.set_grad_enabled(differentiated):
        found = ops.row_losses_from_hidden(*leaves, labels, chunk_rows=7, **weights)
        logits = [torch.nn.functional.linear(hidden, *leaves[2:]) for hidden in leaves[:2]]
        expected = ops.row_losses(*logits, labels, **weights)
    assert not found.logged_one_way.requires_grad and not found.logged_kl.requires_grad
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.item() == pytest.approx(theirs.item(), rel=10 * tolerances.CHUNKED)


class Products(TorchDispatchMode):
    """Rows x rows of the matrix products under it, in units of one [N, H] x [H, V]."""

    def __init__(self):
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.total += left.shape[0] * left.shape[1] * right.shape[1] / (N * H * V)
        return function(*args, **(kwargs or {}))


def test_no_product_is_computed_twice(device, impl):
    """Forward and backward: two logits, two gradients to hidden states, two parts of the weight's; three inside."""
    (clean, adv, weight, bias), labels, (mlm_weight, kl_weight) = inputs(device)
    rows = {"chunk_rows": 5, "impl": impl}
    weights = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}
    with Products() as whole:
        sum(ops.mlm_symmetric_kl_from_hidden(clean, adv, weight, bias, labels, **weights, **rows)).backward()
    frozen = clean.detach(), adv, weight.detach(), bias.detach()
    with Products() as inner:
        weighted_kl(*frozen, row_weight=kl_weight, **rows).backward()
    with Products() as value, torch.no_grad():
        weighted_kl(*frozen, row_weight=kl_weight, **rows)
    assert [round(x.total, 6) for x in (whole, inner, value)] == [6, 3, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_width_types(device, impl, dtype):
    """Gradients to weight and bias are summed over chunks in float32: as good as one product over all rows."""
    leaves, labels, (mlm_weight, kl_weight) = inputs(device, dtype)
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}
    losses = ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **rows, chunk_rows=5, impl=impl)
    found = torch.autograd.grad(sum(losses), leaves)

    def plainly(dtype):
        copies = [x.detach().to(dtype).requires_grad_() for x in leaves]
        a, b = (torch.nn.functional.linear(x, *copies[2:]) for x in copies[:2])
        mlm = torch.nn.functional.cross_entropy(a, labels, reduction="none", ignore_index=-100)
        kl = torch.where(labels != -100, oracle.detached_kl(a, b), 0.0)
        return torch.autograd.grad((mlm * mlm_weight).sum() + (kl * kl_weight).sum(), copies)

    for mine, exact, eager in zip(found, plainly(torch.float64), plainly(dtype), strict=True):
        error, eager_error = ((x - exact).norm() / exact.norm() for x in (mine, eager))
        assert mine.dtype == dtype and error <= eager_error + tolerances.GRADIENT[dtype]


def test_memory_grows_with_the_chunk_not_with_the_rows(device, impl):
    """Largest tensor the head makes, seen through the torch dispatcher: 2 chunk x V, the weight, or N x H."""

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if (
                    isinstance(tensor, torch.Tensor)
                    and tensor.ndim == 2
                    and tensor.shape[1] == V
                    and tensor.shape[0] != H
                ):
                    self.rows = max(self.rows, tensor.shape[0])
            return result

    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "chunk_rows": 4}
    with Largest() as seen:
        sum(ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **rows, impl=impl)).backward()
    assert 0 < seen.rows <= 2 * 4
    with Largest() as seen:
        weighted_kl(*leaves, row_weight=kl_weight, chunk_rows=4, impl=impl).backward()
    assert 0 < seen.rows <= 2 * 4


def test_only_needed_gradients(device, impl):
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    clean, adv, weight, bias = leaves
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "chunk_rows": 8, "impl": impl}
    sum(ops.mlm_symmetric_kl_from_hidden(clean.detach(), adv, weight.detach(), None, labels, **rows)).backward()
    assert adv.grad is not None and clean.grad is None and weight.grad is None
    with torch.no_grad():
        assert not ops.mlm_symmetric_kl_from_hidden(clean, adv, weight, bias, labels, **rows)[0].requires_grad


@pytest.mark.parametrize("needed", range(4), ids=["clean", "adversarial", "weight", "bias"])
def test_each_gradient_alone_equals_that_of_all(device, impl, needed):
    leaves, _, (weights, _) = inputs(device)
    options = {"row_weight": weights, "chunk_rows": 6, "detach_targets": False, "impl": impl}
    expected = torch.autograd.grad(weighted_kl(*leaves, **options), leaves[needed])[0]
    alone = [x if i == needed else x.detach() for i, x in enumerate(leaves)]
    found = torch.autograd.grad(weighted_kl(*alone, **options), leaves[needed])[0]
    assert (found - expected).norm() <= tolerances.CHUNKED * expected.norm()


def sums_on_rank(rank, world_size, case, impl):
    """(sums of both functions, gradients of each, collectives of each) with the decoder's rows split over the ranks."""
    (clean, adv, weight, bias), labels, (mlm_weight, kl_weight) = case
    decoder = [x.detach().chunk(world_size)[rank].clone().requires_grad_() for x in (weight, bias)]
    leaves = [clean.detach().requires_grad_(), adv.detach().requires_grad_(), *decoder]
    options = {"chunk_rows": 8, "valid_vocab_size": V - 12, "group": dist.group.WORLD, "impl": impl}
    calls, original = [], dist.all_gather_into_tensor

    def counting(output, tensor, **rest):
        calls.append(tensor.shape[1])
        return original(output, tensor, **rest)

    dist.all_gather_into_tensor = counting
    try:
        rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight}
        both = sum(ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **rows, **options))
        kl = weighted_kl(*leaves, row_weight=kl_weight, symmetric=False, **options)
        gradients = [torch.autograd.grad(x, leaves) for x in (both, kl)]
    finally:
        dist.all_gather_into_tensor = original
    return [both.detach(), kl.detach()], gradients, calls


def test_a_split_vocabulary_gives_what_one_rank_gives(device, impl):
    if device.type != "cpu":
        pytest.skip("the workers of this test speak gloo; benchmarks/gpu_check.py runs one GPU")
    case = inputs(device)
    case = [x.detach() for x in case[0]], *case[1:]
    ((sums, gradients, _),) = run_ranks(1, sums_on_rank, case, impl)
    ranks = run_ranks(2, sums_on_rank, case, impl)
    for found, _, calls in ranks:
        torch.testing.assert_close(found, sums, rtol=tolerances.CHUNKED, atol=0)
        assert calls == [7, 7, 7, 6, 6, 6], "one collective per chunk and function, none in backward"
    for door, expected in enumerate(gradients):
        hidden = [sum(rank[1][door][i] for rank in ranks) for i in range(2)]
        decoder = [torch.cat([rank[1][door][i] for rank in ranks]) for i in (2, 3)]
        for mine, theirs in zip([*hidden, *decoder], expected, strict=True):
            assert (mine - theirs).norm() <= tolerances.CHUNKED * theirs.norm()


def test_different_factors_on_the_two_sums_are_refused(device, impl):
    if device.type == "cuda":
        pytest.skip("on CUDA the check is a device-side assertion, which ends the process")
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "chunk_rows": 8, "impl": impl}
    mlm, kl = ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **rows)
    with pytest.raises(RuntimeError, match="same factor"):
        (mlm + 10.0 * kl).backward()


def test_no_rows(device, impl):
    leaves, _, _ = inputs(device)
    clean, adv = (torch.zeros(0, H, device=device, requires_grad=True) for _ in range(2))
    none = torch.zeros(0, device=device)
    rows = {"mlm_row_weight": none, "kl_row_weight": none, "chunk_rows": 8, "impl": impl}
    labels = torch.zeros(0, dtype=torch.int64, device=device)
    assert weighted_kl(clean, adv, *leaves[2:], row_weight=none, chunk_rows=8, impl=impl) == 0
    total = sum(ops.mlm_symmetric_kl_from_hidden(clean, adv, *leaves[2:], labels, **rows))
    total.backward()
    assert total == 0 and not leaves[2].grad.any()


def test_wrong_shapes_are_refused(device, impl):
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "impl": impl}
    with pytest.raises(ValueError, match="`chunk_rows` must be >= 1, but is 0"):
        ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **rows, chunk_rows=0)
    with pytest.raises(ValueError, match="`kl_weight` must have shape"):
        ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **{**rows, "kl_row_weight": kl_weight[1:]}, chunk_rows=2)
    with pytest.raises(ValueError, match="`kl_weight` must have shape"):
        weighted_kl(*leaves, row_weight=kl_weight[1:], chunk_rows=2, impl=impl)
    message = r"two \[N, H\] of one dtype and `weight` \[V, H\], but are .*float64 \[23, 32\]"
    with pytest.raises(ValueError, match=message):
        weighted_kl(leaves[0], leaves[1].double(), *leaves[2:], row_weight=kl_weight, chunk_rows=2)
