"""A grid of fine-tuning runs: every learning rate, batch size and seed, resumable, with one results file.

    OUTPUT/results.jsonl                      one row per run, split and metric (keys: see `result_rows`)
    OUTPUT/runs/lr2e-05-bs32-seed42/          checkpoints while a run lasts, then its predictions and DONE
    OUTPUT/model/                             the best model of all runs on the development set
    OUTPUT/best.json                          which run that is
    OUTPUT/config.json                        the settings all runs share

A run with a DONE file is not repeated; an interrupted one continues from its last checkpoint (records.py). Rows are
written when a run is complete, so the file never holds half a run.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments, set_seed

from megatron_alum.compat.precision import warn_where_bf16_is_slow
from megatron_alum.config.cli import config_to_dict
from megatron_alum.config.fields import options_of, plain
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.finetune.benchmarks.decoding import Decoded, SpanOptions, check_finite, decode
from megatron_alum.finetune.benchmarks.features import Collator, Feature
from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.predictions import write_predictions
from megatron_alum.finetune.benchmarks.tasks import BATCH_SIZES, LEARNING_RATES, MAX_EPOCHS, Task
from megatron_alum.finetune.methods.presets import method_of
from megatron_alum.finetune.methods.trainer import AlumTrainer
from megatron_alum.finetune.runs.batching import GroupedTrainer
from megatron_alum.finetune.runs.models import build_model
from megatron_alum.finetune.runs.records import (
    ElapsedTime,
    Trained,
    best_value,
    collect_results,
    discard_checkpoints,
    finish,
    keep_trained,
    last_checkpoint,
    rows_if_done,
    trained_before,
    write_at_once,
)
from megatron_alum.finetune.runs.stored import store_task

GRID_OPTIONS = ("seeds", "learning_rate", "per_device_train_batch_size", "paper_grid", "output", "save_model")
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-6  # Devlin et al. 2019


@dataclass(frozen=True)
class Split:
    """One evaluated split, encoded."""

    name: str
    """dev, test, dev_mismatched, add_sent, ..."""
    examples: Sequence[Example]
    """of the split"""
    features: Sequence[Feature]
    """of the examples, longest first"""


@dataclass(frozen=True)
class Prepared:
    """Everything the runs of a grid share."""

    task: Task
    """row of the table"""
    tokenizer: PreTrainedTokenizerBase
    """of the model"""
    train: Sequence[Feature]
    """training features"""
    splits: Sequence[Split]
    """evaluated splits, dev first"""
    tags: tuple[str, ...] = ()
    """tag names in the order of their ids"""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """the actual max_seq_length and the like, kept with the model"""


@dataclass(frozen=True)
class Point:
    """One point of the grid."""

    learning_rate: float
    """peak"""
    batch_size: int
    """per device"""
    seed: int
    """of initialisation, order and dropout"""

    @property
    def name(self) -> str:
        """Folder name."""
        return f"lr{self.learning_rate:g}-bs{self.batch_size}-seed{self.seed}"


def grid(config: FinetuneConfig) -> Iterator[Point]:
    """All points once, seeds innermost."""
    training = config.training
    rates = LEARNING_RATES if training.paper_grid else training.learning_rate
    sizes = BATCH_SIZES if training.paper_grid else training.per_device_train_batch_size
    yield from dict.fromkeys(Point(*values) for values in itertools.product(rates, sizes, training.seeds))


def num_epochs(config: FinetuneConfig) -> float:
    """Passes over the training set."""
    return MAX_EPOCHS if config.training.paper_grid else config.training.num_train_epochs


def run_grid(config: FinetuneConfig, prepared: Prepared) -> list[dict[str, Any]]:
    """Run every point that is not done yet; returns all result rows of this grid."""
    output = Path(config.data.output)
    if is_main_process():
        warn_where_bf16_is_slow(config.training.bf16)
    check_same_settings(config)
    rows: list[dict[str, Any]] = []
    if is_main_process():
        collect_results(output)  # a kill may have come between a run's end and its rows
    for point in grid(config):
        folder = output / "runs" / point.name
        done = rows_if_done(folder)
        if done is not None and is_main_process():
            discard_checkpoints(folder)
            print(f"{point.name}: done before, not repeated")
        rows += run_point(config, prepared, point, folder) if done is None else done
    return rows


def check_same_settings(config: FinetuneConfig) -> None:
    """Write the settings into a new output folder; a folder can be continued only with the same settings, except for
    the grid.

    Raises: ValueError naming the first setting that differs.
    """
    if not is_main_process():
        return  # do not read a file that the main process is writing
    wanted = {name: value for name, value in config_to_dict(config).items() if name not in GRID_OPTIONS}
    wanted["num_train_epochs"] = num_epochs(config)
    path = Path(config.data.output) / "config.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(path, json.dumps(wanted, indent=1) + "\n")
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    for option in options_of(FinetuneConfig):
        if option.name in wanted and option.name not in stored:  # newer than the folder, which used its default
            stored[option.name] = plain(option.default)
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise ValueError(
                f"--output must be a new folder or one with the same settings, but {config.data.output} was made with "
                f"--{name.replace('_', '-')} {stored.get(name)} and is now given {value}."
            )


def is_main_process() -> bool:
    """Whether this process is the only one or torchrun's first; known before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def exit_together() -> None:
    """With several processes, end this one with status 0 once all are done; returns if it is the only one.

    The first to exit would break the others' connections. And the interpreter must not shut down normally: the part
    of the gloo group held by DistributedDataParallel is destroyed under the interpreter's lock and joins a thread
    that may be waiting for that lock (seen with torch 2.13).
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def run_point(config: FinetuneConfig, prepared: Prepared, point: Point, folder: Path) -> list[dict[str, Any]]:
    """Train one point, evaluate its best checkpoint on every split, store rows and predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    dev_scores, elapsed, trained = DevScores(config, prepared), ElapsedTime(folder), trained_before(folder)
    trainer = build_trainer(config, prepared, point, folder, dev_scores, trained)
    trainer.add_callback(elapsed)
    if trained is None:
        trained = train(trainer, folder)
    rows: list[dict[str, Any]] = []
    for split in prepared.splits:
        known = dev_scores.of_checkpoint(trained.metric) if split is prepared.splits[0] else None
        decoded = known or evaluate(config, prepared, split, _outputs(trainer, split))
        times = trained.epochs, elapsed.seconds()
        rows += result_rows(config, prepared.task, split.name, point, decoded, *times)
        if trainer.is_world_process_zero():
            write_predictions(prepared.task, split.name, split.examples, decoded, folder)
    if trainer.is_world_process_zero():
        keep_best(config, prepared, trainer, point, rows)
        finish(Path(config.data.output), folder, rows)
    return rows


