"""A whole study in a minute: what its rows say, an arm that runs twice, and one that is killed and goes on."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest

from megatron_alum.study import pretraining
from megatron_alum.study.report import write_study
from megatron_alum.study.rows import SECONDS, read_rows
from megatron_alum.training.loop import train
from tests.helpers import warm
from tests.study.plans import AGAIN, run_small, small_plan

CLOCK = (SECONDS, "step-seconds", "tokens-per-second")
"""measures that differ between any two studies"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(plan, results) of the small study, run without a break."""
    work = tmp_path_factory.mktemp("study")
    return small_plan(work), run_small(work)


def without_clock(rows):
    """The rows that two studies with the same seeds share."""
    return [row for row in rows if row["measure"] not in CLOCK]


def values(results, **wanted):
    """[(measure, what it is of, value)] without names and clocks."""
    rows = without_clock(results.of(**wanted))
    return [(row["measure"], row.get("radius"), row.get("iteration"), row["value"]) for row in rows]


def test_two_runs_of_an_arm_are_equal(study):
    """Training, probes, fine-tuning and attack: an arm with the options of another has its numbers to the bit."""
    _, results = study
    for kind in ("train", "probe"):
        again = values(results, cell=f"{kind}/seed1/{AGAIN}")
        assert len(again) > 5 and again == values(results, cell=f"{kind}/seed1/textbook")
    scores = [values(results, cell=f"finetune/seed1/{arm}/custom/none/ft1") for arm in ("textbook", AGAIN)]
    assert len(scores[0]) == 3 and scores[0] == scores[1]


def test_all_arms_begin_with_the_same_weights_samples_masks_and_dropout(study):
    """The clean loss of an arm's first step is standard training's."""
    plan, results = study
    losses = {row["arm"]: row["value"] for row in results.of(measure="first-lm-loss") if "arm" in row}
    assert losses.keys() == {arm.name for arm in plan.arms}
    assert len(set(losses.values())) == 1


def test_the_longer_run_takes_its_steps_and_metrics_say_which_path_ran(study):
    _, results = study
    steps = {row["arm"]: row["value"] for row in results.of(measure="iterations") if "arm" in row}
    assert steps == {"standard": 10, "textbook": 10, AGAIN: 10, "bert+": 27}
    assert {row["arm"]: row["value"] for row in results.of(measure="ascent-steps")} == {
        **dict.fromkeys(("textbook", AGAIN), 1),
        **dict.fromkeys(("standard", "bert+"), 0),
    }
    assert all(0.5 < row["value"] < 1 for row in results.of(measure="fill"))  # real tokens of padded rows
    assert all(row["value"] in (0, 1) for row in results.of(measure="fused"))


def test_an_attack_is_worse_than_noise_of_its_radius(study):
    plan, results = study
    for radius in plan.probes.radii:
        for arm in plan.arms:
            noise, attacked = (
                results.of(measure=f"loss-{kind}", radius=radius, arm=arm.name)[0]["value"] for kind in ("noise", "pgd")
            )
            assert attacked > noise


def test_the_report_is_drawn_from_the_rows_alone(study, tmp_path):
    plan, results = study
    paths = write_study(plan, results, tmp_path)
    assert {path.name for path in paths} == {"smoke.html", "smoke.md", "smoke-steps.svg", "smoke-curve.svg"}
    page, twin = (next(path for path in paths if path.suffix == end).read_text() for end in (".html", ".md"))
    for text in (
        "Held-out loss",
        "Pilot",
        "One pair each: no difference",
        "How it was made",
        results.rows[-1]["commit"],
    ):
        assert text in page and text in twin
    clean = results.of(measure="loss-clean", arm="textbook")[0]["value"]
    assert f"{clean:.4f} (1 run)" in page and f"{clean:.4f} (1 run)" in twin
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_study(plan, results, tmp_path)] == before


def test_a_killed_study_continues_to_the_same_rows(study, tmp_path):
    """SIGKILL while the second arm trains, from the pilot's checkpoints and rows on: nothing is lost or twice."""
    _, straight = study
    work = tmp_path / "work"
    shutil.copytree(straight.path.parent, work)  # the shards, and what comes before the second arm
    kept = []
    for row in straight.rows:
        if row["cell"] == "train/seed1/textbook":
            break
        kept.append(row)
    (work / "smoke.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    for name in ("textbook", "textbook-hf", AGAIN, f"{AGAIN}-hf", "bert+", "bert+-hf"):
        shutil.rmtree(work / "seed1" / name)
    process = warm.start(run_small, work)
    first_checkpoint = work / "seed1" / "textbook" / "iter_0000015"
    deadline = time.monotonic() + 200
    while not first_checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read_rows(work / "smoke.jsonl") == kept and not (work / "seed1" / "textbook-hf").exists()
    again = run_small(work)
    assert f"  --load {work / 'seed1' / 'textbook'}\n" in (work / "log.txt").read_text()  # not from the common start
    assert [row["cell"] for row in again.rows] == [row["cell"] for row in straight.rows]
    assert without_clock(again.rows) == without_clock(straight.rows)
    assert len(again.of(measure=SECONDS)) == len(straight.of(measure=SECONDS))


def test_rows_alone_are_enough_to_go_on_elsewhere(study, tmp_path, capsys):
    """No network is left, only rows and texts (a vocabulary trained again may number its entries differently): those
    that the open cells start from are trained again, to the same rows. Where the rows are of another processor, here
    standard's start, the study says so.
    """
    _, straight = study
    work = tmp_path / "work"
    shutil.copytree(straight.path.parent, work, ignore=shutil.ignore_patterns("seed1", "pilot", "finetune"))
    kept = [row for row in straight.rows if row.get("arm") not in (AGAIN, "bert+")]
    kept += straight.of(cell=f"train/seed1/{AGAIN}")
    *_, moved = (row for row in kept if row["cell"] == "start/seed1" and row["measure"] == "held-out-loss")
    kept[kept.index(moved)] = {**moved, "value": moved["value"] + 0.125}
    (work / "smoke.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    again = run_small(work)
    for arm in (AGAIN, "bert+"):
        assert without_clock(again.of(arm=arm)) == without_clock(straight.of(arm=arm))
    assert len(again.rows) == len(straight.rows)
    said = [line for line in capsys.readouterr().out.splitlines() if "trained again" in line]
    losses = f"is {moved['value']:.6f}, but was {moved['value'] + 0.125:.6f}."
    assert len(said) == 1 and said[0].startswith(f"start/seed1 was trained again; its held-out loss {losses}")


def test_a_study_that_is_asked_to_stop_keeps_no_shortened_cell(study, tmp_path, monkeypatch):
    """SIGTERM makes a trainer save and return early, as it does here after 4 steps: its cell is not done."""
    _, straight = study
    work = tmp_path / "work"
    shutil.copytree(straight.path.parent, work, ignore=shutil.ignore_patterns("seed1", "pilot", "finetune"))
    (work / "smoke.jsonl").unlink()
    shorter = {"exit_interval": 4}
    monkeypatch.setattr(
        pretraining, "train", lambda config: train(replace(config, training=replace(config.training, **shorter)))
    )
    with pytest.raises(ValueError, match=f"asked to stop at iteration 4 of {small_plan(work).start_iters}. The same"):
        run_small(work)
    assert not (work / "smoke.jsonl").exists()
