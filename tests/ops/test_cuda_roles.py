"""The CUDA kernel without a GPU: its roles run on the CPU by threads with the kernel's barriers, and nvcc compiles it
without spills."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from megatron_alum import ops
from tests.ops import oracle, tolerances

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
ELEMENTS = [torch.float32, torch.bfloat16, torch.float16]
POINTER, INT64, INT, FLOAT, BOOL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_bool


class RowTask(ctypes.Structure):
    """csrc/ops/rows.h, field for field."""

    _fields_ = (
        [(name, POINTER) for name in ("clean", "adv")]
        + [(name, INT64) for name in ("clean_stride", "adv_stride")]
        + [(name, POINTER) for name in ("labels", "records", "mlm_weight", "kl_weight", "clean_grad", "adv_grad")]
        + [(name, INT64) for name in ("clean_grad_stride", "adv_grad_stride", "rows", "columns", "valid_columns")]
        + [
            ("first_column", INT64),
            ("record_width", INT),
            ("element", INT),
            ("one_sided", BOOL),
            ("detach_targets", BOOL),
        ]
    )


class TokenTask(ctypes.Structure):
    """csrc/ops/tokens.h, field for field."""

    _fields_ = (
        [(name, POINTER) for name in ("x", "delta", "grad", "mask", "x_adv", "delta_out", "token_sums")]
        + [(name, POINTER) for name in ("sample_index", "position")]
        + [(name, INT64) for name in ("tokens", "channels")]
        + [("seed", ctypes.c_uint32), ("iteration", ctypes.c_uint32), ("noise_std", FLOAT)]
        + [("step_size", FLOAT), ("epsilon", FLOAT), ("projection", INT)]
        + [(name, INT) for name in ("x_element", "delta_element", "grad_element", "out_element")]
    )


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    library = tmp_path_factory.mktemp("emulation") / "emulation.so"
    flags = [
        "-std=c++20",
        "-O2",
        "-pthread",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-Wno-unknown-pragmas",
        f"-I{CSRC}",
    ]
    command = ["g++", *flags, str(Path(__file__).with_name("emulation.cpp")), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(library))


def emulate_rows(
    emulation, clean, adv, *, labels, valid, phase=2, parts=1, threads=4, cached=True, in_place=False, **options
):
    """(records, gradients to clean and adv) of weights 1 on the divergence and, with labels, 0.5 on the MLM loss.

    Options: one_sided, detach. In place the gradients are clean and adv themselves; phase 2 is the fused one, phase 1
    takes the records of a phase 0 before it.
    """
    rows, columns = clean.shape
    records = torch.full((rows, 6 + (labels is not None)), float("nan"))
    kl_weight, mlm_weight = torch.ones(rows), torch.full((rows,), 0.5)
    grads = (clean, adv) if in_place else (torch.full_like(clean, 7.0), torch.full_like(adv, 7.0))
    task = RowTask(clean.data_ptr(), adv.data_ptr(), clean.stride(0), adv.stride(0))
    task.labels = labels.data_ptr() if labels is not None else None
    task.records, task.kl_weight = records.data_ptr(), kl_weight.data_ptr()
    task.mlm_weight = mlm_weight.data_ptr() if labels is not None else None
    task.clean_grad, task.adv_grad = grads[0].data_ptr(), grads[1].data_ptr()
    task.clean_grad_stride = task.adv_grad_stride = task.columns = columns
    task.rows, task.valid_columns, task.record_width = rows, valid, records.shape[1]
    task.element = ELEMENTS.index(clean.dtype)
    task.one_sided, task.detach_targets = options.get("one_sided", False), options.get("detach", True)
    for step in (0, 1) if phase == 1 else (phase,):
        emulation.emulate_rows(ctypes.byref(task), step, parts, threads, cached)
    return records, *grads


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (3, 1003), (2, 4096)], ids=str)
def test_row_role(emulation, shape, cached, parts, dtype):
    for difference, shift in ((1e-3, 0.0), (1e-5, 5.0), (2.0, 0.0)):
        clean, adv = (x.to(dtype) for x in oracle.logits(*shape, difference=difference, shift=shift))
        valid = shape[1] - (shape[1] > 1000) * 3
        labels = torch.tensor([valid - 1, -100, 2])[: shape[0]]
        call = {"labels": labels, "valid": valid, "parts": parts, "cached": cached}
        records, to_clean, to_adv = emulate_rows(emulation, clean, adv, **call)
        kept = labels != -100
        truth = oracle.full_kl(clean[:, :valid].double(), adv[:, :valid].double())
        # Four threads add all columns here, 128 and more on a GPU: rounding of 1024 additions in a row. bfloat16 and
        # float16 take shorter series: 2^-22 / 2^-6 of the differences.
        assert oracle.worst_row(records[:, 5], truth) <= (1e-5 if dtype == torch.float32 else 1e-4)
        p, q = clean[:, :valid].double().softmax(1), adv[:, :valid].double().softmax(1)
        one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), valid).double()
        expected = torch.where(kept[:, None], p - q + 0.5 * (p - one_hot), 0.0)
        assert ((to_clean[:, :valid] - expected)[kept].norm(dim=1) <= tolerances.GRADIENT[dtype] * 2).all()
        error = (to_adv[:, :valid] - (q - p)).double()[kept].norm(dim=1) / (q - p)[kept].norm(dim=1).clamp(min=1e-30)
        subnormal = 2**-25 * valid**0.5 / (q - p)[kept].norm(dim=1).clamp(min=1e-30) if dtype == torch.float16 else 0.0
        series = 1e-5 if dtype == torch.float32 else 1e-3  # few threads' sums and the shorter series, as above
        assert (error <= series + tolerances.GRADIENT[dtype] + subnormal).all()
        for grad in (to_clean, to_adv):
            assert not grad[:, valid:].any() and not grad[~kept].any()


@pytest.mark.parametrize("shift", [0.0, 5.0, -40.0])
@pytest.mark.parametrize("difference", [1e-6, 1e-5, 1e-3, 1e-1, 2.0])
@pytest.mark.parametrize("detach", [True, False])
def test_nearly_equal_logits_keep_their_digits(emulation, detach, difference, shift):
    """As on a GPU, where a thread adds some dozens of columns: the promise of the centred form in full."""
    clean, adv = oracle.logits(3, 1000, difference=difference, shift=shift)
    call = {"labels": None, "valid": 1000, "parts": 2, "threads": 16, "detach": detach}
    records, to_clean, to_adv = emulate_rows(emulation, clean, adv, **call)
    truth = oracle.differentiate(oracle.detached_kl if detach else oracle.full_kl, clean, adv, dtype=torch.float64)
    assert oracle.worst_row(records[:, 5], oracle.full_kl(clean.double(), adv.double())) <= tolerances.FLOAT32
    assert oracle.worst_row(to_clean, truth.to_clean) <= tolerances.FLOAT32
    assert oracle.worst_row(to_adv, truth.to_adv) <= tolerances.FLOAT32


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("phase", [1, 2])
def test_row_role_over_the_logits(emulation, phase, cached, parts, dtype):
    """Gradients in the logits' place are those in new memory, bit for bit: nobody reads what another has written."""
    clean, adv = (x.to(dtype) for x in oracle.logits(5, 1003, difference=0.1))
    call = {"labels": torch.tensor([0, 999, -100, 500, 251]), "valid": 1000, "parts": parts, "cached": cached}
    fresh = emulate_rows(emulation, clean, adv, **call, phase=phase)
    over = emulate_rows(emulation, clean.clone(), adv.clone(), **call, phase=phase, in_place=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(over, fresh, strict=True))


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("parts", [4, 8])
def test_rows_of_the_vocabulary(emulation, parts, dtype):
    """As test_wide_rows.py on a GPU: one pass, two, and either over the logits write the same bits in every part."""
    clean, adv = (x.to(dtype) for x in oracle.logits(5, 30592, difference=0.1))
    call = {"labels": torch.tensor([7, 3816, -100, 15261, 30521]), "valid": 30522, "parts": parts}
    expected = emulate_rows(emulation, clean, adv, **call)
    found = [emulate_rows(emulation, clean, adv, **call, phase=1)]
    for phase in (1, 2):
        found.append(emulate_rows(emulation, clean.clone(), adv.clone(), **call, phase=phase, in_place=True))
    for result in found:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(result, expected, strict=True))


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("one_sided", [False, True])
def test_identical_logits_give_exactly_zero(emulation, one_sided, parts, dtype):
    clean = oracle.logits(3, 1000, difference=0.0)[0].to(dtype)
    call = {"labels": None, "valid": 1000, "parts": parts, "one_sided": one_sided, "detach": False}
    records, *grads = emulate_rows(emulation, clean, clean.clone(), **call)
    assert not records[:, 5].any() and not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("one_sided", [False, True])
