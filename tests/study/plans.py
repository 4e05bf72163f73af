"""A plan small enough for the suite, made of examples/study/smoke.yaml."""

from dataclasses import replace
from pathlib import Path

from megatron_alum.study.plan import Arm, StudyPlan, read_plan
from megatron_alum.study.rows import Results
from megatron_alum.study.run import Study

FOLDER = Path(__file__).parents[2] / "examples" / "study"
AGAIN = "textbook-again"
"""a second arm with the options of textbook"""


def shipped(scale: str, work: Path) -> StudyPlan:
    """One of examples/study."""
    return read_plan(FOLDER / f"{scale}.yaml", places={"work": str(work), "data": "data", "encoder": "encoder"})


def small_plan(work: Path) -> StudyPlan:
    """Four arms, one seed, one fine-tuning each: standard, textbook twice, BERT+."""
    plan = shipped("smoke", work)
    standard, textbook, longer = (plan.arm(name) for name in ("standard", "textbook", "bert+"))
    again = Arm(AGAIN, textbook.options)
    arms = (replace(standard, curve=False), textbook, again, longer)
    return replace(plan, seeds=(1,), arms=arms, contrasts=((AGAIN, "textbook"),))


def run_small(work: Path) -> Results:
    """Run what is not done of `small_plan` in `work`."""
    results = Results(work / "smoke.jsonl", "smoke")
    Study(small_plan(work), work, results).run()
    return results
