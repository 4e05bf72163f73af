"""The real CUDA kernels, run on a CPU by tests/ops/simt: every phase, form and launch plan against float64, in new
memory and over the logits, with warps and blocks in either order; and broken on purpose, which must be noticed."""

import itertools
import re

import pytest
import torch

from megatron_alum import ops
from megatron_alum.reference import rows as reference
from tests.helpers.pairs import pairs
from tests.ops import oracle, simt, tolerances

ELEMENTS = [torch.float32, torch.bfloat16, torch.float16]
KL = {torch.float32: tolerances.FLOAT32, torch.bfloat16: 1e-4, torch.float16: 1e-4}
# Relative to the row; of two ranks and roundings to 16 bits. float16 gradients below 6e-5 are subnormal numbers.
GRADIENT = {torch.float32: tolerances.FLOAT32, torch.bfloat16: 5e-3, torch.float16: 5e-3}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return simt.Executor.build(tmp_path_factory.mktemp("simt"))


@pytest.fixture(autouse=True)
def usual_settings(request):
    if "kernels" in request.fixturenames:
        request.getfixturevalue("kernels").settings()


ASSEMBLY = {
    "ex2.approx.ftz.f32 %0, %1;": "run by the executor (approximate_exp2 in simt.h)",
    "": "no instruction: hides a value from the compiler",
}


STATEMENT = r"\b(?:asm|__asm__)\b(?:\s*(?:volatile|__volatile__))?\s*\(\s*((?:\"[^\"]*\"\s*)*)"


def test_the_executor_runs_every_instruction_written_by_hand(tmp_path):
    """All inline assembly of csrc is in the table above, and the executor refuses to compile any other."""
    for suffix in ("*.cu", "*.cuh", "*.h", "*.cpp"):
        for path in (simt.ROOT / "csrc").rglob(suffix):
            text = re.sub(r"//.*", "", path.read_text())
            statements = re.findall(STATEMENT, text)
            assert len(statements) == len(re.findall(r"\b_*asm_*\b", text)), f"{path.name} has assembly of another form"
            for statement in statements:
                assert "".join(re.findall(r'"([^"]*)"', statement)) in ASSEMBLY, f"{path.name}: {statement}"
    source = tmp_path / "other.cpp"
    for text, known in (("ex2.approx.ftz.f32 %0, %1;", True), ("ex2.approx.f32 %0, %1;", False)):
        source.write_text(
            f'#include "simt.h"\nfloat f(float x) {{ float y; asm("{text}" : "=f"(y) : "f"(x)); return y; }}\n'
        )
        assert simt.compiles(source) == known


def aligned(x):
    """A copy whose memory begins at a multiple of 16 bytes, as torch's own allocator gives it."""
    memory = torch.empty(x.numel() + 16, dtype=x.dtype)
    offset = (-memory.data_ptr() % 16) // x.element_size()
    return memory[offset : offset + x.numel()].view(x.shape).copy_(x)


def run_rows(kernels, clean, adv, labels=None, *, valid, phase=simt.FUSED, in_place=False, weights=None, **options):
    """(records, gradients to clean and adv) of the weighted losses; adv None = the MLM loss alone.

    Phase GRADIENTS runs the statistics first. Options: one_sided, detach, need_clean.
    """
    rows, columns = clean.shape
    clean, adv = aligned(clean), None if adv is None else aligned(adv)
    records = torch.full((rows, 6 + (labels is not None)), float("nan"))
    mlm_weight, kl_weight = weights or (torch.full((rows,), 0.5), torch.linspace(0.5, 2.0, rows))
    grads = [None if x is None else x if in_place else aligned(torch.full_like(x, 7.0)) for x in (clean, adv)]
    if not options.get("need_clean", True):
        grads[0] = None
    at = [None if x is None else x.data_ptr() for x in (clean, adv, *grads)]
    task = simt.RowTask(at[0], at[0] if adv is None else at[1], columns, columns)
    task.labels = None if labels is None else labels.data_ptr()
    task.records, task.kl_weight = records.data_ptr(), kl_weight.data_ptr()
    task.mlm_weight = None if labels is None else mlm_weight.data_ptr()
    task.clean_grad, task.adv_grad = at[2:]
    task.clean_grad_stride = task.adv_grad_stride = task.columns = columns
    task.rows, task.valid_columns, task.record_width = rows, valid, records.shape[1]
    task.element = ELEMENTS.index(clean.dtype)
    task.one_sided, task.detach_targets = options.get("one_sided", False), options.get("detach", True)
    for step in (simt.STATISTICS, simt.GRADIENTS) if phase == simt.GRADIENTS else (phase,):
        kernels.rows(task, step)
    return records, *grads