def train(trainer: AlumTrainer, folder: Path) -> Trained:
    """Train, from the last checkpoint if there is one, and leave the best weights in the model."""
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    state = trainer.state
    if state.best_model_checkpoint is None or state.best_metric is None:
        raise ValueError(f"{folder.name} must have a result that is a number, but has none: it diverged.")
    trained = Trained(Path(state.best_model_checkpoint).name, state.epoch or 0.0, state.best_metric)
    if trainer.is_world_process_zero():
        keep_trained(folder, trained)
    return trained


class DevScores:
    """The Trainer's `compute_metrics`; keeps what it decoded at the best checkpoint, which then need not be run
    again."""

    def __init__(self, config: FinetuneConfig, prepared: Prepared) -> None:
        self.config, self.prepared = config, prepared
        self.best: Decoded | None = None

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Metrics of the development set; `prediction` is the Trainer's EvalPrediction."""
        decoded = evaluate(self.config, self.prepared, self.prepared.splits[0], prediction.predictions)
        if self.best is None or self._value(decoded) > self._value(self.best):
            self.best = decoded
        return decoded.metrics

    def _value(self, decoded: Decoded) -> float:
        return decoded.metrics[self.prepared.task.metrics[0]]

    def of_checkpoint(self, metric: float) -> Decoded | None:
        """What was decoded at the checkpoint that scored `metric`; None if that was before this process started."""
        return self.best if self.best is not None and self._value(self.best) == metric else None


def build_trainer(
    config: FinetuneConfig,
    prepared: Prepared,
    point: Point,
    folder: Path,
    dev_scores: DevScores,
    trained: Trained | None = None,
) -> AlumTrainer:
    """The trainer of one point: its model is initialised from its seed, or is the best one of a finished training."""
    set_seed(point.seed)
    source = config.data.model if trained is None else str(folder / trained.checkpoint)
    model = build_model(source, prepared.task, prepared.tags)
    # Its loss is a mean per micro-batch: let the Trainer average over accumulation.
    model.__dict__["accepts_loss_kwargs"] = False
    trainer_class = GroupedTrainer if config.training.group_by_length else AlumTrainer
    patience = config.training.early_stopping_patience
    return trainer_class(
        model=model,
        args=training_arguments(config, prepared.task, point, folder),
        train_dataset=list(prepared.train),
        eval_dataset=list(prepared.splits[0].features),
        data_collator=Collator(prepared.tokenizer, prepared.task.kind),
        processing_class=prepared.tokenizer,
        compute_metrics=dev_scores,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        optimizer_cls_and_kwargs=optimizer_of(config, point),
        method=method_of(config),
        kind=prepared.task.kind,
    )


def training_arguments(config: FinetuneConfig, task: Task, point: Point, folder: Path) -> TrainingArguments:
    """Hugging Face's arguments of one point: evaluated and saved every epoch, best on dev kept.

    Raises: ValueError for float16 without a GPU, where torch would silently stay in float32.
    """
    training = config.training
    if training.fp16 and not torch.cuda.is_available():
        raise ValueError("--fp16 must be used on a GPU, but torch sees none. Use --bf16 or neither.")
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=point.learning_rate,
        per_device_train_batch_size=point.batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        num_train_epochs=num_epochs(config),
        max_steps=training.max_steps or -1,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_ratio,
        max_grad_norm=training.max_grad_norm,
        bf16=training.bf16,
        fp16=training.fp16,
        torch_compile=training.torch_compile,
        use_cpu=not torch.cuda.is_available(),  # otherwise bf16 is refused on a CPU
        seed=point.seed,
        logging_steps=training.logging_steps,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # early stopping continues its count
        metric_for_best_model=task.metrics[0],
        greater_is_better=True,
        remove_unused_columns=False,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def optimizer_of(config: FinetuneConfig, point: Point) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and arguments of Adam or RAdam with decoupled weight decay."""
    arguments: dict[str, Any] = {"lr": point.learning_rate, "betas": ADAM_BETAS, "eps": ADAM_EPSILON}
    if config.training.optim == "radam":
        return torch.optim.RAdam, {**arguments, "decoupled_weight_decay": True}
    return torch.optim.AdamW, {**arguments, "fused": True}  # one pass over memory: six times as fast on a CPU


def evaluate(config: FinetuneConfig, prepared: Prepared, split: Split, outputs: Any) -> Decoded:
    """Decode and score a model's outputs on a split."""
    data = config.data
    options = SpanOptions(data.n_best_size, data.max_answer_length, data.null_score_diff_threshold)
    check_finite(outputs, f"{split.name} of the run")
    return decode(prepared.task, split.name, split.examples, split.features, outputs, tags=prepared.tags, spans=options)


def _outputs(trainer: AlumTrainer, split: Split) -> Any:
    """The model's outputs for a split, gathered in order."""
    features: Any = list(split.features)  # a list works as a Dataset
    trainer.compute_metrics = None  # it scores the development set
    return trainer.predict(features).predictions


def result_rows(
    config: FinetuneConfig, task: Task, split: str, point: Point, decoded: Decoded, epochs: float, seconds: float
) -> list[dict[str, Any]]:
    """One row a metric."""
    common = {
        "seed": point.seed,
        "model": config.data.model,
        "method": method_of(config).name,
        "learning_rate": point.learning_rate,
        "batch_size": point.batch_size,
        "epochs": round(epochs, 4),
        "seconds": round(seconds, 1),
    }
    return [
        {"task": task.name, "split": split, "metric": name, "value": value, "n": decoded.count_of(name), **common}
        for name, value in decoded.metrics.items()
    ]


def keep_best(
    config: FinetuneConfig, prepared: Prepared, trainer: AlumTrainer, point: Point, rows: list[dict[str, Any]]
) -> None:
    """Save the model as OUTPUT/model if its result on the first split is the best of the grid so far."""
    wanted = (prepared.splits[0].name, prepared.task.metrics[0])
    values = [row["value"] for row in rows if (row["split"], row["metric"]) == wanted]
    output = Path(config.data.output)
    if not values or values[0] <= best_value(output):
        return
    if config.training.save_model:
        trainer.save_model(str(output / "model"))
        store_task(output / "model", prepared.task, prepared.lengths, prepared.tags)
    content = {"run": point.name, "split": wanted[0], "metric": wanted[1], "value": values[0]}
    write_at_once(output / "best.json", json.dumps(content) + "\n")
