"""Robustness of a fine-tuned classifier: PGD on the embeddings, and word substitution through TextAttack.

PGD (Madry et al. 2018, arXiv 1706.06083): from a uniform start in the L-infinity ball of radius r around the word
embeddings, `num_steps` steps of 2.5 r / num_steps along the sign of the gradient of the label's cross-entropy,
projected onto the ball. An example counts as robust if its prediction is right before the attack and at every step of
it. Pads stay untouched.

Word substitution uses TextAttack's published recipes (TextFooler, BAE, PWWS); the library is optional.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megatron_alum.alum import frozen
from megatron_alum.finetune.embeddings import EmbeddingSplit, perturbable
from megatron_alum.finetune.loading import Example
from megatron_alum.finetune.tasks import Task

STEP_FACTOR = 2.5  # Madry et al.: steps long enough to reach the boundary from any start
RECIPES = {"textfooler": "TextFoolerJin2019", "bae": "BAEGarg2019", "pwws": "PWWSRen2019"}


def pgd_accuracy(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], radius: float, *, num_steps: int, seed: int
) -> tuple[float, int]:
    """(share of examples that stay right within `radius`, examples); radius 0 gives the clean accuracy."""
    model.eval()
    split = EmbeddingSplit(model, "word")
    generator = torch.Generator(device=model.device).manual_seed(seed)
    right, total = 0, 0
    with frozen(model.parameters()):
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            survives = _attacked(split, inputs, radius, num_steps, generator)
            right, total = right + int(survives.sum()), total + len(survives)
    if total == 0:
        raise ValueError("`batches` must hold at least one example, but is empty.")
    return right / total, total


def _attacked(
    split: EmbeddingSplit, inputs: dict[str, Tensor], radius: float, num_steps: int, generator: torch.Generator
) -> Tensor:
    """bool [B]: the prediction is right without and with the perturbation of every step."""
    labels = inputs["labels"]
    with torch.no_grad():
        x = split.embed(inputs)
        survives = split.forward(x, inputs)["logits"].argmax(-1) == labels
    if radius == 0:
        return survives
    mask = perturbable(inputs).unsqueeze(-1)
    delta = torch.empty_like(x).uniform_(-radius, radius, generator=generator) * mask
    for _ in range(num_steps):
        delta.requires_grad_(True)
        logits = split.forward(x + delta, inputs)["logits"]
        survives = survives & (logits.argmax(-1) == labels)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + STEP_FACTOR * radius / num_steps * grad.sign() * mask).clamp(-radius, radius)
    with torch.no_grad():
        return survives & (split.forward(x + delta, inputs)["logits"].argmax(-1) == labels)


def word_attack(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], recipe: str
) -> dict[str, float]:
    """{"clean_accuracy", "robust_accuracy"} under a TextAttack recipe.

    Raises: ValueError when the library is not installed, or for a task that is no classification.
    """
    if task.kind != "classification":
        raise ValueError(f"--word-attack must be used on classification tasks, but {task.name} is {task.kind} instead.")
    if importlib.util.find_spec("textattack") is None:
        raise ValueError("--word-attack needs the TextAttack library, which is not installed: pip install textattack.")
    textattack: Any = importlib.import_module("textattack")
    recipes: Any = importlib.import_module("textattack.attack_recipes")
    wrappers: Any = importlib.import_module("textattack.models.wrappers")
    datasets: Any = importlib.import_module("textattack.datasets")
    wrapped = wrappers.HuggingFaceModelWrapper(model, tokenizer)
    attack = getattr(recipes, RECIPES[recipe]).build(wrapped)
    arguments = textattack.AttackArgs(num_examples=len(examples), disable_stdout=True)
    results = textattack.Attacker(attack, datasets.Dataset(*_texts(examples)), arguments).attack_dataset()
    kinds = [type(result).__name__ for result in results]
    survived, fooled = kinds.count("FailedAttackResult"), kinds.count("SuccessfulAttackResult")
    return {"clean_accuracy": (survived + fooled) / len(kinds), "robust_accuracy": survived / len(kinds)}


def _texts(examples: Sequence[Example]) -> tuple[list[tuple[Any, int]], list[str]]:
    """TextAttack's rows, and the names of their text columns."""
    if examples[0]["second"] is None:
        return [(example["first"], example["label"]) for example in examples], ["text"]
    columns = ["premise", "hypothesis"]
    pairs = [(OrderedDict(zip(columns, (e["first"], e["second"]), strict=True)), e["label"]) for e in examples]
    return pairs, columns
