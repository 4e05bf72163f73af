"""The report's sentences and tables against rows made by hand."""

import pytest

from megatron_alum.study.comparisons import all_comparisons
from megatron_alum.study.plan import Arm, Downstream, Probes, StudyPlan
from megatron_alum.study.report import different_starts, made_section, summary_sections
from megatron_alum.study.rows import Results

ARMS = (Arm("standard", {"alum-alpha": 0}), Arm("random", {}), Arm("textbook", {}, title="ALUM"))
PLAN = StudyPlan(
    scale="made",
    question="",
    corpus={},
    other_text={},
    pretraining={},
    start_iters=10,
    arm_iters=10,
    curve_points=1,
    seeds=(1, 2),
    arms=ARMS,
    probes=Probes(radii=()),
    contrasts=(("textbook", "random"),),
    downstream=(Downstream("sst2", {}, (1,), {"alum": {}}, attacked=100),),
)
LOSSES = {"standard": (5.0, 6.0), "random": (5.1, 6.3), "textbook": (4.0, 5.0)}
SCORES = {"standard": (0.50, 0.60), "random": (0.50, 0.62), "textbook": (0.55, 0.59)}


def place(seconds):
    return {"measure": "seconds", "value": seconds, "commit": "c", "machine": "m", "threads": 1}


@pytest.fixture
def results(tmp_path):
    """Losses and scores of two seeds, and the times of a pilot with two trials."""
    found = Results(tmp_path / "made.jsonl", "made")
    for seed in PLAN.seeds:
        for arm in LOSSES:
            rows = [{"measure": f"loss-{text}", "value": LOSSES[arm][seed - 1]} for text in ("clean", "other-text")]
            found.add(f"probe/seed{seed}/{arm}", [*rows, place(60)], seed=seed, arm=arm)
            row = {"measure": "accuracy", "value": SCORES[arm][seed - 1], "examples": 400}
            common = {"seed": seed, "arm": arm, "task": "sst2", "method": "none", "finetune_seed": 1, "iteration": 0}
            found.add(f"finetune/seed{seed}/{arm}/sst2/none/ft1", [row, place(60)], **common)
    for trial in ("standard", "alpha1-radius0.1"):
        found.add(f"pilot/seed1/{trial}", [place(60)])
    found.add("pilot/seed1", [place(120)])
    return found


def test_what_came_out(results):
    """By hand: textbook differs by -1.0 in both seeds, an interval of no width; random by +0.1 and +0.3, whose interval
    is 0.2 +- 12.706 * 0.1."""
    (found,) = summary_sections(list(all_comparisons(PLAN, results)))
    assert found.before[0].startswith(
        "Held-out loss: 2 of 6 intervals exclude 0. Fine-tuning: 0 of 3 intervals exclude 0. Where nothing makes"
    )
    assert found.table is not None and found.table.rows == (
        (
            "Held-out loss",
            "clean, other text",
            "Better than standard: textbook (by 1.0000 nats, n 2); no difference from standard shown in the other 1 of "
            "2.",
        ),
        ("sst2 after pre-training", "accuracy (%)", "No difference from standard shown in 2 of 2."),
        ("Held-out loss against the controls", "clean, other text", "No difference from the control shown in 1 of 1."),
        ("sst2 against the controls", "accuracy (%)", "No difference from the control shown in 1 of 1."),
    )
    assert not list(summary_sections([]))


def test_tables_of_differences(results):
    held_out, after, control, _ = all_comparisons(PLAN, results)
    assert held_out.sections[1].table.rows == (
        ("random", *["+0.2000 [-1.0706, +1.4706] (2 pairs)"] * 2),
        ("ALUM (textbook)", *["-1.0000* [-1.0000, -1.0000] (2 pairs)"] * 2),
    )
    assert control.sections[0].table.rows == (("textbook - random", *["-1.2000 [-2.4706, +0.0706] (2 pairs)"] * 2),)
    assert "of the 400 development examples (standard error up to 2.5 points)" in after.sections[0].before[0]


def test_arms_of_a_seed_that_started_from_other_networks_are_named(results):
    for arm, loss in (("standard", 5.25), ("random", 5.25), ("textbook", 5.125)):
        for seed in PLAN.seeds:
            row = {"measure": "first-lm-loss", "value": loss if seed == 1 else 6.0}
            results.add(f"train/seed{seed}/{arm}", [row], seed=seed, arm=arm)
    (said,) = different_starts(results)
    assert "arms of seed 1" in said and "5.2500 nats (standard, random); 5.1250 nats (textbook)" in said


def test_time_is_counted_once_and_open_cells_are_counted(results):
    """12 cells and 2 trials of a minute; of 2 (start + 3 (train + probe + finetune) + best) cells, 10 are open."""
    section = made_section(PLAN, results)
    assert section.before[0].startswith("The times of 14 cells add up to 14 min")
    assert section.before[0].endswith("Not done yet: 10 cells.")
