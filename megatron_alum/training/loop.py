"""A pre-training run: set up, resume, iterate, log, validate, save, stop.

    torchrun --nproc-per-node 2 pretrain_bert_alum.py --data-path OUT --save DIR ...

`train` shows a run in order; the mathematics of one iteration is in `step.py`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from megatron_alum.checkpoint.agreement import together
from megatron_alum.checkpoint.lock import RunLock
from megatron_alum.checkpoint.save import CheckpointSaver
from megatron_alum.compat.precision import warn_where_bf16_is_slow
from megatron_alum.config.cli import format_changes
from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.loader import BatchLoader, IterationBatches
from megatron_alum.objective.micro_batch import batch_plan, load_all
from megatron_alum.objective.schedule import phase_of
from megatron_alum.parallel import joined
from megatron_alum.training.control import Control
from megatron_alum.training.metrics import (
    METRICS_FILE,
    PERFORMANCE_FILE,
    VALIDATION_FILE,
    Interval,
    Writers,
    finite,
    metrics_row,
)
from megatron_alum.training.parameter_gather import wait_for_all
from megatron_alum.training.performance import Stopwatch
from megatron_alum.training.profiler import Profile
from megatron_alum.training.replicas import check_replicas
from megatron_alum.training.resume import Resume, check_save_folder, find_resume, finished_note, origin_of, roll_back
from megatron_alum.training.state import TrainState, build_state, checkpoint_content, load_into
from megatron_alum.training.step import StepResult, train_step
from megatron_alum.training.validation import validate


def train(config: RunConfig) -> None:
    """Run `config` to its end, its --exit-interval or a SIGTERM. Called on every rank of a torchrun job.

    Raises: ValueError for what the user must change, OSError for failing disks and lost ranks.
    """
    assert config.checkpoint.save is not None
    if config.checkpoint.load is not None:
        origin_of(config.checkpoint.load)  # before the lock creates the folder, which --load may name, too
    with joined(config.parallel) as groups, RunLock(config.checkpoint.save) as lock:
        together(groups.world, lock.take, only_leader=True)
        check_save_folder(config)
        resumed = find_resume(config, groups)
        if (note := finished_note(config, resumed)) is not None:
            if groups.world_rank == 0:
                print(note, file=sys.stderr, flush=True)
            return
        run = Run(build_state(config, groups, stored=None if resumed is None else resumed.stored), resumed, lock)
        run.state.watch.run(run.until_done)


class Run:
    """The loop around `train_step` and everything that happens between two steps."""

    def __init__(self, state: TrainState, resumed: Resume | None, lock: RunLock) -> None:
        """Prepare folders, load the checkpoint to resume from, and open the outputs. Collective."""
        config, groups = state.config, state.groups
        self.state, self.config = state, config
        self.control = Control(timeout_seconds=60.0 * config.parallel.distributed_timeout_minutes)
        assert config.checkpoint.save is not None
        self.saver = CheckpointSaver(
            config.checkpoint.save,
            keep_last=config.checkpoint.keep_last,
            in_background=config.checkpoint.async_save,
            copies=groups.dp,
            confirm=lock.check,
        )
        self.saver.prepare()
        if resumed is not None:
            load_into(state, resumed.folder, resumed.stored)
            if resumed.rolls_back:
                roll_back(resumed, groups)
        self.plan = batch_plan(config, groups)
        self.is_leader = groups.world_rank == 0
        self.stopwatch = Stopwatch(config, groups, vocab_size=state.network.real_vocab_size)
        self.interval = Interval(groups, skipped=state.skipped)
        # If rank 0 cannot open its outputs, all ranks stop: none may wait for it in the first step.
        writers = together(
            groups.world, lambda: Writers(config, rank=groups.world_rank, resumed_iteration=state.iteration)
        )
        assert writers is not None
        self.writers = writers
        if self.is_leader:  # last: whoever is refused should read the refusal, not options
            print(format_changes(config), flush=True)
            warn_where_bf16_is_slow(config.precision.bf16)
        self.profile = Profile(config.logging, self.saver.root, is_leader=self.is_leader)
        self.warned = False
        self.last_saved = state.iteration if resumed is not None else None

    def until_done(self) -> None:
        """Iterate to the end of the run, then save; a second SIGTERM during the save changes nothing."""
        with self.control.signals(), self._garbage_collected_by_hand():
            self._iterate()
            self.profile.close()
            self.save()
            self.saver.close()
            self.writers.close()

    def _iterate(self) -> None:
        """Iterations up to the last one or a SIGTERM."""
        config, state = self.config, self.state
        with (
            self._progress_bar() as bar,
            BatchLoader(
                state.datasets.train,
                self.plan,
                consumed_samples=state.consumed_samples,
                prefetch_batches=config.data.prefetch_batches,
                num_threads=config.data.sampler_threads,
                pin_memory=state.groups.device.type == "cuda",
            ) as loader,
        ):
            self.stopwatch.restart()
            pending = self.control.collect(save_failed=False)
            while True:
                state.watch.enter(f"agreeing on what follows iteration {state.iteration}")
                requests = pending.result()
                if requests.save_failed:
                    self.saver.wait()  # raises
                if state.iteration >= config.last_iteration:
                    break
                if requests.stop:
                    self._say(f"SIGTERM: stopping after iteration {state.iteration}.")
                    break
                if requests.save:
                    self.save()
                pending = self.control.collect(save_failed=self.saver.failed)  # read after the step
                self._iteration(next(loader), bar, loader)

    def _iteration(self, batches: IterationBatches, bar: Any, loader: BatchLoader) -> None:
        """One step of the optimizer, and whatever is due after it."""
        state, iteration = self.state, self.state.iteration + 1
        self.profile.begin(iteration)
        is_adversarial = phase_of(iteration, self.config) == "alum"
        micro_batches = load_all(batches.micro_batches, self.config, state.groups.device, is_adversarial=is_adversarial)
        result = train_step(state, micro_batches, batches.counts, iteration)
        state.iteration = iteration
        state.consumed_samples += self.plan.global_batch_size
        self.stopwatch.count(result.phase, batches.counts, batches.imbalance)
        self._after_step(result, bar, loader.wait_seconds)

    def save(self) -> None:
        """Save a checkpoint of the last finished iteration unless there is one already. Collective.

        Before the first step of the optimizer nothing is saved: it has no moments yet that a resume could load.
        """
        state = self.state
        if self.last_saved == state.iteration:
            return
        state.watch.enter(f"saving the checkpoint of iteration {state.iteration}")
        self.interval.count_skips()
        state.skipped = self.interval.skipped
        if state.skipped == state.iteration:
            self._say(f"No checkpoint is saved: up to iteration {state.iteration} no step has changed the weights.")
            return
        self.saver.save(state.iteration, checkpoint_content(state))
        self.warned = False
        self.last_saved = state.iteration

    def _after_step(self, result: StepResult, bar: Any, loader_wait_seconds: float) -> None:
        """Log, validate and save where they are due."""
        iteration, options = self.state.iteration, self.config.training
        self.interval.add(result)
        if iteration % self.config.logging.log_interval == 0:
            self._log(result, bar, loader_wait_seconds)
        bar.update(1)
        with self.stopwatch.paused():
            if options.eval_interval and iteration % options.eval_interval == 0:
                losses = validate(self.state, self.plan)
                if losses is not None:
                    self.writers.write(VALIDATION_FILE, {"iteration": iteration, **losses})
            if self.config.checkpoint.save_interval and iteration % self.config.checkpoint.save_interval == 0:
                self.save()
            self._look_after(iteration)

    def _look_after(self, iteration: int) -> None:
        """Rare work that all ranks do at once: garbage collection and the comparison of the replicas."""
        config, collect = self.config, self.config.compute.manual_gc_interval
        if collect and iteration % collect == 0:
            gc.collect()
        check = config.parallel.check_weight_hash_across_dp_replicas_interval
        if check and iteration % check == 0:
            self.state.watch.enter(f"comparing the replicas after iteration {iteration}")
            wait_for_all(self.state.model)
            check_replicas(self.state.network, self.state.groups.dp, iteration=iteration)

    @contextmanager
    def _garbage_collected_by_hand(self) -> Iterator[None]:
        """In the body Python's automatic garbage collection is off if the run collects by itself."""
        by_hand = self.config.compute.manual_gc_interval > 0
        if by_hand:
            gc.disable()
        try:
            yield
        finally:
            if by_hand:
                gc.enable()

    def _log(self, result: StepResult, bar: Any, loader_wait_seconds: float) -> None:
        config, iteration = self.config, self.state.iteration
        self._check_skips()
        means = self.interval.means()
        performance = self.stopwatch.row(
            iteration,
            loader_wait_seconds=loader_wait_seconds,
            own_work_seconds=self.state.watch.take_own_work(),
            nonfinite_samples=means.get("nonfinite"),
            loss_scale=float(self.state.optimizer.get_loss_scale()),
        )
        tokens_per_second = performance["tokens_per_second"]
        first_sample = self.state.consumed_samples - config.training.global_batch_size
        row = metrics_row(
            iteration,
            result,
            means,
            alpha=config.alum.alpha,
            grad_norm=finite(self.interval.grad_norm),
            mask_rate=self.state.datasets.train.settings.mask_rate(first_sample),
            tokens_per_second=round(tokens_per_second, 1),
            skipped=self.interval.skipped,
        )
        self.writers.write(METRICS_FILE, row)
        self._warn_about_rounding(means.get("effective_perturbation"))
        self.writers.write(PERFORMANCE_FILE, performance)
        bar.set_postfix(
            {"phase": result.phase, "lm": _short(means["lm_loss"]), "tok/s": f"{tokens_per_second:.0f}"}, refresh=False
        )

    def _warn_about_rounding(self, effective: float | None) -> None:
        """Say, at most once between two checkpoints, that the sum x + delta loses most of delta."""
        if self.warned or effective is None or effective >= 0.5:
            return
        self.warned = True
        self._say(
            f"WARNING: only {effective:.0%} of the perturbation survives rounding when it is added to the embeddings. "
            "Raise --alum-noise-std and --alum-epsilon."
        )

    def _check_skips(self) -> None:
        """Raises: ValueError once too many iterations in a row were skipped; checked only when a row is due."""
        limit, run = self.config.training.max_consecutive_skips, self.interval.count_skips()
        if limit and run >= limit:
            scale = float(self.state.optimizer.get_loss_scale())
            raise ValueError(
                f"{run} iterations in a row, up to {self.state.iteration}, had a loss or gradient that is not finite "
                f"(loss scale {scale:g}). Lower --lr, use --bf16 instead of --fp16, or raise --max-consecutive-skips; "
                "continue from the last checkpoint with --load."
            )

    def _progress_bar(self) -> Any:
        return tqdm(
            total=self.config.training.train_iters,
            initial=self.state.iteration,
            desc="pre-training",
            unit="it",
            disable=not (self.is_leader and self.config.logging.progress_bar),
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )

    def _say(self, message: str) -> None:
        if self.is_leader:
            print(message, file=sys.stderr, flush=True)


def _short(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"
