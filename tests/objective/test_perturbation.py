"""The random start and the perturbation after the ascent are the same on every layout, token by token."""

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments

DELTA_TOLERANCE = 1e-5
"""absolute; delta is of the order of epsilon = 0.05"""


def perturbations(rank, world_size, argv):
    """{(sample, position): (random start [H], delta [H])} of the tokens this rank holds in iteration 11."""
    from megatron_alum.config.cli import parse_config
    from megatron_alum.config.run import RunConfig
    from megatron_alum.data.sampling.loader import draw
    from megatron_alum.objective import losses as module
    from megatron_alum.objective.micro_batch import batch_plan, load_all
    from megatron_alum.parallel import initialize
    from megatron_alum.training.state import build_state
    from megatron_alum.training.step import train_step

    config = parse_config(RunConfig, argv)
    sizes = {"tensor_parallel_size": config.parallel.tensor_model_parallel_size}
    groups = initialize(**sizes, sequence_parallel=config.parallel.sequence_parallel, timeout_seconds=60)
    state = build_state(config, groups)
    drawn = draw(state.datasets.train, batch_plan(config, groups), 80)
    micro_batches = load_all(drawn.micro_batches, config, groups.device, is_adversarial=True)
    tokens, ascend = {}, module.ascend

    def noting(x, inner_loss, *, start, perturb, mask, **kwargs):
        begun = perturb(x.detach(), start, None, step_size=0.0, epsilon=1.0, mask=mask)[1]
        found = ascend(x, inner_loss, start=start, perturb=perturb, mask=mask, **kwargs)
        real = torch.ones(len(x), dtype=torch.bool) if mask is None else mask.flatten()
        assert not found.delta[~real].any(), "the tail is perturbed"
        for i in real.nonzero().flatten().tolist():
            key = int(start.sample_index[i]), int(start.position[i])
            tokens[key] = begun[i, 0].clone(), found.delta[i, 0].clone()
        return found

    module.ascend = noting
    try:
        train_step(state, micro_batches, drawn.counts, 11)
    finally:
        module.ascend = ascend
    return tokens


def joined(answers):
    """The tokens of all ranks; what two of them hold must be equal."""
    found = {}
    for answer in answers:
        for key, pair in answer.items():
            same = all(torch.equal(a, b) for a, b in zip(found.setdefault(key, pair), pair, strict=True))
            assert same, "tensor-parallel ranks disagree"
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
    expected = joined(run_ranks(1, perturbations, arguments(prefix, "unused", **options)))
    found = joined(run_ranks(world_size, perturbations, arguments(prefix, "unused", **{**options, **layout})))
    assert found.keys() == expected.keys() and {sample for sample, _ in found} == set(range(80, 88))
    assert all(torch.equal(found[key][0], expected[key][0]) for key in expected)
    moved = max(float((delta - start).abs().max()) for start, delta in expected.values())
    assert moved > 100 * DELTA_TOLERANCE, "the ascent must move delta for this to say anything"
    worst = max(float((found[key][1] - expected[key][1]).abs().max()) for key in expected)
    assert worst < DELTA_TOLERANCE
