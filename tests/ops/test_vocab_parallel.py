"""A vocabulary split over ranks gives what one rank gives: losses, gradients, one collective of 6 or 7 floats per
row."""

import pytest
import torch
import torch.distributed as dist

from megatron_alum import ops
from megatron_alum.reference import rows as reference
from tests.helpers.distributed import run_ranks
from tests.helpers.pairs import pairs
from tests.ops import oracle, tolerances

ROWS, COLUMNS, VALID = 9, 1024, 900  # at 4 ranks the last shard (256 columns) holds 132 valid ones


def losses_on_rank(rank, world_size, case, impl, device):
    """On a GPU all ranks share it, and gloo carries the records: NCCL needs a GPU for each."""
    clean, adv, labels, valid = (x.to(device) if isinstance(x, torch.Tensor) else x for x in case)
    width = clean.shape[1] // world_size
    mine = slice(rank * width, (rank + 1) * width)
    a, b = (x[:, mine].clone().requires_grad_() for x in (clean, adv))
    gathered = []
    original = dist.all_gather_into_tensor

    def counting(output, tensor, **options):
        gathered.append(list(tensor.shape))
        return original(output, tensor, **options)

    dist.all_gather_into_tensor = counting
    try:
        options = {"valid_vocab_size": valid, "group": dist.group.WORLD, "impl": impl}
        mlm, kl = ops.mlm_symmetric_kl(a, b, labels, **options)
        full = ops.symmetric_kl(a.detach(), b.detach(), detach_targets=False, **options)
        one_sided = ops.kl_divergence(a.detach(), b.detach(), **options)
        before = len(gathered)
        (mlm.sum() + 2.0 * kl.sum()).backward()
        assert len(gathered) == before, "the backward must not communicate"
    finally:
        dist.all_gather_into_tensor = original
    return *(x.detach().cpu() for x in (mlm, kl, full, one_sided, a.grad, b.grad)), gathered


def on_one_rank(case, impl):
    clean, adv, labels, valid = case
    a, b = clean.clone().requires_grad_(), adv.clone().requires_grad_()
    mlm, kl = ops.mlm_symmetric_kl(a, b, labels, valid_vocab_size=valid, impl=impl)
    (mlm.sum() + 2.0 * kl.sum()).backward()
    return mlm.detach(), kl.detach(), ops.kl_divergence(clean, adv, valid_vocab_size=valid, impl=impl), a.grad, b.grad


@pytest.mark.parametrize(("difference", "world_size"), [(1e-6, 4), (1e-3, 2), (2.0, 4)])
def test_equals_one_rank(impl, device, world_size, difference):
    clean, adv = oracle.logits(ROWS, COLUMNS, difference=difference, shift=0.5)
    labels = torch.tensor([0, 899, 300, -100, 17, 512, 256, 255, 700])
    case = clean, adv, labels, VALID
    mlm, _, _, to_clean, to_adv = on_one_rank(case, impl)
    ranks = run_ranks(world_size, losses_on_rank, case, impl, str(device))
    exact = oracle.full_kl(clean[:, :VALID].double(), adv[:, :VALID].double()).where(labels != -100, 0.0)
    exact_one_sided = oracle.one_sided_kl(clean[:, :VALID].double(), adv[:, :VALID].double())
    for result in ranks:
        assert [shape for shape in result[6]] == [[ROWS, 7], [ROWS, 6], [ROWS, 6]]
        assert oracle.worst_row(result[0], mlm) <= tolerances.MLM
        assert oracle.worst_row(result[1], exact) <= tolerances.FLOAT32
        assert oracle.worst_row(result[2].where(labels != -100, 0.0), exact) <= tolerances.FLOAT32
        limit = tolerances.FLOAT32 if difference < 1 else tolerances.ONE_SIDED_LARGE
        assert oracle.worst_row(result[3], exact_one_sided) <= limit
        assert torch.equal(result[1], ranks[0][1]), "all ranks hold the same losses, bit for bit"
    assert oracle.worst_row(torch.cat([r[4] for r in ranks], dim=1), to_clean) <= tolerances.FLOAT32
    assert oracle.worst_row(torch.cat([r[5] for r in ranks], dim=1), to_adv) <= tolerances.FLOAT32


