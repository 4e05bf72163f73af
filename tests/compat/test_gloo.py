"""Gradients of a GPU through gloo: no list of tensors is handed to it, and the sums are those of the list."""

from unittest import mock

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, param_and_grad_buffer
from megatron.core.transformer import TransformerConfig
from torch.distributed import distributed_c10d

from megatron_alum.compat import reduce_one_bucket_at_a_time
from megatron_alum.parallel import initialize
from tests.helpers.distributed import run_ranks


def _summed_gradients(rank: int, world_size: int, one_at_a_time: bool, options: dict) -> list[list[float]]:
    """Gradients of two layers, one bucket each, over ranks whose inputs are 1 and 2; gloo refuses lists as on a GPU."""
    initialize(tensor_parallel_size=1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    config.calculate_per_token_loss = True
    layout = DistributedDataParallelConfig(grad_reduce_in_fp32=True, bucket_size=1, **options)
    refusal = RuntimeError("ProcessGroupGloo::allreduce_coalesced: unsupported device type cuda")
    manager = param_and_grad_buffer._coalescing_manager
    with (
        mock.patch.object(distributed_c10d, "AllreduceCoalescedOptions", side_effect=refusal),
        mock.patch.object(param_and_grad_buffer, "_coalescing_manager", manager),
    ):
        if one_at_a_time:
            reduce_one_bucket_at_a_time()
        wrapped = DistributedDataParallel(config, layout, model)
        wrapped(torch.full((1, 3), 1.0 + rank)).sum().backward()
        wrapped.finish_grad_sync()
    return [parameter.main_grad.flatten().tolist() for parameter in model.parameters()]


def test_gradients_are_summed_one_bucket_at_a_time():
    expected = [[6.0] * 6, [9.0] * 4]  # 2 x (1 + 2) and 3 x (1 + 2)
    assert run_ranks(2, _summed_gradients, True, {}) == [expected, expected]


def test_megatron_core_hands_gloo_a_list_otherwise():
    with pytest.raises(RuntimeError, match="unsupported device type cuda"):
        run_ranks(2, _summed_gradients, False, {})


def test_overlapped_sums_are_never_left_unwaited():
    with pytest.raises(AssertionError, match="nobody would wait"):
        run_ranks(2, _summed_gradients, True, {"overlap_grad_reduce": True})