def exactly(clean, adv, labels, valid, one_sided=False, detach=True):
    """(divergence, MLM loss, gradients to clean and adv of the weighted losses) in float64."""
    rows = clean.shape[0]
    a, b = (x[:, :valid].double().requires_grad_() for x in (clean, clean if adv is None else adv))
    mlm_weight, kl_weight = torch.full((rows,), 0.5).double(), torch.linspace(0.5, 2.0, rows).double()
    plain = oracle.one_sided_kl if one_sided else oracle.detached_kl if detach else oracle.full_kl
    kl = plain(a.detach() if one_sided and detach else a, b)
    loss = (kl * kl_weight * (0.0 if adv is None else 1.0)).where(labels != -100, 0.0).sum()
    mlm = torch.nn.functional.cross_entropy(a, labels, reduction="none", ignore_index=-100)
    grads = torch.autograd.grad(loss + (mlm * mlm_weight).sum(), (a, b), materialize_grads=True, allow_unused=True)
    return kl.detach(), mlm.detach(), *grads


def check_rows(found, exact, labels, valid, dtype):
    records, *grads = found
    kept = labels != -100
    assert oracle.worst_row(records[:, 5], exact[0]) <= KL[dtype]
    mlm = records[:, 0] + records[:, 1].log() - records[:, 6]
    assert oracle.worst_row(mlm[kept], exact[1][kept]) <= tolerances.MLM
    for mine, truth in zip(grads, exact[2:], strict=True):
        if mine is None:
            continue
        assert not mine[:, valid:].any() and not mine[~kept].any()
        mine = mine[:, :valid].double()
        if dtype == torch.float16:
            mine = torch.where((mine - truth).abs() <= tolerances.SUBNORMAL_FLOAT16, truth, mine)
        assert oracle.worst_row(mine[kept], truth[kept]) <= GRADIENT[dtype]


FORMS = list(itertools.product([False, True], [True, False]))


@pytest.mark.parametrize(*pairs(columns=[5, 1003, 1024, 2056], dtype=ELEMENTS, form=FORMS), ids=str)
def test_every_form_against_float64(kernels, columns, dtype, form):
    """Rows that are not aligned and rows that are, with single columns after the last pack, in one pass and in two."""
    one_sided, detach = form
    for difference, shift in ((0.1, 0.0), (2.0, 3.0)):
        clean, adv = (x.to(dtype) for x in oracle.logits(3, columns, difference=difference, shift=shift))
        valid = columns - (columns > 1000) * 5
        clean[:, valid:] = adv[:, valid:] = torch.nan
        labels = torch.tensor([valid - 1, -100, 2])
        exact = exactly(clean, adv, labels, valid, one_sided, detach)
        call = {"valid": valid, "one_sided": one_sided, "detach": detach}
        found = [
            run_rows(kernels, clean, adv, labels, phase=phase, in_place=in_place, **call)
            for phase in (simt.FUSED, simt.GRADIENTS)
            for in_place in (False, True)
        ]
        check_rows(found[0], exact, labels, valid, dtype)
        check_rows(found[2], exact, labels, valid, dtype)
        for fresh, over in (found[:2], found[2:]):
            assert all(torch.equal(x, y) for x, y in zip(fresh, over, strict=True))
        assert torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize(*pairs(difference=[1e-6, 1e-5, 1e-3, 1e-1, 2.0], shift=[0.0, -40.0], one_sided=[False, True]))
def test_nearly_equal_logits_keep_their_digits(kernels, one_sided, difference, shift):
    clean, adv = oracle.logits(3, 1000, difference=difference, shift=shift)
    labels = torch.tensor([1, 2, 3])
    found = run_rows(kernels, clean, adv, valid=1000, one_sided=one_sided)
    exact = exactly(clean, adv, labels, 1000, one_sided)
    tolerance = tolerances.FLOAT32 if not one_sided or difference < 1 else tolerances.ONE_SIDED_LARGE
    assert oracle.worst_row(found[0][:, 5], exact[0]) <= tolerance
    weighted = torch.linspace(0.5, 2.0, 3).double()[:, None]
    to_adv = (adv.double().softmax(1) - clean.double().softmax(1)) * weighted
    assert oracle.worst_row(found[2], to_adv) <= tolerances.FLOAT32


