"""What bench_ops.py compares: each op in the forms that a table lists, and how one of them is measured."""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_alum import ops

ONE_LAUNCH = "ours, one launch"
IDLE_CYCLES = 10_000_000  # 5 ms at 2 GHz: longer than the host takes to queue any contestant
Run = Callable[[], object]


@dataclass
class Prepared:
    """A contestant that overwrites its inputs: `prepare` restores them outside the measured time."""

    prepare: Run
    run: Run

    def __call__(self) -> object:
        """One measured call."""
        return self.run()


def measure(contestants: dict[str, Run], *, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each contestant, sorted; one call each per round, after a warm-up; those that fail are left out.

    Every round has its own order: after a contestant that frees much memory, pages come faster.
    """
    seconds: dict[str, list[float]] = {}
    for name, run in contestants.items():
        try:
            once(run, device)
        except Exception as error:
            print(f"  {name}: left out, {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}")
        else:
            seconds[name] = []
    orders = random.Random(0)
    for _ in range(repeats):
        for name in orders.sample(list(seconds), len(seconds)):
            seconds[name].append(once(contestants[name], device))
    return {name: sorted(values) for name, values in seconds.items()}


def once(run: Run, device: torch.device) -> float:
    """Seconds of one call, without its preparation."""
    if isinstance(run, Prepared):
        run.prepare()
    return gpu_seconds(run) if device.type == "cuda" else host_seconds(run)


def host_seconds(run: Run) -> float:
    """Time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def gpu_seconds(run: Run) -> float:
    """Time the GPU takes for one call: the host queues it while the GPU idles in a kernel of some milliseconds."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(IDLE_CYCLES)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * start.elapsed_time(end)


def extra_bytes(run: Run, device: torch.device) -> int:
    """Peak memory that `run` allocates beyond what is allocated before it, as torch counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with without_profiler_chatter(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    peak = current = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


@contextmanager
def without_profiler_chatter() -> Iterator[None]:
    """Keeps torch's profiler from reporting its start and stop on stderr, which no log level does."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+") as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            sys.stderr.writelines(line for line in caught if not line.startswith("USDT:"))


def eager_kl(clean: Tensor, adv: Tensor) -> Tensor:
    """Symmetric KL as usually written: targets detached, two softmaxes, sums over the vocabulary."""
    p, q = clean.log_softmax(1), adv.log_softmax(1)
    return ((p.exp() - q.exp()).detach() * (p - q)).sum(1)


def released_kl(clean: Tensor, adv: Tensor) -> Tensor:
    """As in the authors' code: two kl_div calls, each with its target detached."""
    one = torch.nn.functional.kl_div(adv.float().log_softmax(1), clean.detach().float().softmax(1), reduction="none")
    other = torch.nn.functional.kl_div(clean.float().log_softmax(1), adv.detach().float().softmax(1), reduction="none")
    return (one + other).sum(1)


def divergence_contestants(
    rows: int, vocab: int, dtype: torch.dtype, device: torch.device, quick: bool
) -> dict[str, Run]:
    """Value and both gradients of the symmetric KL, and the copies that give the bandwidth."""
    clean = torch.randn(rows, vocab, device=device).to(dtype).requires_grad_()
    adv = (clean.detach() + 0.5 * torch.randn(rows, vocab, device=device).to(dtype)).requires_grad_()
    copy, source = torch.empty_like(clean.detach()), clean.detach()
    live = [clean.detach().clone(), adv.detach().clone()]
    ones = torch.ones(rows, device=device)

    def both(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
        return lambda: torch.autograd.grad(function(clean, adv).sum(), (clean, adv))

    def overwritten(function: Callable[..., Tensor]) -> Run:
        """Logits that are neither leaves nor views, made by an op whose cost is negligible."""

        def run() -> None:
            a, b = (_Handover.apply(x, leaf) for x, leaf in zip(live, (clean, adv), strict=True))
            torch.autograd.grad(function(a, b, overwrite_logits=True).sum(), (a, b))

        return Prepared(refresh, run)

    def weighted(a: Tensor, b: Tensor, **options: bool) -> Tensor:
        return ops.row_losses(a, b, kl_weight=ones, **options).kl

    contestants: dict[str, Run] = {"copy": lambda: copy.copy_(source), "eager": both(eager_kl)}
    if not quick:
        contestants["released"] = both(released_kl)
        contestants["compile"] = both(torch.compile(eager_kl))

    def refresh() -> None:  # otherwise gradients of gradients would soon be subnormal numbers, which are slow
        live[0].copy_(clean.detach())
        live[1].copy_(adv.detach())

    contestants["ours, row losses, new gradients"] = both(ops.symmetric_kl)
    contestants["ours, weighted sum, new gradients"] = both(weighted)
    contestants["ours, row losses, overwritten"] = overwritten(ops.symmetric_kl)
    contestants["ours, weighted sum, overwritten"] = overwritten(weighted)
    if ops.build_info()["built"]:
        contestants[ONE_LAUNCH] = Prepared(refresh, lambda: fused_launch(*live, ones))
    return contestants


def fused_launch(clean: Tensor, adv: Tensor, weight: Tensor) -> None:
    """The row kernel alone: symmetric divergence, targets detached, and both gradients over the logits."""
    columns = 0, clean.shape[1]
    torch.ops.megatron_alum.row_gradients_(clean, adv, None, None, None, weight, *columns, False, True, True, True)


class _Handover(torch.autograd.Function):
    """Gives a buffer a place in the graph, as a matrix product's output has one."""

    @staticmethod
    def forward(ctx: object, buffer: Tensor, leaf: Tensor) -> Tensor:
        ctx.mark_dirty(buffer)  # type: ignore[attr-defined]
        return buffer

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def mlm_contestants(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    """The standard step's loss: only MLM, value and gradient."""
    leaf = torch.randn(rows, vocab, device=device).to(dtype).requires_grad_()
    copy, source = torch.empty_like(leaf.detach()), leaf.detach()
    live, labels = source.clone(), torch.randint(0, vocab, (rows,), device=device)
    ones = torch.ones(rows, device=device)

    def eager() -> None:
        torch.autograd.grad(torch.nn.functional.cross_entropy(leaf, labels, reduction="sum"), leaf)

    def overwritten() -> None:
        logits = _Handover.apply(live, leaf)
        loss = ops.row_losses(logits, None, labels, mlm_weight=ones, overwrite_logits=True).mlm
        torch.autograd.grad(loss, logits)

    refreshed = Prepared(lambda: live.copy_(source), overwritten)
    return {"copy": lambda: copy.copy_(source), "eager": eager, "ours, weighted sum, overwritten": refreshed}


def perturb_contestants(tokens: int, channels: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    """Ascent, projection, sum and statistics of one micro-batch, and the same in eager torch."""
    samples = 16
    shape = (tokens // samples, samples, channels)
    x = torch.randn(shape, device=device).to(dtype)
    delta, grad = torch.randn(2, *shape, device=device)
    copy = torch.empty_like(delta)
    index = torch.arange(tokens, device=device) % samples, torch.arange(tokens, device=device) // samples
    start = ops.NoiseKey(1, 2, *index, std=1e-5)
    call = {"step_size": 1e-3, "epsilon": 1e-5, "projection": "clamp"}
    contestants: dict[str, Run] = {"copy": lambda: copy.copy_(delta)}
    for name, impl in (("eager", "reference"), ("ours", "auto")):
        contestants[name] = lambda impl=impl: ops.perturb_embeddings(x, delta, grad, impl=impl, **call)
        contestants[f"{name}, step alone"] = lambda impl=impl: ops.ascend_and_project(delta, grad, impl=impl, **call)
        contestants[f"{name}, random start"] = lambda impl=impl: ops.perturb_embeddings(x, start, impl=impl, **call)
    return contestants


def dropout_contestants(tokens: int, channels: int, dtype: torch.dtype) -> dict[str, Run]:
    """Dropout of hidden states, value and gradient; on the CPU, where it is our op."""
    x = torch.randn(tokens, channels).to(dtype).requires_grad_()
    copy, upstream = torch.empty_like(x.detach()), torch.ones(tokens, channels, dtype=dtype)

    def both(function: Callable[..., Tensor]) -> Run:
        return lambda: torch.autograd.grad(function(x, 0.1), x, upstream)

    contestants: dict[str, Run] = {"copy": lambda: copy.copy_(x.detach())}
    return {**contestants, "eager": both(torch.nn.functional.dropout), "ours": both(ops.dropout)}


def head_contestants(rows: int, vocab: int, device: torch.device) -> dict[str, Run]:
    """The MLM head with both losses and all gradients, at once and chunk by chunk; H = 256."""
    hidden = torch.randn(rows, 256, device=device)
    leaves = [hidden, hidden + 0.01 * torch.randn_like(hidden), 0.05 * torch.randn(vocab, 256, device=device)]
    leaves = [x.requires_grad_() for x in [*leaves, torch.zeros(vocab, device=device)]]
    labels = torch.randint(0, vocab, (rows,), device=device)
    weight = torch.full((rows,), 1.0 / rows, device=device)
    weights = {"mlm_weight": weight, "kl_weight": weight}

    def logits() -> Iterator[Tensor]:
        return (torch.nn.functional.linear(x, *leaves[2:]) for x in leaves[:2])

    def eager() -> None:
        a, b = logits()
        mlm = torch.nn.functional.cross_entropy(a, labels, reduction="none")
        torch.autograd.grad(((mlm + eager_kl(a, b)) * weight).sum(), leaves)

    def whole() -> None:
        losses = ops.row_losses(*logits(), labels, **weights, overwrite_logits=True)
        torch.autograd.grad(losses.mlm + losses.kl, leaves)

    def chunked(chunk_rows: int) -> Run:
        def run() -> None:
            losses = ops.row_losses_from_hidden(*leaves, labels, **weights, chunk_rows=chunk_rows)
            torch.autograd.grad(losses.mlm + losses.kl, leaves)

        return run

    contestants: dict[str, Run] = {"eager": eager, "ours, whole": whole}
    for parts in (2, 4, 8):
        chunk_rows = max(rows // parts, 1)
        contestants[f"ours, chunks of {chunk_rows}"] = chunked(chunk_rows)
    return contestants
