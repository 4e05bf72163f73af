"""mlm_symmetric_kl_from_hidden equals the plain head and losses for any chunk, and holds no more logits than a
chunk."""

import pytest
import torch

from megatron_alum import ops
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
    """Largest tensor the head makes, seen through the torch dispatcher: chunk x V, the weight, or N x H."""
    from torch.utils._python_dispatch import TorchDispatchMode

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
    assert 0 < seen.rows <= 4


def test_only_needed_gradients(device, impl):
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    clean, adv, weight, bias = leaves
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "chunk_rows": 8, "impl": impl}
    sum(ops.mlm_symmetric_kl_from_hidden(clean.detach(), adv, weight.detach(), None, labels, **rows)).backward()
    assert adv.grad is not None and clean.grad is None and weight.grad is None
    with torch.no_grad():
        assert not ops.mlm_symmetric_kl_from_hidden(clean, adv, weight, bias, labels, **rows)[0].requires_grad


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
    total = sum(ops.mlm_symmetric_kl_from_hidden(clean, adv, *leaves[2:], labels, **rows))
    total.backward()
    assert total == 0 and not leaves[2].grad.any()


def test_wrong_shapes_are_refused(device, impl):
    leaves, labels, (mlm_weight, kl_weight) = inputs(device)
    rows = {"mlm_row_weight": mlm_weight, "kl_row_weight": kl_weight, "impl": impl}
    with pytest.raises(ValueError, match="`chunk_rows` must be >= 1, but is 0"):
        ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **rows, chunk_rows=0)
    with pytest.raises(ValueError, match="`kl_row_weight` must have shape"):
        ops.mlm_symmetric_kl_from_hidden(*leaves, labels, **{**rows, "kl_row_weight": kl_weight[1:]}, chunk_rows=2)
