"""Damaged checkpoints: found before they are read, reported, and skipped in favour of the previous one."""

import os
from pathlib import Path

import pytest

from megatron_alum.checkpoint.folder import find_checkpoint, list_iterations
from tests.training.runs import launch, launch_prepared, train_and_keep_stderr

OPTIONS = {"tensor_model_parallel_size": 2, "train_iters": 8}


def flip_a_bit(folder: Path) -> None:
    path = folder / "__1_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    os.truncate(path, path.stat().st_size - 1)


def remove_the_marker(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


def cut_the_marker_short(folder: Path) -> None:
    os.truncate(folder / "COMPLETE", 40)


def remove_a_file(folder: Path) -> None:
    (folder / "rng_00001.pt").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "__7_0.distcp").write_bytes(b"x")


DAMAGES = (flip_a_bit, truncate, remove_the_marker, cut_the_marker_short, remove_a_file, add_a_file)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_previous_checkpoint_is_found(run, damage):
    assert find_checkpoint(run).name == "iter_0000006"
    damage(run / "iter_0000006")
    assert find_checkpoint(run).name == "iter_0000004"
    with pytest.raises(ValueError, match="iter_0000006"):
        find_checkpoint(run / "iter_0000006")


def test_a_resume_falls_back_loudly_and_replaces_the_damaged_one(run, prefix):
    flip_a_bit(run / "iter_0000006")
    rows = launch_prepared(2, prefix, run, train_and_keep_stderr, load=run, exit_interval=6, **OPTIONS)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert find_checkpoint(run).name == "iter_0000006"
    assert not list(run.glob(".*iter*"))
    printed = "".join(Path(f"{run}-stderr-{rank}").read_text() for rank in (0, 1))
    assert printed.count("WARNING: ") == 1
    assert "__1_0.distcp must match its SHA-256" in printed and "Falling back to the checkpoint before it" in printed


def test_all_damaged_is_an_error_not_a_fresh_start(run, prefix):
    for iteration in list_iterations(run):
        remove_the_marker(run / f"iter_{iteration:07d}")
    with pytest.raises(ValueError, match="must hold a valid checkpoint, but all of its 3 are damaged"):
        launch(2, prefix, run, load=run, **OPTIONS)


def test_an_interrupted_save_is_no_checkpoint_and_is_cleared_away(run, prefix):
    (run / "iter_0000006").rename(run / ".tmp_iter_0000008")
    assert list_iterations(run) == [2, 4]
    launch(2, prefix, run, load=run, exit_interval=6, **OPTIONS)
    assert list_iterations(run) == [2, 4, 6] and not list(run.glob(".tmp*"))


def test_only_the_newest_are_kept_and_a_damaged_one_does_not_count(run, prefix):
    remove_the_marker(run / "iter_0000004")
    launch(2, prefix, run, load=run, keep_last=2, save_interval=1, **OPTIONS)
    whole = [i for i in list_iterations(run) if (run / f"iter_{i:07d}" / "COMPLETE").exists()]
    assert whole == [7, 8]
