"""Robustness of a fine-tuned classifier: PGD on the embeddings, and word substitution through TextAttack.

PGD (Madry et al. 2018, arXiv 1706.06083): from a uniform start in the L-infinity ball of radius r around the word
embeddings, `num_steps` steps of 2.5 r / num_steps along the sign of the gradient of the label's cross-entropy,
projected onto the ball. An example counts as robust if its prediction is right before the attack and at every step of
it. Pads stay untouched.

Word substitution uses TextAttack's published recipes; the library is optional. What they fetch when first used, and
find in its cache and in NLTK's later: TextFooler (Jin et al. 2019) word vectors and the Universal Sentence Encoder, BAE
(Garg and Ramakrishnan 2020) a BERT and that encoder, PWWS (Ren et al. 2019) WordNet, DeepWordBug (Gao et al. 2018),
which swaps characters, NLTK's stop words alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megatron_alum.alum import frozen
from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.tasks import Task
from megatron_alum.finetune.methods.embeddings import EmbeddingSplit, perturbable

STEP_FACTOR = 2.5  # Madry et al.: steps long enough to reach the boundary from any start
RECIPES = {
    "textfooler": "TextFoolerJin2019",
    "bae": "BAEGarg2019",
    "pwws": "PWWSRen2019",
    "deepwordbug": "DeepWordBugGao2018",
}


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


def check_word_attack(task: Task) -> None:
    """Raises: ValueError when TextAttack is not installed, or for a task that is no classification."""
    if task.kind != "classification":
        raise ValueError(f"--word-attack must be used on classification tasks, but {task.name} is {task.kind} instead.")
    if importlib.util.find_spec("textattack") is None:
        raise ValueError("--word-attack needs the TextAttack library, which is not installed: pip install textattack.")


def word_attack(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], recipe: str
) -> dict[str, float]:
    """{"clean_accuracy", "robust_accuracy"} under a TextAttack recipe.

    Raises: ValueError as `check_word_attack`, and when the library lacks its data.
    """
    check_word_attack(task)
    try:  # the import looks for stop words, too
        textattack, recipes, wrappers, datasets = _textattack()
        wrapped = wrappers.HuggingFaceModelWrapper(model.eval(), tokenizer)
        attack = getattr(recipes, RECIPES[recipe]).build(wrapped)
        arguments = textattack.AttackArgs(num_examples=len(examples), disable_stdout=True)
        results = textattack.Attacker(attack, datasets.Dataset(*_texts(examples)), arguments).attack_dataset()
    except (LookupError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--word-attack {recipe} must find its data, but does not ({reason}). Fetch them once."
        ) from None
    kinds = [type(result).__name__ for result in results]
    survived, fooled = kinds.count("FailedAttackResult"), kinds.count("SuccessfulAttackResult")
    return {"clean_accuracy": (survived + fooled) / len(kinds), "robust_accuracy": survived / len(kinds)}


def _textattack() -> list[Any]:
    """The library's modules that an attack needs."""
    names = ("textattack", "textattack.attack_recipes", "textattack.models.wrappers", "textattack.datasets")
    with _flair_in_name_only():
        return [importlib.import_module(name) for name in names]


class _Nothing(types.ModuleType):
    """A module that has a class of every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _flair_in_name_only() -> Iterator[None]:
    """TextAttack imports flair, which the current transformers breaks, for taggers that none of `RECIPES` uses."""
    names = ("flair", "flair.data", "flair.models")
    stand_ins = {name: _Nothing(name) for name in names if name not in sys.modules}
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _texts(examples: Sequence[Example]) -> tuple[list[tuple[Any, int]], list[str]]:
    """TextAttack's rows, and the names of their text columns."""
    if examples[0]["second"] is None:
        return [(example["first"], example["label"]) for example in examples], ["text"]
    columns = ["premise", "hypothesis"]
    pairs = [(OrderedDict(zip(columns, (e["first"], e["second"]), strict=True)), e["label"]) for e in examples]
    return pairs, columns
