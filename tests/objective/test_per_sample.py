"""The ascent of a sample is independent: with --alum-inner-reduction sample its g does not depend on the rest of the
batch.

Algorithm 1 takes one example at a time. The network is that of tests/oracle, dropout 0, float32.
"""

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.objective import test_losses as case
from tests.oracle import models

LENGTHS = (30, 9, 17, 3, 24, 12, 5, 21)


def deltas(rank, world_size, model_type, options, numbers, global_scale):
    """{sample: [its delta [L, H], its random start]} of a micro-batch of the sequences with these numbers."""
    from megatron_alum.objective import losses as module

    found, ascend, make = {}, module.ascend, models.sequences

    def noting(x, inner_loss, *, start, mask, **kwargs):
        ascent = ascend(x, inner_loss, start=start, mask=mask, **kwargs)
        real = torch.ones(len(x), dtype=torch.bool) if mask is None else mask.flatten()
        for sample in start.sample_index[real].unique().tolist():
            own = real & (start.sample_index == sample)
            found[sample] = ascent.delta[own, 0].clone()
        return ascent

    module.ascend = noting
    models.sequences = lambda *args, **kwargs: [make(*args, **kwargs)[number] for number in numbers]
    samples = case.batch_of

    def numbered(sequences, *args, **kwargs):
        batch = samples(sequences, *args, **kwargs)
        batch.sample_index.copy_(torch.tensor(numbers))
        return batch

    case.batch_of = numbered
    try:
        case.step_of(rank, world_size, model_type, "float32", options, LENGTHS, global_scale)
    finally:
        module.ascend, models.sequences, case.batch_of = ascend, make, samples
    return found


OTHERS = (5, 1, 0, 7, 2, 6, 3)
"""sample 1 among others"""
ONE_ROW_TOLERANCE = 1e-6
"""absolute, of deltas of the order of 1: a product of one row (the pooler of one sequence) sums in another order"""
FEW_ROWS_TOLERANCE = 2e-5
"""absolute, of deltas up to 17: on some processors a product of 9 rows instead of 121 sums in another order, too"""


@pytest.mark.parametrize("options", [{}, {"ascent": "label", "alpha": 10.0}], ids=["virtual", "label"])
@pytest.mark.parametrize("model_type", models.CLASSES)
def test_a_sample_ascends_alone(model_type, options):
    """Bit for bit, whatever else is in the micro-batch and however large the global batch is; with nothing else, up to
    the order of the sums."""
    options = {"step_size": 30.0, "epsilon": 100.0, "nsp": False, **options}
    everyone = tuple(range(len(LENGTHS)))
    whole = run_ranks(1, deltas, model_type, options, everyone, 1)[0]
    larger = run_ranks(1, deltas, model_type, options, everyone, 8)[0]
    for number in everyone:
        assert torch.equal(larger[number], whole[number]), "the size of the global batch changes an ascent"
    others = run_ranks(1, deltas, model_type, options, OTHERS, 1)[0]
    assert torch.equal(others[1], whole[1]), "the neighbours change an ascent"
    (alone,) = run_ranks(1, deltas, model_type, options, (1,), 1)[0].values()
    torch.testing.assert_close(alone, whole[1], rtol=0, atol=FEW_ROWS_TOLERANCE)
    assert (alone.abs() > 0.2).any(), "the ascent must move delta for this to say anything"


def test_a_sample_with_a_pair_ascends_alone():
    options = {"step_size": 1.0, "epsilon": 10.0}
    others = run_ranks(1, deltas, "bert", options, OTHERS, 1)[0]
    (alone,) = run_ranks(1, deltas, "bert", options, (1,), 1)[0].values()
    torch.testing.assert_close(alone, others[1], rtol=0, atol=ONE_ROW_TOLERANCE)


def test_the_batch_reduction_knows_its_batch():
    """The control: with --alum-inner-reduction batch a step shrinks as the batch grows."""
    options = {
        "step_size": 1.0,
        "epsilon": 10.0,
        "inner_reduction": "batch",
        "noise_std": 0.0,
        "ascent": "label",
        "alpha": 10.0,
    }
    eight, one = (run_ranks(1, deltas, "bert", options, (2, 3), scale)[0][2] for scale in (8, 1))
    torch.testing.assert_close(8 * eight, one, rtol=1e-5, atol=1e-9)
    assert one.abs().max() > 1e-4
