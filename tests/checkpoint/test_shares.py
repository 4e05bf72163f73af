"""What a rank writes, reads and receives of a checkpoint is its share, whichever optimizer the run has."""

import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from megatron_alum.checkpoint.folder import find_checkpoint
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.planning.memory import checkpoint_bytes
from megatron_alum.training.optimizer_state import rectangles
from tests.helpers.distributed import run_ranks
from tests.training.runs import arguments


def boxes_filled(shape, start, end):
    """An array in which each element counts the boxes it lies in; and the elements in the order of the boxes."""
    filled, order = torch.zeros(shape, dtype=torch.int64), []
    index = torch.arange(math.prod(shape)).view(shape)
    for offset, size in rectangles(shape, start, end):
        box = tuple(slice(a, a + b) for a, b in zip(offset, size, strict=True))
        assert min(size) > 0 and all(part.stop <= whole for part, whole in zip(box, shape, strict=True))
        filled[box] += 1
        order += index[box].flatten().tolist()
    return filled.flatten().tolist(), order


@pytest.mark.parametrize("shape", [(7,), (5, 4), (1, 6), (6, 1), (3, 4, 2), (2, 3, 1, 4)])
def test_rectangles_tile_a_range_in_order(shape):
    for start, end in itertools.combinations_with_replacement(range(math.prod(shape) + 1), 2):
        filled, order = boxes_filled(shape, start, end)
        assert order == list(range(start, end)), (start, end)
        assert filled == [int(start <= i < end) for i in range(len(filled))]


def test_a_matrix_takes_three_rectangles_at_most():
    rng = random.Random(0)
    for _ in range(300):
        shape = rng.randint(1, 50), rng.randint(1, 50)
        start, end = sorted(rng.randint(0, math.prod(shape)) for _ in range(2))
        assert len(list(rectangles(shape, start, end))) <= 3


def save_and_load(rank, world_size, argv):
    """Bytes of this rank's files, numbers that other ranks sent it for the save, bytes it reads to load, whether the
    loaded optimizer is the saved one."""
    import torch.distributed as dist

    from megatron_alum.checkpoint.save import CheckpointSaver
    from megatron_alum.parallel import initialize
    from megatron_alum.training.optimizer import apply_gradients
    from megatron_alum.training.optimizer_state import STATES
    from megatron_alum.training.state import build_state, checkpoint_content, describe, load_into

    config = parse_config(RunConfig, argv)
    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    state = build_state(config, groups)
    for number, parameter in enumerate(state.network.parameters()):
        parameter.main_grad.copy_(torch.sin(torch.arange(parameter.numel()) * 0.37 + number).view_as(parameter))
    apply_gradients(state.optimizer, clip_grad=1.0)

    received, gather = [0], dist.all_gather

    def counted(outputs, *args, **kwargs):
        received[0] += sum(output.numel() for output in outputs)
        return gather(outputs, *args, **kwargs)

    saver = CheckpointSaver(config.checkpoint.save, keep_last=0, in_background=False, copies=groups.dp)
    saver.prepare()
    dist.all_gather = counted
    try:
        saver.save(1, checkpoint_content(state))
    finally:
        dist.all_gather = gather
    folder = find_checkpoint(config.checkpoint.save)
    written = sum(path.stat().st_size for path in folder.glob(f"__{rank}_*.distcp"))

    fresh = build_state(config, groups)
    before = bytes_read()
    load_into(fresh, folder, {**describe(state), "iteration": 1})
    read = bytes_read() - before
    equal = all(map(torch.equal, state.network.parameters(), fresh.network.parameters()))
    (saved,), (loaded,) = state.optimizer.chained_optimizers, fresh.optimizer.chained_optimizers
    for ours, theirs in zip(saved.optimizer.param_groups, loaded.optimizer.param_groups, strict=True):
        for a, b in zip(ours["params"], theirs["params"], strict=True):
            moments = saved.optimizer.state[a], loaded.optimizer.state[b]
            equal &= torch.equal(a, b) and all(torch.equal(moments[0][name], moments[1][name]) for name in STATES[1:])
            equal &= float(moments[0]["step"]) == float(moments[1]["step"]) == 1.0
    saver.close()
    return written, received[0], read, equal, sum(p.numel() for p in state.network.parameters())


def bytes_read() -> int:
    """Bytes read by this process, from files or the page cache."""
    return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line).split()[1])


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "replicated"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_every_rank_writes_and_reads_its_share(prefix, tmp_path, distributed, bf16):
    argv = arguments(prefix, tmp_path / "run", hidden_size=128, use_distributed_optimizer=distributed, bf16=bf16)
    answers = run_ranks(4, save_and_load, argv)
    config, parameters = parse_config(RunConfig, argv), answers[0][-1]
    # Weights and three float32 numbers each; a float32 network without shards is its own master.
    whole = parameters * (2 + 12 if bf16 else 4 + 12 if distributed else 4 + 8)
    assert checkpoint_bytes(config, vocab_size=100) == whole
    assert sum(answer[0] for answer in answers) == pytest.approx(whole, rel=0.1)  # and headers
    for written, received, read, equal, _ in answers:
        assert equal
        assert received < 0.01 * parameters
        assert 0.15 * whole < written < 0.35 * whole
        assert read < 0.5 * whole + 500_000  # chunks that overlap with the share are read completely


def saved_where_listings_lag(rank, world_size, argv):
    """A run whose ranks do not see the files that others write."""
    from megatron_alum.checkpoint import folder as layout
    from tests.training.runs import train_quietly

    listed = layout.content_files
    layout.content_files = lambda _folder: []
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        layout.content_files = listed


def test_a_listing_that_lags_leaves_no_file_out(prefix, tmp_path):
    argv = arguments(prefix, tmp_path / "run", train_iters=2)
    assert run_ranks(2, saved_where_listings_lag, argv) == [None, None]
    assert find_checkpoint(tmp_path / "run").name == "iter_0000002"  # compares the files with COMPLETE