def test_a_shard_of_padding_only_adds_nothing(impl, device):
    """At 4 ranks and 512 valid of 1024 columns, two ranks hold none."""
    clean, adv = oracle.logits(ROWS, COLUMNS, difference=0.1)
    case = clean, adv, torch.arange(ROWS), 512
    expected = on_one_rank(case, impl)
    for rank, result in enumerate(run_ranks(4, losses_on_rank, case, impl, str(device))):
        assert oracle.worst_row(result[1], expected[1]) <= tolerances.FLOAT32
        assert result[4].any() == result[5].any() == (rank < 2)


@pytest.mark.parametrize("shards", [2, 3, 7])
@pytest.mark.parametrize("one_sided", [False, True])
def test_merge_is_exact_in_any_order(device, impl, shards, one_sided):
    """The merge alone, on records whose centres and masses lie far apart; no processes needed."""
    clean, adv = (x.to(device) for x in oracle.logits(6, 840, difference=1e-4, scale=4.0))
    adv[3:] += torch.linspace(0, 30, 840, device=device)
    options = reference.RowOptions(0, 840 // shards, one_sided)
    records = torch.stack(
        [
            reference.row_statistics(a, b, None, options)
            for a, b in zip(clean.chunk(shards, 1), adv.chunk(shards, 1), strict=True)
        ]
    )
    whole = reference.row_statistics(clean.double(), adv.double(), None, reference.RowOptions(0, 840, one_sided))
    for order in (torch.arange(shards), torch.arange(shards).flip(0)):
        if impl == "reference":
            merged = reference.merge_statistics(records[order], one_sided)
        else:
            merged = torch.ops.megatron_alum.merge_statistics(records[order], one_sided)
        assert oracle.worst_row(merged[:, 5], whole[:, 5]) <= 2 * tolerances.FLOAT32
        lse = merged[:, 0] + merged[:, 1].log()
        assert torch.allclose(lse.double(), whole[:, 0] + whole[:, 1].log(), rtol=1e-6)
        level = merged[:, 2] + merged[:, 3]  # lse(b) - log Z, however it is split
        mass = merged[:, 1].log()
        assert torch.allclose(
            (level + mass).double(), whole[:, 2] + whole[:, 3] + whole[:, 1].log(), rtol=1e-6, atol=1e-5
        )


@pytest.mark.parametrize(*pairs(scale=[30.0, 300.0, 1e4], shards=[2, 4, 8], one_sided=[False, True]))
def test_clean_and_adversarial_mass_in_different_shards(device, impl, scale, one_sided, shards):
    clean, adv = (x.to(device) for x in oracle.far_apart(7, 1024, scale=scale))
    pieces = zip(clean.chunk(shards, 1), adv.chunk(shards, 1), strict=True)
    options = reference.RowOptions(0, 1024 // shards, one_sided)
    records = torch.stack([reference.row_statistics(a, b, None, options) for a, b in pieces])
    merge = reference.merge_statistics if impl == "reference" else torch.ops.megatron_alum.merge_statistics
    truth = (oracle.one_sided_kl if one_sided else oracle.full_kl)(clean.double(), adv.double())
    tolerances.check_far_apart(merge(records, one_sided)[:, 5], truth, clean)


@pytest.mark.parametrize("shape", [(2, 5), (0, 5, 6), (2, 5, 5), (2, 5, 8)], ids=str)
def test_records_of_another_shape_are_not_merged(device, kernel_only, shape):
    with pytest.raises(ValueError, match=r"`records` must be float32 \[R, N, 6 or 7\] with R > 0, but is Float \["):
        torch.ops.megatron_alum.merge_statistics(torch.zeros(shape, device=device), False)


def test_records_of_another_type_are_not_merged(device, kernel_only):
    with pytest.raises(ValueError, match=r"`records` must be float32 .* but is Double"):
        torch.ops.megatron_alum.merge_statistics(torch.zeros(2, 5, 6, device=device, dtype=torch.float64), False)
