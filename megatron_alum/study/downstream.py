"""Fine-tuning of the arms' encoders with the project's own fine-tuner, and attacks on the resulting classifier.

    WORK/finetune/CELL/                  output of `megatron-alum finetune`; removed when its rows are kept

PGD is that of `megatron-alum attack`. Character edits are random ones, of which the worst counts: an example is robust
if it is classified correctly unchanged and in each of several edited versions. The edits ignore the model, so it is a
weak attack.
"""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_alum.config.cli import config_from_dict
from megatron_alum.config.finetune import AttackConfig, FinetuneConfig
from megatron_alum.finetune.benchmarks.features import Collator
from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.tasks import Task
from megatron_alum.finetune.runs.attacked import attack_model, attacked_task, labelled_examples
from megatron_alum.finetune.runs.evaluation import encoder_of, model_outputs
from megatron_alum.finetune.runs.grid import run_grid
from megatron_alum.finetune.runs.models import load_finetuned, load_tokenizer
from megatron_alum.finetune.runs.prepare import prepare
from megatron_alum.study.cells import PLAIN, Cell, task_of
from megatron_alum.study.plan import ORIGINAL, Downstream, StudyPlan
from megatron_alum.study.pretraining import hf_folder
from megatron_alum.study.rows import Results, Row, first_metric

VERSIONS = 4
"""edited versions of an example"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def fine_tune(plan: StudyPlan, work: Path, cell: Cell) -> Iterator[Row]:
    """Scores on the development set and, but for the points of a curve, under attack."""
    task = task_of(plan, cell)
    output = work / "finetune" / cell.name.replace("/", "-")
    config = finetune_config(plan, work, cell, task, output)
    for row in run_grid(config, prepare(config)):
        if row["split"] == "dev":
            yield {"measure": row["metric"], "value": row["value"], "examples": row["n"]}
    if config.training.save_model:
        yield from _attacks(task, output / "model", cell.finetune_seed)


def discard_output(work: Path, cell: Cell) -> None:
    """Delete the folder of a fine-tuning whose rows are kept."""
    shutil.rmtree(work / "finetune" / cell.name.replace("/", "-"), ignore_errors=True)


def finetune_config(plan: StudyPlan, work: Path, cell: Cell, task: Downstream, output: Path) -> FinetuneConfig:
    """Flags of the plan's task, of the method, and the model that the cell starts from."""
    methods: Mapping[str, Any] = {**task.methods, **task.original_methods, PLAIN: {}}
    if cell.arm == ORIGINAL:
        model = str(plan.pretraining["init-from"])
    else:
        model = str(hf_folder(plan, work, cell.seed, cell.arm, cell.iteration))
    flags = {
        **task.options,
        **methods[cell.method],
        **{"task": task.task, "model": model, "output": str(output), "seeds": [cell.finetune_seed]},
        "save-model": bool(task.radii or task.edits) and cell.kind != "curve",  # to be attacked
    }
    return config_from_dict(FinetuneConfig, flags)


def best_arms(plan: StudyPlan, results: Results, seed: int) -> tuple[str, ...]:
    """The two arms whose mean score over tasks and fine-tuning seeds is best after a seed of pre-training."""
    means = {}
    for arm in plan.arms:
        tasks = []
        for task in plan.downstream:
            rows = results.of(seed=seed, arm=arm.name, task=task.task, method=PLAIN, iteration=0)
            if rows:
                metric = first_metric(rows)
                tasks.append(statistics.fmean(row["value"] for row in rows if row["measure"] == metric))
        if tasks:
            means[arm.name] = statistics.fmean(tasks)
    return tuple(sorted(means, key=lambda name: means[name], reverse=True)[:2])


def _attacks(task: Downstream, model: Path, seed: int) -> Iterator[Row]:
    """PGD of growing radius and edits of growing number on the same examples."""
    given = {
        name: value
        for name, value in task.options.items()
        if name in ("data-dir", "validation-file", "text-column", "label-column", "labels")
    }
    custom = {"task": task.task} if task.task == "custom" else {}
    common = {"model": [str(model)], "output": str(model), "max-eval-samples": task.attacked, "seed": seed}
    pgd = {"radii": list(task.radii) or [0.0], "num-steps": task.attack_steps}
    attack = config_from_dict(AttackConfig, {**common, **given, **custom, **pgd})
    found = attacked_task(attack)
    examples = labelled_examples(attack, found)
    for row in attack_model(attack, found, examples, str(model)) if task.radii else ():
        yield {"measure": "accuracy-pgd", "radius": row["radius"], "value": row["accuracy"], "examples": row["n"]}
    for edits in task.edits:
        accuracy = edited_accuracy(str(model), found, examples, edits, seed=seed)
        yield {"measure": "accuracy-edits", "edits": edits, "value": accuracy, "examples": len(examples)}


def edited_accuracy(folder: str, task: Task, examples: Sequence[Example], edits: int, *, seed: int) -> float:
    """Share of the examples that are classified correctly unchanged and in all of VERSIONS edited versions."""
    tokenizer = load_tokenizer(folder)
    model = load_finetuned(folder, task).to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    encoder, collate = encoder_of(folder, task, tokenizer, None), Collator(tokenizer, task.kind)
    rng = random.Random(seed)
    right = [True] * len(examples)
    for version in range(VERSIONS + 1):
        texts = [edited_example(one, edits if version else 0, rng) for one in examples]
        predicted = model_outputs(model, encoder.encode(texts), collate, 32).argmax(-1).tolist()
        right = [
            so_far and guess == one["label"] for so_far, guess, one in zip(right, predicted, examples, strict=True)
        ]
    return sum(right) / len(right)


def edited_example(example: Example, edits: int, rng: random.Random) -> Example:
    """A copy whose texts have this many edits each; the label is unchanged."""
    texts = {name: edit(example[name], edits, rng) for name in ("first", "second") if isinstance(example[name], str)}
    return {**example, **texts}


def edit(text: str, edits: int, rng: random.Random) -> str:
    """`text` after this many swaps, deletions, insertions and replacements of single letters inside words."""
    for _ in range(edits):
        inside = [i for i in range(1, len(text) - 2) if text[i - 1 : i + 3].isalpha()]
        if not inside:
            return text
        at, letter = rng.choice(inside), rng.choice(LETTERS)
        changed = (text[at + 1] + text[at], text[at + 1], letter + text[at : at + 2], letter + text[at + 1])
        text = text[:at] + rng.choice(changed) + text[at + 2 :]
    return text
