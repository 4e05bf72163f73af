"""Metrics as the field computes them.

    accuracy, mcc, f1_binary, pearson, spearman    scikit-learn and scipy; GLUE
    entity_f1                                      seqeval's default, equal to the conlleval script: entities that begin
                                                   with I- count as well; entity_f1_strict demands valid IOB2, or
                                                   valid IOBES where E- or S- occur in the task's tags
    spans                                          squad.py

Values are fractions in [0, 1] (correlations in [-1, 1]); SQuAD's are percentages, as its official scripts print them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_alum.config.extras import require

Numbers = Sequence[float] | np.ndarray

FLAT_METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": lambda gold, predicted: float(_library("sklearn.metrics").accuracy_score(gold, predicted)),
    "mcc": lambda gold, predicted: float(_library("sklearn.metrics").matthews_corrcoef(gold, predicted)),
    "f1_binary": lambda gold, predicted: float(
        _library("sklearn.metrics").f1_score(gold, predicted, pos_label=1, zero_division=0)
    ),
    "pearson": lambda gold, predicted: _correlation(_library("scipy.stats").pearsonr, gold, predicted),
    "spearman": lambda gold, predicted: _correlation(_library("scipy.stats").spearmanr, gold, predicted),
}


def flat_metrics(names: Sequence[str], gold: Numbers, predicted: Numbers) -> dict[str, float]:
    """{name: value} of one label or score an example.

    Raises: ValueError for unequal lengths or none.
    """
    if len(gold) != len(predicted) or len(gold) == 0:
        raise ValueError(
            f"`predicted` must have one entry an example, but has {len(predicted)} for {len(gold)} instead."
        )
    return {name: FLAT_METRICS[name](gold, predicted) for name in names}


def entity_metrics(gold: list[list[str]], predicted: list[list[str]], names: Sequence[str] = ()) -> dict[str, float]:
    """Entity-level precision, recall and F1 over all sentences, by the conlleval rule, and the strict F1 beside it.

    `names` are all tags of the task: a split may happen to hold none that tells the scheme.
    """
    require("seqeval")
    from seqeval import metrics
    from seqeval.scheme import IOB2, IOBES

    with_ends = any(tag[0] in "ES" for tags in (*gold, *predicted, names) for tag in tags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns for classes without predictions, which count as 0
        return {
            "entity_f1": float(metrics.f1_score(gold, predicted)),
            "entity_precision": float(metrics.precision_score(gold, predicted)),
            "entity_recall": float(metrics.recall_score(gold, predicted)),
            "entity_f1_strict": float(
                metrics.f1_score(gold, predicted, mode="strict", scheme=IOBES if with_ends else IOB2)
            ),
        }


def _library(name: str) -> Any:
    """A module of the extra "finetune", imported when a metric needs it: whoever only reads results does not."""
    require(name.split(".")[0])
    return importlib.import_module(name)


def _correlation(function: Callable[..., Any], gold: Numbers, predicted: Numbers) -> float:
    """The correlation, 0 when either side is constant (it is undefined there; GLUE's scorer prints NaN)."""
    if np.ptp(np.asarray(gold)) == 0 or np.ptp(np.asarray(predicted)) == 0:
        return 0.0
    return float(function(gold, predicted)[0])
