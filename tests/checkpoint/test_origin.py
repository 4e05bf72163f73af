"""What --load may name, and going back to a named checkpoint: nothing is lost, and two branches are never mixed."""

import re
from pathlib import Path

import pytest

from megatron_alum.checkpoint.folder import list_iterations
from megatron_alum.checkpoint.origin import Origin, set_aside_newer, was_rolled_back_by_this_job
from tests.checkpoint.test_damage import flip_a_bit
from tests.training.runs import launch, launch_prepared, read_rows, train_and_keep_stderr, without_timing

OPTIONS = {"tensor_model_parallel_size": 2, "train_iters": 8}


def test_only_an_existing_empty_folder_is_a_fresh_start(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".nfs0001").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").touch()  # of a run that was killed before its first checkpoint
    for name in ("empty", "hidden", "begun"):
        assert Origin.of(str(tmp_path / name)).newest_readable() is None
    (tmp_path / "file").touch()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    for name, sentence in {
        "missing": "but .*missing does not exist. Check its spelling",
        "empty/iter_0000040": "does not exist",
        "file": "is a file",
        "weights": r"holds no checkpoint .* and is not empty \(config.json\).*--init-from",
        ".": r"is not empty \(begun, empty, file, ...\). Check its spelling",
    }.items():
        with pytest.raises(ValueError, match=r"--load must be the folder of a run or .*" + sentence):
            Origin.of(str(tmp_path / name))


def test_a_missing_path_is_an_error_before_anything_is_made(prefix, tmp_path):
    for load in (tmp_path / "run", tmp_path / "other"):
        with pytest.raises(ValueError, match="does not exist"):
            launch(1, prefix, tmp_path / "run", load=load, train_iters=2)
    assert not (tmp_path / "run").exists()


def test_a_name_through_a_link_is_the_checkpoint_behind_it(run, tmp_path):
    (run / "best").symlink_to("iter_0000004")
    origin = Origin.of(str(run / "best"))
    assert (origin.root.resolve(), origin.iteration) == (run.resolve(), 4) and origin.is_folder(run)


def test_going_back_continues_the_named_iteration_and_sets_the_rest_aside(run, prefix):
    before = read_rows(run)
    rows = launch_prepared(
        2, prefix, run, train_and_keep_stderr, load=run / "iter_0000002", lr=1e-4, exit_interval=5, **OPTIONS
    )
    assert without_timing(rows[:2]) == without_timing(before[:2])
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[2]["lr"] == pytest.approx(before[2]["lr"] / 10) and rows[2]["lm_loss"] == before[2]["lm_loss"]
    aside = run / "rolled_back_0001"
    assert list_iterations(run) == [2, 5] and list_iterations(aside) == [4, 6]
    assert read_rows(aside) == before and (run / "latest_checkpointed_iteration.txt").read_text() == "5\n"
    printed = Path(f"{run}-stderr-0").read_text()
    assert "--lr: 0.001 in " in printed and "Rolled back to iteration 2: the checkpoint(s) of iteration 4, 6" in printed
    assert [row["iteration"] for row in launch(2, prefix, run, load=run, lr=1e-4, **OPTIONS)] == list(range(1, 9))
    # What was set aside is intact: a new branch can start from it.
    branch = launch(2, prefix, run.parent / "branch", load=aside / "iter_0000006", **OPTIONS)
    assert [row["iteration"] for row in branch] == [7, 8] and list_iterations(aside) == [4, 6]


def test_a_named_checkpoint_that_is_damaged_is_not_replaced_by_another(run, prefix):
    flip_a_bit(run / "iter_0000004")
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(ValueError, match=r"iter_0000004/__1_0.distcp must match its SHA-256"):
        launch(2, prefix, run, load=run / "iter_0000004", **OPTIONS)
    assert sorted(path.name for path in run.iterdir()) == before


def test_every_rollback_has_its_own_folder(tmp_path):
    for number, newer in enumerate(([40, 60], [50], []), start=1):
        for iteration in (20, *newer):
            (tmp_path / f"iter_{iteration:07d}").mkdir(exist_ok=True)
        (tmp_path / "metrics.jsonl").write_text(f"{number}\n")
        said = set_aside_newer(tmp_path, 20)
        assert list_iterations(tmp_path) == [20]
        assert list_iterations(tmp_path / f"rolled_back_{number:04d}") == newer
        assert (said is None) == (not newer)
    assert (tmp_path / "rolled_back_0001" / "metrics.jsonl").read_text() == "1\n"


@pytest.mark.parametrize("restarted", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_job_does_not_roll_back_again(tmp_path, monkeypatch, restarted):
    """The same command line, started again by torchrun or Slurm: it continues from its own progress."""
    assert not was_rolled_back_by_this_job(tmp_path, 20)
    set_aside_newer(tmp_path, 20)
    assert not was_rolled_back_by_this_job(tmp_path, 20)  # a second rollback by a user is intended
    monkeypatch.setenv(restarted, "1")
    assert was_rolled_back_by_this_job(tmp_path, 20) and not was_rolled_back_by_this_job(tmp_path, 40)
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job
    assert not was_rolled_back_by_this_job(tmp_path, 20)
    (tmp_path / "rolled_back.json").write_text("{")
    assert not was_rolled_back_by_this_job(tmp_path, 20)


def train_restarted(rank, world_size, argv):
    """A rank of a job that torchrun has restarted; its agent is the parent, as before."""
    import os

    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    try:
        return train_and_keep_stderr(rank, world_size, argv)
    finally:
        del os.environ["TORCHELASTIC_RESTART_COUNT"]


def test_a_restart_on_the_new_branch_continues_from_its_newest_checkpoint(run, prefix):
    named = {"load": run / "iter_0000002", **OPTIONS}
    launch(2, prefix, run, **named, exit_interval=5)
    rows = launch_prepared(2, prefix, run, train_restarted, **named)
    assert [row["iteration"] for row in rows] == list(range(1, 9)) and list_iterations(run) == [2, 5, 8]
    assert not (run / "rolled_back_0002").exists()


def test_a_finished_run_says_so_and_changes_nothing(run, prefix):
    """Up to --exit-interval or to --train-iters; the sentence names what would let it continue."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    launch_prepared(2, prefix, run, train_and_keep_stderr, load=run, exit_interval=6, **OPTIONS)
    assert re.search(
        r"\nNothing to do: .*iter_0000006 has iteration 6 of 6 \(--exit-interval\)\. Train on with a larger --exit-",
        Path(f"{run}-stderr-0").read_text(),
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
