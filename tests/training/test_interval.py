"""Means of a logged interval, against numbers worked out by hand."""

import pytest
import torch

from megatron_alum.training.step import StepResult
from tests.helpers.distributed import run_ranks

NAN = float("nan")


def means(rank, world_size, logged):
    """Of iterations that log `logged[iteration][rank]` = (phase, {name: value})."""
    from megatron_alum.parallel import initialize
    from megatron_alum.training.metrics import Interval

    interval = Interval(initialize(tensor_parallel_size=1, timeout_seconds=60))
    for iteration in logged:
        phase, values = iteration[rank]
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        interval.add(StepResult(phase, tensors, learning_rate=0.0, grad_norm=torch.tensor(1.0)))
    first = interval.means()
    interval.add(StepResult("standard", {"lm_loss": torch.tensor(1.0)}, learning_rate=0.0, grad_norm=torch.tensor(1.0)))
    return first, interval.means()


def test_one_nan_leaves_one_iteration_out():
    """On one of two ranks, in the second of three iterations; shares of the ranks add up."""
    logged = [
        [("standard", {"lm_loss": 1.0, "nsp_loss": 0.25}), ("standard", {"lm_loss": 2.0, "nsp_loss": 0.5})],
        [("alum", {"lm_loss": 8.0, "nsp_loss": 0.5, "alum_kl": 4.0}), ("alum", {"lm_loss": NAN, "nsp_loss": 0.5})],
        [("alum", {"lm_loss": 2.0, "nsp_loss": 1.0}), ("alum", {"lm_loss": 3.0, "nsp_loss": 1.0, "alum_kl": 1.0})],
    ]
    for found, next_one in run_ranks(2, means, logged):
        assert found == {
            "lm_loss": pytest.approx((3.0 + 5.0) / 2),
            "nsp_loss": pytest.approx((0.75 + 1.0 + 2.0) / 3),
            "alum_kl": pytest.approx((4.0 + 1.0) / 2),
        }
        assert next_one == {"lm_loss": pytest.approx(2.0)}


def test_statistics_leave_the_same_iteration_out():
    sums = torch.rand(6).tolist()
    logged = [
        [("alum", {"alum_kl": NAN, "perturbation_sums": [NAN] * 6})],
        [("alum", {"alum_kl": 2.0, "perturbation_sums": sums})],
    ]
    ((found, _),) = run_ranks(1, means, logged)
    ((expected, _),) = run_ranks(1, means, logged[1:])
    assert found == expected and found["ascent_ratio"] is not None


def test_an_interval_without_a_finite_value_has_none():
    ((found, _),) = run_ranks(1, means, [[("standard", {"lm_loss": NAN})]] * 2)
    assert found == {"lm_loss": None}