LARGEST = torch.finfo(torch.float32).max
SIZES = [-torch.inf, -LARGEST, -1e30, -1e9, 1e9, 1e30, 1.5e38]
SIDES = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    *pairs(size=SIZES, sides=SIDES, dtype=ELEMENTS, one_sided=[False, True], columns=[11, 1024]), ids=str
)
def test_logits_of_any_size(kernels, size, sides, dtype, one_sided, columns):
    """In memory and in registers; a divergence that no float32 holds is not a number, the gradients are right."""
    pair = [x.to(dtype) for x in oracle.logits(2, columns, difference=0.1)]
    largest = torch.finfo(dtype).max
    for logits, there in zip(pair, sides, strict=True):
        if there:
            logits[:, 4] = size if size == -torch.inf else max(min(size, largest), -largest)
    kl, _, to_adv = oracle.any_size(*(x.double() for x in pair), one_sided, True)
    records, _, found = run_rows(kernels, *pair, valid=columns, one_sided=one_sided)
    held = kl.abs() < LARGEST
    assert torch.equal(records[:, 5].isnan(), ~held)
    error = oracle.worst_row(records[:, 5].nan_to_num(), kl.where(held, 0.0))
    assert error <= (2e-5 if dtype == torch.float32 else 1e-4)
    assert oracle.worst_row(found, to_adv * torch.linspace(0.5, 2.0, 2).double()[:, None]) <= max(GRADIENT[dtype], 1e-5)


PLANS = {  # (dtype, columns, intermediate code) -> (threads of a block, blocks of a row)
    (torch.float32, 30592, 90): (256, 8),
    (torch.bfloat16, 30592, 90): (256, 4),
    (torch.float16, 30592, 90): (256, 4),
    (torch.bfloat16, 30592, 80): (384, 1),
    (torch.float32, 15296, 80): (384, 1),
    (torch.float32, 30592, 80): (256, 1),  # from memory
    (torch.float32, 65536, 90): (384, 4),
    (torch.bfloat16, 131072, 100): (384, 4),
}


