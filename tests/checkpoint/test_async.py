"""Saving in the background: the same checkpoints, the same run, and failures that are not lost."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from megatron_alum.checkpoint.folder import find_checkpoint, list_iterations
from megatron_alum.checkpoint.load import whole_sharded_state
from megatron_alum.checkpoint.save import CheckpointContent, CheckpointSaver
from tests.helpers.distributed import run_ranks
from tests.training.runs import (
    arguments,
    largest_difference,
    launch,
    launch_prepared,
    read_rows,
    train_quietly,
    train_with_small_files,
    without_timing,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = {"tensor_model_parallel_size": 2, "train_iters": 8}


def test_checkpoints_are_those_of_a_foreground_save(finished, prefix, tmp_path):
    """Training continues and changes the weights while a save is in flight; the stored ones must be the earlier
    ones."""
    run = tmp_path / "run"
    rows = launch(2, prefix, run, async_save=True, save_interval=2, exit_interval=6, **OPTIONS)
    assert without_timing(rows) == without_timing(read_rows(finished))
    assert list_iterations(run) == [2, 4, 6]
    resumed = {}
    for name, source in (("foreground", finished), ("background", run)):
        rows = launch(2, prefix, tmp_path / name, load=source, exit_interval=7, **OPTIONS)
        resumed[name] = without_timing(rows)
    assert resumed["background"] == resumed["foreground"]


def test_an_earlier_checkpoint_of_a_background_save_continues_bit_for_bit(finished, prefix, tmp_path):
    run = tmp_path / "run"
    launch(2, prefix, run, async_save=True, save_interval=2, exit_interval=6, **OPTIONS)
    for later in (4, 6):
        (run / f"iter_{later:07d}" / "COMPLETE").unlink()
    rows = launch(2, prefix, run, load=run, exit_interval=6, **OPTIONS)
    assert without_timing(rows) == without_timing(read_rows(finished))
    assert find_checkpoint(run).name == "iter_0000006"


def test_a_background_save_of_a_split_optimizer_continues_bit_for_bit(prefix, tmp_path):
    """What is written are parts of tensors that training then changes: the options of bert_large.yaml on four ranks,
    each with a quarter of the optimizer."""
    options = {"train_iters": 8, "bf16": True, "use_distributed_optimizer": True, "overlap_grad_reduce": True}
    recipe = yaml.safe_load((EXAMPLES / "bert_large.yaml").read_text())
    assert all(recipe[name.replace("_", "-")] for name in (*options, "async_save") if name != "train_iters")
    straight = launch(4, prefix, tmp_path / "straight", **options)
    run = tmp_path / "run"
    launch(4, prefix, run, async_save=True, save_interval=2, exit_interval=4, **options)
    (run / "iter_0000004" / "COMPLETE").unlink()
    rows = launch(4, prefix, run, load=run, **options)
    assert without_timing(rows) == without_timing(straight)
    plain = launch(1, prefix, tmp_path / "plain", train_iters=8, bf16=True)
    worst = largest_difference(rows, plain, ("lm_loss", "nsp_loss"))
    assert max(worst.values()) < 0.05, worst  # other dropout masks


def test_a_failure_in_the_background_ends_the_run_on_all_ranks(prefix, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(OSError, match="checkpoint of iteration 2 could not be written"):
        launch_prepared(2, prefix, run, train_with_small_files, async_save=True, save_interval=2, **OPTIONS)
    assert list_iterations(run) == []
    assert not list(run.glob(".*iter*"))


def save_beside_an_accelerator(rank, world_size, root, in_background):
    """One save where torch believes it has an accelerator; an error if the writer prepares to copy on one of its
    streams."""
    import torch.distributed.checkpoint.filesystem as writer

    def refuse(*_args, **_kwargs):
        raise OSError("a stream was asked for")

    overlapping, writer._OverlappingCpuLoader = writer._OverlappingCpuLoader, refuse
    setattr(torch, torch._C._get_privateuse1_backend_name(), SimpleNamespace(is_available=lambda: True))
    try:
        saver = CheckpointSaver(root, keep_last=0, in_background=in_background)
        saver.prepare()
        tensors = whole_sharded_state({"weight": torch.ones(3)})
        saver.save(1, CheckpointContent(sharded=tensors, rng={}, config={}, tokenizer=None))
        saver.close()
    finally:
        writer._OverlappingCpuLoader = overlapping
        delattr(torch, torch._C._get_privateuse1_backend_name())


def test_a_background_thread_asks_nothing_of_the_accelerator(tmp_path):
    """Its current device is the first one, whichever is the rank's, and there is nothing left to copy from it."""
    with pytest.raises(OSError, match="a stream was asked for"):
        run_ranks(1, save_beside_an_accelerator, tmp_path / "foreground", False)
    run_ranks(1, save_beside_an_accelerator, tmp_path / "background", True)
    assert find_checkpoint(tmp_path / "background").name == "iter_0000001"


def train_on_a_slow_disk(rank, world_size, argv):
    """One rank whose saves take longer than the iterations between them; notes how many are written at once and how
    many copies of the weights exist.
    """
    import threading
    import time
    import weakref

    from megatron.core.dist_checkpointing.dict_utils import nested_values

    from megatron_alum.checkpoint.save import CheckpointSaver

    write, copies, most = CheckpointSaver._write, weakref.WeakSet(), {"writers": 0, "copies": 0}

    def slow(self, iteration, content, sharded, common):
        largest = max((t.data for t in nested_values(sharded) if t.data is not None), key=lambda data: data.numel())
        copies.add(largest)
        del largest
        time.sleep(0.4)
        most["copies"] = max(most["copies"], len(copies))
        writers = [thread for thread in threading.enumerate() if getattr(thread, "_target", None) == self._guarded]
        most["writers"] = max(most["writers"], len(writers))
        write(self, iteration, content, sharded, common)

    CheckpointSaver._write = slow
    try:
        assert train_quietly(rank, world_size, argv) is None
    finally:
        CheckpointSaver._write = write
    return most


@pytest.mark.slow
def test_a_slow_disk_never_has_two_saves_in_flight(prefix, tmp_path):
    run = tmp_path / "run"
    argv = arguments(prefix, run, async_save=True, save_interval=1, **OPTIONS)
    assert run_ranks(2, train_on_a_slow_disk, argv) == [{"writers": 1, "copies": 1}] * 2
    assert list_iterations(run) == [6, 7, 8]
