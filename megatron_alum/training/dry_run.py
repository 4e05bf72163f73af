"""--dry-run: build everything, run 2 steps of each phase on one micro-batch per process, and report what the run would
take.

Nothing is saved. The time of an iteration is that of a micro-batch (second of two steps, the first one warms up) times
the number of micro-batches; in the adversarial phase those with adversarial sequences and those without are timed
separately. It is measured on the run's first samples, which the curriculum masks least.
"""

from __future__ import annotations

import time

import torch

from megatron_alum.compat.precision import warn_where_bf16_is_slow
from megatron_alum.config.cli import format_changes
from megatron_alum.config.run import RunConfig
from megatron_alum.config.words import amount, data_size, duration, figure
from megatron_alum.data.sampling.loader import draw
from megatron_alum.data.sampling.placement import BatchPlan, Counts, IterationPlan
from megatron_alum.models import attention_backend
from megatron_alum.objective.micro_batch import MicroBatch, batch_plan, load_all
from megatron_alum.objective.schedule import Phase
from megatron_alum.parallel import joined
from megatron_alum.planning.flops import TextSize, iteration_flops, passes, peak_flops, run_iterations
from megatron_alum.planning.memory import checkpoint_bytes, estimate_memory, num_parameters
from megatron_alum.training.performance import peak_memory_bytes
from megatron_alum.training.state import TrainState, build_state
from megatron_alum.training.step import train_step

SUSTAINED = 0.4
"""share of a device's peak that the projection assumes, beside the measured speed"""
LOOKED_AT = 4096
"""samples whose lengths are measured"""


def dry_run(config: RunConfig) -> None:
    """Print what `config` means; called on every rank, printed by the first. Raises: ValueError as `train`."""
    with joined(config.parallel) as groups:
        state = build_state(config, groups)
        plan = batch_plan(config, groups)
        samples = sample_iterations(state, plan)
        phases = [phase for phase, iterations in run_iterations(config).items() if iterations]
        if groups.pp_size > 1:  # RunConfig: a run in stages ends before the adversarial phase
            phases = [phase for phase in phases if phase == "standard"]
        seconds = {phase: time_iteration(state, plan, phase) for phase in phases}
        if groups.world_rank == 0:
            print(format_changes(config))
            warn_where_bf16_is_slow(config.precision.bf16)
            print("\n".join(report(state, plan, samples, seconds)), flush=True)


