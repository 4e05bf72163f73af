"""The random start and the perturbation after the ascent are the same on every layout, token by token."""

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments

DELTA_TOLERANCE = 1e-5
"""absolute; delta is of the order of epsilon = 0.05"""


def perturbations(rank, world_size, argv):
    """(tp rank, sequence parallel?, {sample: random start [S(/tp), H]}, {sample: delta}) of iteration 11."""
    from megatron_alum.config.cli import parse_config
    from megatron_alum.config.run import RunConfig
    from megatron_alum.data.loader import BatchPlan
    from megatron_alum.parallel import initialize
    from megatron_alum.training import objective as module
    from megatron_alum.training.control import Control
    from megatron_alum.training.state import build_state
    from megatron_alum.training.step import train_step

    config = parse_config(RunConfig, argv)
    sizes = {"tensor_parallel_size": config.parallel.tensor_model_parallel_size}
    groups = initialize(**sizes, sequence_parallel=config.parallel.sequence_parallel, timeout_seconds=60)
    state = build_state(config, groups)
    plan = BatchPlan(config.training.micro_batch_size, 8, groups.dp_rank, groups.dp_size)
    indices = plan.micro_batches(80)
    batches = [state.datasets.train.batch(next(indices)) for _ in range(plan.num_micro_batches)]
    micro_batches = [module.MicroBatch.load(batch, config.alum, groups.device) for batch in batches]
    starts, deltas = {}, {}
    ascend = module.AlumRegularizer.ascend

    def noting(self, x, *args, noise_key, mask, **kwargs):
        start = self.kernels.perturb(x.detach(), noise_key, None, step_size=0.0, epsilon=1.0, mask=mask)[1]
        found = ascend(self, x, *args, noise_key=noise_key, mask=mask, **kwargs)
        for column, sample in enumerate(noise_key.sample_index.tolist()):
            starts[sample], deltas[sample] = start[:, column].clone(), found.delta[:, column].clone()
        return found

    module.AlumRegularizer.ascend = noting
    try:
        control = Control(groups, timeout_seconds=60)
        counts = module.global_counts(control.agree(module.local_counts(micro_batches), save_failed=False).counts)
        train_step(state, micro_batches, counts, 11)
    finally:
        module.AlumRegularizer.ascend = ascend
    return groups.tp_rank, groups.sequence_parallel, starts, deltas


def joined(answers, part):
    """{sample: [S, H]} over all ranks: parts of the sequence side by side, copies checked to be equal."""
    found = {}
    for answer in sorted(answers, key=lambda answer: answer[0]):
        for sample, tensor in answer[part].items():
            if sample not in found:
                found[sample] = tensor
            elif answer[1]:
                found[sample] = torch.cat((found[sample], tensor))
            else:
                assert torch.equal(found[sample], tensor), "tensor-parallel ranks disagree"
    return found


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (2, {"tensor_model_parallel_size": 2}),
        (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        (2, {}),
        (1, {"micro_batch_size": 8}),
    ],
    ids=["tp2", "tp2-sp", "dp2", "one-micro-batch"],
)
def test_start_is_bit_equal_and_delta_agrees(prefix, world_size, layout):
    options = {**EXACT, "alum_step_size": 1.0, "alum_epsilon": 0.1, "alum_num_ascent_steps": 2}
    single = run_ranks(1, perturbations, arguments(prefix, "unused", **options))
    answers = run_ranks(world_size, perturbations, arguments(prefix, "unused", **{**options, **layout}))
    expected, starts = joined(single, 2), joined(answers, 2)
    assert sorted(starts) == sorted(expected) == list(range(80, 88))
    assert all(torch.equal(starts[sample], expected[sample]) for sample in expected)
    expected_delta, delta = joined(single, 3), joined(answers, 3)
    moved = max(float((expected_delta[s] - expected[s]).abs().max()) for s in expected)
    assert moved > 100 * DELTA_TOLERANCE, "the ascent must move delta for this to say anything"
    assert max(float((delta[s] - expected_delta[s]).abs().max()) for s in expected) < DELTA_TOLERANCE