@pytest.mark.parametrize(("dtype", "columns", "code"), PLANS, ids=str)
def test_every_plan_against_float64(kernels, dtype, columns, code):
    """Wide rows, spread over the blocks of a cluster or kept by one: in two orders of events, over the logits too."""
    clean, adv = (x.to(dtype) for x in oracle.logits(2, columns, difference=0.1))
    valid = columns - 70
    labels = torch.tensor([valid - 1, 3816])
    exact = exactly(clean, adv, labels, valid)
    found = []
    for schedule, in_place in ((0, False), (7, True)):
        kernels.settings(intermediate_code=code, schedule=schedule)
        found.append(run_rows(kernels, clean, adv, labels, valid=valid, in_place=in_place))
    threads, blocks = PLANS[dtype, columns, code]
    assert kernels.launches[-1] == (2 * blocks, threads, blocks)
    check_rows(found[0], exact, labels, valid, dtype)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_every_instantiation_of_the_row_role(kernels):
    """Each phase, form and element, in memory, in the registers of a small block and of a large one."""
    for dtype in ELEMENTS:
        for columns, code in ((5, 90), (64, 90), (8448 if dtype.itemsize == 2 else 4352, 80)):
            kernels.settings(intermediate_code=code)
            clean, adv = (x.to(dtype) for x in oracle.logits(2, columns, difference=0.1))
            labels = torch.tensor([columns - 1, 2])
            for phase in (simt.FUSED, simt.GRADIENTS):
                for one_sided, detach in FORMS:
                    found = run_rows(
                        kernels, clean, adv, labels, valid=columns, phase=phase, one_sided=one_sided, detach=detach
                    )
                    exact = exactly(clean, adv, labels, columns, one_sided, detach)
                    check_rows(found, exact, labels, columns, dtype)
                records, to_clean, _ = run_rows(kernels, clean, None, labels, valid=columns, phase=phase)
                exact = exactly(clean, None, labels, columns)
                check_rows((records, to_clean, None), exact, labels, columns, dtype)
    missed = [name for name, launched in kernels.kernels().items() if "RowRole" in name and not launched]
    assert not missed and len(kernels.kernels()) > 50


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("columns", [1003, 30592])
def test_the_mlm_loss_alone(kernels, columns, dtype):
    clean = oracle.logits(3, columns, difference=0.1)[0].to(dtype)
    clean[0, 3] = -torch.inf
    labels = torch.tensor([7, -100, columns - 4])
    exact = exactly(clean, None, labels, columns - 3)
    for phase in (simt.FUSED, simt.GRADIENTS):
        records, to_clean, _ = run_rows(kernels, clean, None, labels, valid=columns - 3, phase=phase)
        kept, mlm = labels != -100, records[:, 0] + records[:, 1].log() - records[:, 6]
        assert oracle.worst_row(mlm[kept], exact[1][kept]) <= tolerances.MLM and not records[:, 5].any()
        mine, truth = to_clean[:, : columns - 3].double(), exact[2]
        if dtype == torch.float16:
            mine = torch.where((mine - truth).abs() <= tolerances.SUBNORMAL_FLOAT16, truth, mine)
        assert oracle.worst_row(mine[kept], truth[kept]) <= tolerances.GRADIENT[dtype]
        assert not to_clean[:, columns - 3 :].any() and not to_clean[1].any()


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize(("one_sided", "detach"), FORMS)
def test_identical_logits_give_exactly_zero(kernels, one_sided, detach, dtype):
    clean = oracle.logits(2, 8192, difference=0.0)[0].to(dtype)
    records, *grads = run_rows(kernels, clean, clean.clone(), valid=8001, one_sided=one_sided, detach=detach)
    assert not records[:, 3:].any() and not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_shards_merged_by_the_small_kernel(kernels, dtype, one_sided):
    clean, adv = (x.to(dtype) for x in oracle.logits(5, 2000, difference=0.1))
    shards = [(slice(0, 800), 800), (slice(800, 1600), 800), (slice(1600, 2000), 350)]
    parts = [
        run_rows(kernels, clean[:, s], adv[:, s], valid=v, phase=simt.STATISTICS, one_sided=one_sided)[0]
        for s, v in shards
    ]
    records, merged = torch.stack(parts), torch.full((5, 6), float("nan"))
    kernels.merge(records.data_ptr(), merged.data_ptr(), 3, 5, 6, one_sided)
    whole = (x[:, :1950].double() for x in (clean, adv))
    assert oracle.worst_row(merged[:, 5], (oracle.one_sided_kl if one_sided else oracle.full_kl)(*whole)) <= KL[dtype]
    assert oracle.worst_row(merged, reference.merge_statistics(records.double(), one_sided)) <= KL[dtype]


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_the_factor_is_read_by_the_kernel(kernels, dtype):
    values = torch.randn(5000).to(dtype)
    for factor in (1.0, 0.25, 3.0):
        found, number = values.clone(), torch.tensor(factor)
        kernels.scale(found.data_ptr(), ELEMENTS.index(dtype), 5000, number.data_ptr())
        assert torch.equal(found, values if factor == 1.0 else values * number.to(dtype))


def test_rows_of_weight_zero_are_not_looked_at(kernels):
    clean, adv = oracle.logits(3, 1024, difference=0.1)
    adv[1, 7] = clean[2, 9] = torch.nan
    labels = torch.tensor([1, 2, -100])
    weights = torch.full((3,), 0.5), torch.tensor([1.0, 0.0, 1.0])
    for phase in (simt.FUSED, simt.GRADIENTS):
        records, to_clean, to_adv = run_rows(kernels, clean, adv, labels, valid=1000, phase=phase, weights=weights)
        assert records[1:, 5].isnan().all() and records[1, 1].isfinite() and torch.isfinite(to_clean).all()
        assert not to_adv[1:].any() and not to_clean[2].any() and to_clean[1].any()