def sample_iterations(state: TrainState, plan: BatchPlan) -> list[IterationPlan]:
    """The first iterations of the run, for measuring lengths and imbalance; at least LOOKED_AT samples."""
    number = -(-LOOKED_AT // plan.global_batch_size)
    number = min(number, state.config.training.train_iters)
    return [plan.iteration(state.datasets.train, i * plan.global_batch_size) for i in range(number)]


def average_text(samples: list[IterationPlan], config: RunConfig) -> TextSize:
    """An average iteration of `samples`, masked at the mean rate of the run: the first ones are masked least."""
    batch, rates = config.training.global_batch_size, config.data.mask_rates
    tokens = sum(plan.counts.tokens for plan in samples) / len(samples)
    squared = sum(plan.counts.squared_lengths for plan in samples) / len(samples)
    return TextSize(batch, tokens, squared, tokens * sum(rates) / len(rates))


def report(state: TrainState, plan: BatchPlan, samples: list[IterationPlan], seconds: dict[Phase, float]) -> list[str]:
    """Lines on batches, network, operations, memory and time; `seconds` per iteration of each phase."""
    config, groups = state.config, state.groups
    world, vocab = groups.ranks_per_model * groups.dp_size, state.network.real_vocab_size
    text = average_text(samples, config)
    fill = text.tokens / (plan.global_batch_size * config.model.seq_length)
    imbalance = max(iteration.imbalance for iteration in samples)
    whole = num_parameters(config, padded_vocab_size=state.network.vocab_size)
    backend, reason = attention_backend(groups.device, getattr(torch, config.precision.dtype_name))
    lines = [
        "Dry run:",
        f"  batch       {plan.global_batch_size} sequences = {plan.micro_batch_size} a micro-batch on average x "
        f"{plan.num_micro_batches} micro-batches x {groups.dp_size} data-parallel replica(s) of "
        f"{groups.ranks_per_model} process(es)",
        f"  tokens      {text.tokens / plan.global_batch_size:,.0f} a sequence (padded rows of "
        f"{config.model.seq_length} would be {fill:.0%} full), {text.tokens:,.0f} an iteration, "
        f"{amount(text.tokens * config.training.train_iters)} in {config.training.train_iters:,} iterations",
        f"  balance     the fullest replica has {imbalance:.1%} more tokens than the mean, at most, in "
        f"{len(samples)} iteration(s)",
        f"  network     {amount(whole)} parameters, vocabulary {vocab:,} padded to {state.network.vocab_size:,}",
        f"  attention   {backend} ({reason})",
    ]
    total = {"measured": 0.0, "projected": 0.0}
    peak = peak_flops(config, groups.device)
    for phase, measured in seconds.items():
        flops = iteration_flops(config, phase, text, vocab_size=vocab)
        iterations = run_iterations(config)[phase]
        on_gpu = groups.device.type == "cuda"
        memory = estimate_memory(config, phase, vocab_size=vocab, world_size=world, on_gpu=on_gpu, text=text)
        in_passes = passes(config, phase, text, vocab_size=vocab)
        lines.append(
            f"  {phase:11} {iterations:,} iterations of {figure(flops / 1e12)} TFLOP ({in_passes:.3g} F), "
            f"{duration(measured)} each here ({figure(flops / measured / world / 1e12)} TFLOP/s a process), "
            f"{data_size(memory.total)} a process by formula"
        )
        total["measured"] += iterations * measured
        total["projected"] += iterations * flops / (SUSTAINED * peak * world) if peak else 0.0
    left_out = {phase: n for phase, n in run_iterations(config).items() if n and phase not in seconds}
    lines += [f"  {phase:11} {n:,} iterations, for a run without pipeline stages" for phase, n in left_out.items()]
    stored = checkpoint_bytes(config, vocab_size=vocab)
    held = ", held in its host memory meanwhile" if config.checkpoint.async_save else ""
    lines.append(f"  checkpoint  {data_size(stored)}, {data_size(stored / world)} written by each process{held}")
    lines.append(f"  memory      {data_size(peak_memory_bytes(groups.device))} so far in this process, measured")
    lines.append(f"  time        {duration(total['measured'])} at the measured speed")
    if peak:
        lines.append(
            f"  projection  {duration(total['projected'])} at {SUSTAINED:.0%} of {peak / 1e12:,.0f} TFLOP/s "
            f"x {world} process(es)"
        )
    return lines


def time_iteration(state: TrainState, plan: BatchPlan, phase: Phase) -> float:
    """Seconds of an iteration of `phase` on this rank, including one optimizer step per micro-batch. Collective."""
    batches = draw(state.datasets.train, plan, 0)  # the last ones would need the index of every epoch before them
    is_adversarial = phase == "alum"
    takes_part = [is_adversarial and batch.num_adversarial > 0 for batch in batches.micro_batches]
    total = 0.0
    # Every rank takes equally many steps, even where all of its own micro-batches are of one kind.
    mixed = is_adversarial and plan.num_adversarial < plan.global_batch_size
    for kind in (True, False) if mixed else (is_adversarial,):
        number = takes_part.index(kind) if kind in takes_part else 0
        chosen = batches.micro_batches[number : number + 1]
        micro_batches = load_all(chosen, state.config, state.groups.device, is_adversarial=is_adversarial)
        total += takes_part.count(kind) * _time_step(state, micro_batches, batches.counts, phase)
    return total


def _time_step(state: TrainState, micro_batches: list[MicroBatch], counts: Counts, phase: Phase) -> float:
    """Seconds of the second of two steps on `micro_batches` in `phase`."""
    iteration = 1 if phase == "standard" else state.config.training.train_iters
    for _ in range(2):
        torch.cuda.synchronize()  # a step returns when its kernels are launched, not when they are done
        began = time.perf_counter()
        train_step(state, micro_batches, counts, iteration)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds
