"""The commands of a plan's pre-training, for scales that need a cluster, and options as a reader's words."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from megatron_alum.study.plan import Options, StudyPlan, resolved
from megatron_alum.study.pretraining import arguments, arm_options, start_options

LAUNCHER = "torchrun $LAUNCH pretrain_bert_alum.py"
"""LAUNCH holds torchrun's flags: nodes, processes, rendezvous (examples/launch_slurm.sh)"""


def commands(plan: StudyPlan, work: Path) -> Iterator[str]:
    """Common start and arms of every seed, in order; an arm waits for its start."""
    for seed in plan.seeds:
        yield f"# seed {seed}: the common start, then the arms, each after the start and all independent"
        yield f"{LAUNCHER} {shlex.join(arguments(start_options(plan, work, seed)))}"
        for arm in plan.arms:
            options = arm_options(plan, work, seed, arm, resolved(arm.options, None, None))
            yield f"{LAUNCHER} {shlex.join(arguments(options))}   # {arm.title or arm.name}"


def flags(options: Options) -> str:
    """Options as flags, places of this machine by the last part of their paths; "none" without any."""
    words = []
    for name, value in options.items():
        values = [_short(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
        words.append(f"--{name} {' '.join(values)}")
    return " ".join(words) or "none"


def _short(value: object) -> str:
    """A value as it would be typed; of an absolute path the last two parts."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    parts = Path(text).parts
    return "/".join(parts[-2:]) if text.startswith("/") else text