@pytest.mark.parametrize("projection", ["clamp", "normalize", "normalized_gradient"])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_token_role_is_bit_equal_to_the_reference(kernels, projection, dtype):
    tokens, channels = (4, 3), 70
    x, delta, grad = (s * torch.randn(*tokens, channels).to(dtype) for s in (1.0, 1e-3, 1.0))
    grad[1, 1, 3] = torch.inf
    mask = torch.rand(tokens) < 0.7
    key = ops.NoiseKey(3, 4, torch.arange(12) % 3 + 2**33, torch.arange(12) // 3, 1e-3)
    for start in (delta, key):
        out, moved, sums = torch.empty_like(x), torch.empty(*tokens, channels), torch.empty(12, 6)
        task = simt.TokenTask(
            x.data_ptr(), start.data_ptr() if start is delta else None, grad.data_ptr(), mask.data_ptr()
        )
        task.x_adv, task.delta_out, task.token_sums = out.data_ptr(), moved.data_ptr(), sums.data_ptr()
        task.sample_index, task.position = key.sample_index.data_ptr(), key.position.data_ptr()
        task.tokens, task.channels, task.seed, task.iteration, task.noise_std = 12, channels, 3, 4, 1e-3
        task.step_size = task.epsilon = 1e-3
        task.projection = ["clamp", "normalize", "normalized_gradient"].index(projection)
        task.x_element = task.delta_element = task.grad_element = task.out_element = ELEMENTS.index(dtype)
        kernels.tokens(task)
        call = {"step_size": 1e-3, "epsilon": 1e-3, "projection": projection, "mask": mask, "impl": "reference"}
        expected = ops.perturb_embeddings(x, start, grad, **call)
        assert torch.equal(out, expected[0]) and torch.equal(moved, expected[1])
        torch.testing.assert_close(sums.sum(0), expected[2].float(), rtol=tolerances.STATISTICS, atol=0)


MUTATIONS = {
    "a shuffle step left out": (
        "alum_kernel.cuh",
        "for (int step = 16; step > 0; step /= 2) x += ",
        "for (int step = 8; step > 0; step /= 2) x += ",
    ),
    "the barrier before the merge left out": (
        "row_team.cuh",
        "    sync_row();\n    if (warp == 0) {",
        "    if (warp == 0) {",
    ),
    "the barrier after the merge left out": (
        "row_team.cuh",
        "    __syncthreads();\n    return shared->level;",
        "    return shared->level;",
    ),
    "the barrier before the report left out": (
        "row_team.cuh",
        "    sync_row();\n    DivergenceSums total",
        "    DivergenceSums total",
    ),
    "a barrier that some never reach": (
        "row_team.cuh",
        "    sync_row();\n    DivergenceSums total",
        "    if (warp == 0) sync_row();\n    DivergenceSums total",
    ),
    "a short last pack read whole": (
        "row_team.cuh",
        "packs = columns / count,",
        "packs = (columns + count - 1) / count,",
    ),
    "a wrong rank in the cluster": ("row_team.cuh", "map_shared_rank(mine, block)", "map_shared_rank(mine, block ^ 1)"),
    "the label's logit read after it is overwritten": (
        "row_kernel.cu",
        "narrow(&part.clean_grad[label.column], gradients.clean - task",
        "narrow(&part.clean_grad[label.column], gradients.clean + widen(part.clean[label.column]) - label.clean - task",
    ),
}


def broken(kernels):
    """Whether a broken build fails the checks of the tests above: here rows of a cluster."""
    clean, adv = (x.bfloat16() for x in oracle.logits(2, 30592, difference=0.1))
    valid, labels = 30522, torch.tensor([30521, 3816])
    exact = exactly(clean, adv, labels, valid)
    for schedule, in_place in ((0, True), (7, False)):
        kernels.settings(schedule=schedule)
        try:
            found = run_rows(kernels, clean, adv, labels, valid=valid, in_place=in_place)
            check_rows(found, exact, labels, valid, torch.bfloat16)
        except (AssertionError, simt.DidNotFinish):
            return True
    return False


def test_the_kernel_as_it_is_is_not_broken(kernels):
    assert not broken(kernels)


# A broken build holds the fused phase of one element alone: it compiles in seconds.
ONE_ELEMENT = (
    "  if (task.element == kFloat16) return launch_element<Float16>(task, phase, stream);\n"
    "  return launch_element<float>(task, phase, stream);\n"
)
OTHER_PHASES = (
    "  if (phase == kStatistics) return launch_phase<Element, kStatistics>(task, detach, plan, stream);\n"
    "  if (phase == kGradients) return launch_phase<Element, kGradients>(task, detach, plan, stream);\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_is_noticed(name, tmp_path):
    small = ("row_kernel.cu", ONE_ELEMENT, "  return 1;\n"), ("row_kernel.cu", OTHER_PHASES, "")
    assert broken(simt.Executor.build(tmp_path, (*small, MUTATIONS[name])))
