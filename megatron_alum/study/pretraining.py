"""Pre-training of a study: standard training once per seed to the common start, every arm from that checkpoint.

    WORK/seed1/start/                    the run to the common start
    WORK/seed1/standard/                 an arm: its metrics; checkpoints while it lasts
    WORK/seed1/standard-hf/iter_0000750  its encoder, a Hugging Face folder

An arm is a resume of the start with other options of the adversarial branch, so weights, moments of the optimizer,
random states and samples are those of standard training up to its first step. `arguments` is a command line of
`megatron-alum pretrain`: what is run here can be run by hand.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_alum.checkpoint.folder import iteration_folder, list_iterations
from megatron_alum.cli.pretrain import options_of_start
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.config.training import TrainingConfig
from megatron_alum.convert.commands import to_hf
from megatron_alum.objective.schedule import learning_rate
from megatron_alum.ops import build_info
from megatron_alum.study.corpora import training_prefix
from megatron_alum.study.plan import DEFAULT_ALPHA, Arm, StudyPlan
from megatron_alum.study.rows import Row
from megatron_alum.training.loop import train
from megatron_alum.training.metrics import METRICS_FILE, PERFORMANCE_FILE, VALIDATION_FILE

STANDARD_ONLY = {"alum-alpha": 0}
MEANS = ("lm_loss", "alum_kl", "effective_perturbation", "ascent_ratio", "kl_gain")
"""columns of metrics.jsonl whose means over an arm are kept"""


def run_folder(work: Path, seed: int, name: str) -> Path:
    """Of the start ("start") or an arm."""
    return work / f"seed{seed}" / name


def start_checkpoint(plan: StudyPlan, work: Path, seed: int) -> Path:
    """The checkpoint that every arm continues from."""
    return iteration_folder(run_folder(work, seed, "start"), plan.start_iters)


def hf_folder(plan: StudyPlan, work: Path, seed: int, arm: str, iteration: int = 0) -> Path:
    """The exported network of an arm at its end, or at an earlier iteration."""
    iteration = iteration or plan.total_iters_of(plan.arm(arm))
    return work / f"seed{seed}" / f"{arm}-hf" / f"iter_{iteration:07d}"


def start_options(plan: StudyPlan, work: Path, seed: int) -> dict[str, Any]:
    """Flags of the run to the common start."""
    return {
        "data-path": training_prefix(work),
        "save": run_folder(work, seed, "start"),
        "seed": seed,
        "train-iters": plan.total_iters,
        "alum-start-fraction": plan.start_iters / plan.total_iters,
        "exit-interval": plan.start_iters,
        "save-interval": plan.point_iters,
        "keep-last": 1,
        "eval-interval": plan.point_iters,
        "progress-bar": False,
        **plan.pretraining,
        **STANDARD_ONLY,
    }


def arm_options(plan: StudyPlan, work: Path, seed: int, arm: Arm, options: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of an arm whose own `options` have no pilot left in them. It resumes the start, whose options it takes."""
    start = start_options(plan, work, seed)
    chosen = {
        **{name: start[name] for name in ("data-path", "save-interval", "eval-interval", "progress-bar")},
        "load": start_checkpoint(plan, work, seed),
        "save": run_folder(work, seed, arm.name),
        "keep-last": 0 if arm.curve else 1,
        "alum-alpha": plan.pretraining.get("alum-alpha", DEFAULT_ALPHA),
        **options,
    }
    if arm.equal_cost:
        total = plan.total_iters_of(arm)
        chosen |= {"train-iters": total, "override-schedule": True, "lr": rate_of_longer(plan, work, seed, total)}
    return chosen


def rate_of_longer(plan: StudyPlan, work: Path, seed: int, total: int) -> float:
    """Peak rate with which a run of `total` iterations has the others' rate right after the common start.

    The decay is linear, so otherwise the longer run would jump to a higher rate there.
    """
    base = start_options(plan, work, seed)
    rates = []
    for iterations in (plan.total_iters, total):
        config = parse_config(RunConfig, arguments({**base, "train-iters": iterations}), infer=options_of_start)
        rates.append(learning_rate(plan.start_iters + 1, config))
    return float(f"{config.optimizer.lr * rates[0] / rates[1]:.9g}")