def test_row_role_with_full_gradients(emulation, one_sided):
    clean, adv = oracle.logits(4, 1000, difference=0.1)
    call = {"labels": None, "valid": 1000, "one_sided": one_sided, "detach": False}
    records, to_clean, to_adv = emulate_rows(emulation, clean, adv, **call)
    plainly = oracle.one_sided_kl if one_sided else oracle.full_kl
    truth = oracle.differentiate(plainly, clean, adv, dtype=torch.float64)
    for mine, exact in zip((records[:, 5], to_clean, to_adv), truth, strict=True):
        assert oracle.worst_row(mine, exact) <= 5 * tolerances.FLOAT32  # few threads' sums, as above


def test_row_role_far_apart_masked_and_bad_rows(emulation):
    clean, adv = oracle.logits(4, 1000, difference=1.0)
    adv[1].mul_(1e4)
    clean[2, 5:50] = adv[2, 5:50] = -torch.inf
    adv[3, 7] = torch.nan
    records, to_clean, _ = emulate_rows(emulation, clean, adv, labels=None, valid=1000)
    keep = torch.isfinite(clean[2])
    assert oracle.worst_row(records[1:2, 5], oracle.full_kl(clean[1:2].double(), adv[1:2].double())) <= 1e-5
    alone = oracle.full_kl(clean[2:3, keep].double(), adv[2:3, keep].double())
    assert oracle.worst_row(records[2:3, 5], alone) <= 1e-5 and not to_clean[2, 5:50].any()
    assert records[3, 5].isnan() and records[3, 1].isfinite()


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("parts", [1, 4, 8])
@pytest.mark.parametrize("scale", [30.0, 300.0, 1e4])
def test_row_role_with_mass_in_different_parts(emulation, scale, parts, one_sided):
    clean, adv = oracle.far_apart(7, 1000, scale=scale)
    call = {"labels": None, "valid": 1000, "parts": parts, "one_sided": one_sided}
    records, _, to_adv = emulate_rows(emulation, clean, adv, **call)
    truth = (oracle.one_sided_kl if one_sided else oracle.full_kl)(clean.double(), adv.double())
    tolerances.check_far_apart(records[:, 5], truth, clean)
    exact = adv.double().softmax(1) - clean.double().softmax(1)
    assert (to_adv - exact).abs().max() <= tolerances.FAR_APART * clean.abs().max()


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_row_role_reports_an_infinite_divergence(emulation, dtype, one_sided):
    clean, adv = (x.to(dtype) for x in oracle.logits(3, 1000, difference=0.5))
    adv[1, 77] = -torch.inf
    for parts in (1, 4):
        call = {"labels": None, "valid": 1000, "one_sided": one_sided, "parts": parts}
        assert emulate_rows(emulation, clean, adv, **call)[0][:, 5].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("projection", ["clamp", "normalize", "normalized_gradient"])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_token_role_is_bit_equal_to_the_reference(emulation, projection, dtype):
    tokens, channels = (4, 3), 70
    x, delta, grad = (s * torch.randn(*tokens, channels).to(dtype) for s in (1.0, 1e-3, 1.0))
    grad[1, 1, 3] = torch.inf
    mask = torch.rand(tokens) < 0.7
    key = ops.NoiseKey(3, 4, torch.arange(12) % 3 + 2**33, torch.arange(12) // 3, 1e-3)
    for start in (delta, key):
        out, moved, sums = torch.empty_like(x), torch.empty(*tokens, channels), torch.empty(12, 6)
        task = TokenTask(x.data_ptr(), start.data_ptr() if start is delta else None, grad.data_ptr(), mask.data_ptr())
        task.x_adv, task.delta_out, task.token_sums = out.data_ptr(), moved.data_ptr(), sums.data_ptr()
        task.sample_index, task.position = key.sample_index.data_ptr(), key.position.data_ptr()
        task.tokens, task.channels = 12, channels
        task.seed, task.iteration, task.noise_std = 3, 4, 1e-3
        task.step_size, task.epsilon, task.projection = (
            1e-3,
            1e-3,
            ["clamp", "normalize", "normalized_gradient"].index(projection),
        )
        task.x_element = task.delta_element = task.grad_element = task.out_element = ELEMENTS.index(dtype)
        emulation.emulate_tokens(ctypes.byref(task))
        call = {"step_size": 1e-3, "epsilon": 1e-3, "projection": projection, "mask": mask, "impl": "reference"}
        expected = ops.perturb_embeddings(x, start, grad, **call)
        assert torch.equal(out, expected[0]) and torch.equal(moved, expected[1])
        total = sums.sum(0)
        found = total[1] / total[0], (total[3] / total[4]).sqrt(), total[5], total[2].sqrt()
        for mine, theirs in zip(found, ops.perturbation_statistics(expected[2]), strict=True):
            assert mine.item() == pytest.approx(theirs.item(), rel=tolerances.STATISTICS)


@pytest.mark.parametrize("architecture", [80, 90, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", sorted((CSRC / "ops" / "cuda").glob("*.cu")), ids=lambda path: path.name)
def test_nvcc_compiles_without_warnings_or_spills(source, architecture, tmp_path):
    """nvcc alone: no torch headers. Prints registers a kernel, which the report of -Xptxas -v carries."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    flags = [
        "-std=c++17",
        "-O3",
        f"-I{CSRC}",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v,-warn-spills",
        "-gencode",
        target,
    ]
    command = [nvcc, *flags, "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-3000:]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    print(f"{source.name} sm_{architecture}: registers {registers}")
    assert registers and not any(spills)
