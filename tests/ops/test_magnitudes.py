"""Finite logits of any size, and columns masked by -infinity, give what float64 gives."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_alum import ops
from megatron_alum.ops import row_autograd
from megatron_alum.reference import rows as reference
from megatron_alum.reference.rows import RowOptions
from tests.helpers.pairs import pairs
from tests.ops import oracle, tolerances

V = 300
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MAGNITUDES = st.sampled_from(
    [-torch.inf, -3.4028234663852886e38, -1e30, -1e18, -1e9, -3e4, -200.0, 200.0, 3e4, 1e9, 1e30, 3.4028234663852886e38]
)
LOG_RATIO = 2.0**-23
"""of a logit's size: what float32 leaves of the log ratio h of two such logits, which the gradients multiply.
Without detached targets they hold E_P[h] and E_Q[h] too, as large as the divergence and known to so much of it; in the
symmetric case E_Q[h] is E_P[h] less the divergence, which has the precision of a value (tolerances.FLOAT32)."""
ONE_HOT = 1000.0
"""logits this far above the others leave one column, whose gradients are exact"""
PLACES = st.lists(st.integers(0, V - 1), min_size=1, max_size=V - 1, unique=True)


@pytest.mark.parametrize(*pairs(dtype=DTYPES, one_way=[False, True], detach=[True, False]), ids=str)
@settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sizes=st.tuples(MAGNITUDES, MAGNITUDES), places=PLACES, sides=st.sampled_from(["clean", "adv", "both"]))
def test_as_in_float64(device, impl, dtype, one_way, detach, sizes, places, sides):
    generator = torch.Generator().manual_seed(len(places))
    clean = 2 * torch.randn(3, V, generator=generator)
    adv = clean + 0.1 * torch.randn(3, V, generator=generator)
    largest = torch.finfo(dtype).max
    for logits, size, side in ((clean, sizes[0], "clean"), (adv, sizes[0 if len(places) % 2 else 1], "adv")):
        if sides in (side, "both"):
            logits[:2, places] = size if size == -torch.inf else max(min(size, largest), -largest)
    clean, adv = (x.to(device, dtype).requires_grad_() for x in (clean, adv))
    options = {"divergence": "one_way" if one_way else "symmetric", "detach_targets": detach, "impl": impl}
    rows = ops.row_losses(clean, adv, **options)
    grads = torch.autograd.grad(rows.kl.sum(), (clean, adv), allow_unused=True, materialize_grads=True)
    sums = ops.row_losses(clean, adv, kl_weight=torch.ones(3, device=device), **options)
    fused = torch.autograd.grad(sums.kl, (clean, adv), allow_unused=True, materialize_grads=True)
    kl, *exact = oracle.any_size(clean.detach().double(), adv.detach().double(), one_way, detach)
    held = kl.abs() < 1.7e38  # what float32 can hold, with a bit to spare
    assert rows.kl[~(kl.abs() < 3.5e38)].isnan().all()
    if impl == "reference":
        held &= kl.abs() < 1e38
    found, truth = rows.kl[held].double(), kl[held]
    scale = torch.cat((clean, adv), 1).detach().double().abs().nan_to_num(posinf=0.0).amax(1)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-4
    smallest = 1e-35 + 1e-6 * (scale[held] > 150) * one_way  # with two numbers of 150 and more not even that is left
    assert ((found - truth).abs() <= tolerance * truth.abs() + smallest).all()
    known = {"clean": LOG_RATIO, "adv": LOG_RATIO if one_way else tolerances.FLOAT32}
    for every in (grads, fused):
        for side, mine, theirs in zip(known, every, exact, strict=True):
            for row in held.nonzero()[:, 0]:
                x, y = mine[row].double(), theirs[row]
                if y.norm() < torch.finfo(dtype).max / 4:
                    bound = (
                        1e-5 if dtype == torch.float32 else 5e-3
                    ) * y.norm() + tolerances.SUBNORMAL_FLOAT16 * V**0.5
                    bound += LOG_RATIO * min(scale[row], ONE_HOT) + (0 if detach else known[side] * kl[row])
                    assert (x - y).norm() <= bound, (side, row)


@pytest.mark.parametrize(*pairs(dtype=DTYPES[:2], one_way=[False, True], side=["clean", "adv"], size=[1.5e38, 3e38]))
def test_up_to_the_largest_float32(device, impl, dtype, one_way, side, size):
    """Few columns, so that the probability of each counts in the divergence."""
    pair = [x.to(device, dtype) for x in oracle.logits(3, 7, difference=0.1)]
    pair[side == "adv"][:, 2] = size if side == "adv" else -size
    kl = ops.row_losses(*pair, divergence="one_way" if one_way else "symmetric", impl=impl).kl
    exact = oracle.any_size(*(x.double() for x in pair), one_way, True)[0]
    assert oracle.worst_row(kl, exact) <= (2e-5 if dtype == torch.float32 else 1e-4)


@pytest.mark.parametrize("one_way", [False, True])
@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.tuples(MAGNITUDES, MAGNITUDES),
    places=PLACES | st.sampled_from([list(range(n)) for n in (V // 3, V // 2, 2 * V // 3)]),
    sides=st.sampled_from(["clean", "adv", "both"]),
)
def test_shards_as_in_float64(device, impl, one_way, sizes, places, sides):
    """Records of three shards, merged, and their gradients.

    A shard masked by -infinity as a whole on one side alone has no distribution of its own there: such a row is not a
    number, or right.
    """
    generator = torch.Generator().manual_seed(len(places))
    clean = 2 * torch.randn(2, V, generator=generator)
    adv = clean + 0.1 * torch.randn(2, V, generator=generator)
    for logits, size, side in ((clean, sizes[0], "clean"), (adv, sizes[1], "adv")):
        if sides in (side, "both"):
            logits[:1, places] = size
    kl, *exact = oracle.any_size(clean.double(), adv.double(), one_way, True)
    shards = [
        [x.to(device).contiguous() for x in pair]
        for pair in zip(*(x.split(V // 3, 1) for x in (clean, adv)), strict=True)
    ]
    options = RowOptions(0, V // 3, one_way, True)
    records = torch.stack([row_autograd.local_statistics(*pair, None, options, impl) for pair in shards])
    if impl == "reference":
        merged = reference.merge_statistics(records, one_way)
    else:
        merged = torch.ops.megatron_alum.merge_statistics(records, one_way)
    found = merged[:, 5].double()
    assert found[~(kl.abs() < 3.5e38)].isnan().all()
    headless = torch.stack([(a == -torch.inf).all(1) != (b == -torch.inf).all(1) for a, b in shards]).any(0)
    held = (kl.abs() < 1e38) & ~(headless & found.isnan())
    smallest = 2.0**-46 + 1e-6 * one_way  # a shard's share is known to 2^-23 of it, and the divergence is its square
    assert ((found - kl).abs() <= 2e-5 * kl.abs() + smallest)[held].all()
    weight = torch.ones(2, device=device)
    call = [(*pair, merged, None, None, weight) for pair in shards]
    if impl == "reference":
        parts = [reference.row_gradients(*arguments, options) for arguments in call]
    else:
        parts = [torch.ops.megatron_alum.row_gradients(*x, *options, True, True)[1:] for x in call]
    for mine, theirs in zip((torch.cat(x, 1) for x in zip(*parts, strict=True)), exact, strict=True):
        errors, norms = (mine.double() - theirs).norm(dim=1), theirs.norm(dim=1)
        assert (errors <= 1e-5 * norms + LOG_RATIO * ONE_HOT)[held].all()
