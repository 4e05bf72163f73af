"""--overlap-param-gather: the run is the same to the bit, and nothing reads a weight that has not arrived."""

from functools import partial
from unittest import mock

import pytest
import torch
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from tests.helpers.distributed import run_ranks
from tests.training.runs import arguments, read_rows, train_quietly, without_timing

OVERLAPPED = {"use_distributed_optimizer": True, "overlap_grad_reduce": True}
BUCKET = 4_000
"""parameters of a bucket; megatron-core's own, 40 million, would hold the whole of a network for tests"""


class _LateGather:
    """Arrives when it is waited for."""

    def __init__(self, arrive) -> None:
        self.wait = arrive


def train_in_small_buckets(rank, world_size, argv):
    """A rank whose gathers, if they are not waited for at once, arrive at the last moment; until then other ranks'
    parts of the weights are NaN. Returns what it refused, and the number of buckets that were late.
    """
    from megatron_alum.training import optimizer

    gather, arrived = Group.start_param_sync, []

    def start_late(group, force_sync=False):
        if not group.ddp_config.overlap_param_gather:
            return gather(group, force_sync)
        for bucket in group.buckets:
            parts = bucket.param_data.chunk(world_size)
            for part in (*parts[:rank], *parts[rank + 1 :]):
                part.fill_(torch.nan)
        group.param_gather_handle = _LateGather(partial(_arrive, group, gather, arrived))
        group.param_gather_dispatched = True

    small = partial(optimizer.DistributedDataParallelConfig, bucket_size=BUCKET)
    with (
        mock.patch.object(Group, "start_param_sync", start_late),
        mock.patch.object(optimizer, "DistributedDataParallelConfig", small),
    ):
        return train_quietly(rank, world_size, argv), len(arrived)


def _arrive(group, gather, arrived):
    group.param_gather_handle = None
    gather(group, force_sync=True)
    arrived.append(group)


@pytest.mark.parametrize("options", [{}, {"bf16": True, "alum_perturb": "layer", "alum_perturb_layer": 1}])
def test_weights_are_waited_for_wherever_they_are_read(prefix, tmp_path, options):
    """Validation, the comparison of replicas and checkpoints are such places, too."""
    given = {"train_iters": 6, "eval_interval": 2, "eval_iters": 1, "split": "8,2,0", **OVERLAPPED, **options}
    given |= {"check_weight_hash_across_dp_replicas_interval": 2}
    plain, run = tmp_path / "plain", tmp_path / "run"
    late = {"overlap_param_gather": True}
    for save, part in ((plain, {}), (run, {"exit_interval": 3, **late}), (run, {"load": run, **late})):
        answers = run_ranks(2, train_in_small_buckets, arguments(prefix, save, **given, **part))
        assert [refused for refused, _ in answers] == [None, None]
        assert not part or min(buckets for _, buckets in answers) > 3 * 3, "one bucket has no order to get wrong"
    assert without_timing(read_rows(run)) == without_timing(read_rows(plain))
    assert read_rows(run, "validation.jsonl") == read_rows(plain, "validation.jsonl")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"overlap_grad_reduce": True}, "--use-distributed-optimizer"),
        ({"use_distributed_optimizer": True}, "--overlap-grad-reduce"),
        ({**OVERLAPPED, "torch_compile": True}, "--torch-compile"),
    ],
)
def test_what_it_needs_is_said(options, flag):
    with pytest.raises(ValueError, match=f"--overlap-param-gather must be false with.*{flag}"):
        parse_config(RunConfig, arguments("none", "run", overlap_param_gather=True, **options))