def arguments(options: Mapping[str, Any]) -> list[str]:
    """A command line of `megatron-alum pretrain`."""
    words: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *(str(one).lower() if isinstance(one, bool) else str(one) for one in values)]
    return words


def run_to_end(options: Mapping[str, Any]) -> Path:
    """Train, from the newest checkpoint of the run's own folder if it has one; returns the folder.

    Raises: ValueError for a run that a signal ended early: its trainer saves and returns as at its end.
    """
    folder = Path(options["save"])
    if list_iterations(folder):
        options = {**options, "load": folder}
    config = parse_config(RunConfig, arguments(options), infer=options_of_start)
    train(config)
    end, newest = config.last_iteration, max(list_iterations(folder))
    if newest < end:
        raise ValueError(f"{folder} was asked to stop at iteration {newest} of {end}. The same command goes on.")
    return folder


def train_start(plan: StudyPlan, work: Path, seed: int) -> Iterator[Row]:
    """The common start; its speed and losses."""
    folder = run_to_end(start_options(plan, work, seed))
    yield from run_rows(folder, after=0, batch_size=batch_size(plan))


def train_arm(plan: StudyPlan, work: Path, seed: int, arm: Arm, options: Mapping[str, Any]) -> Iterator[Row]:
    """One arm, its export, and what its metrics say."""
    folder = run_to_end(arm_options(plan, work, seed, arm, options))
    end = plan.total_iters_of(arm)
    points = range(plan.start_iters + plan.point_iters, end, plan.point_iters) if arm.curve else ()
    for iteration in (*points, end):
        export(iteration_folder(folder, iteration), hf_folder(plan, work, seed, arm.name, iteration))
    if arm.curve:
        export(start_checkpoint(plan, work, seed), hf_folder(plan, work, seed, arm.name, plan.start_iters))
    yield from run_rows(folder, after=plan.start_iters, batch_size=batch_size(plan))
    ascents = options.get("alum-num-ascent-steps", 0 if options.get("alum-alpha") == 0 else 1)
    yield {"measure": "ascent-steps", "value": ascents}


def batch_size(plan: StudyPlan) -> int:
    """Sequences of a step."""
    return int(plan.pretraining.get("global-batch-size", TrainingConfig.global_batch_size))


def export(checkpoint: Path, folder: Path) -> None:
    """A Hugging Face folder of one checkpoint, unless it is there."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    to_hf(str(checkpoint), folder)


def discard_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of an arm that is done and exported; its metrics stay."""
    for iteration in list_iterations(folder):
        shutil.rmtree(iteration_folder(folder, iteration))


def run_rows(folder: Path, *, after: int, batch_size: int) -> Iterator[Row]:
    """Rows from a run's own files: means over its iterations after `after`, held-out losses on the way, speed, path."""
    metrics, performance, validation = (
        [row for row in read_lines(folder / name) if row["iteration"] > after]
        for name in (METRICS_FILE, PERFORMANCE_FILE, VALIDATION_FILE)
    )
    for name in MEANS:
        values = [row[name] for row in metrics if row[name] is not None]
        if values:
            yield {"measure": f"training-{name.replace('_', '-')}", "value": statistics.fmean(values)}
    yield {"measure": "first-lm-loss", "value": metrics[0]["lm_loss"]}
    for row in validation:
        yield {"measure": "held-out-loss", "iteration": row["iteration"], "value": row["lm_loss"]}
    yield {"measure": "iterations", "value": metrics[-1]["iteration"] - after}
    yield {"measure": "tokens-per-second", "value": statistics.median(row["tokens_per_second"] for row in performance)}
    samples = statistics.median(row["samples_per_second"] for row in performance)
    yield {"measure": "step-seconds", "value": batch_size / samples}
    yield {"measure": "fill", "value": statistics.fmean(row["fill"] for row in performance)}
    yield {"measure": "fused", "value": int(build_info()["built"]), "path": build_info()["instruction_set"]}


def read_lines(path: Path) -> list[Row]:
    """The rows of one of a run's files; none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]
