"""An adversarial micro-batch with --alum-head-chunk-rows against one with whole logits: all it logs, every gradient.

Both run on the same network. float16 is compared where it rounds: the chunked head writes its gradients in forward.
"""

from dataclasses import replace

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import ASCENT, EXACT, adversarial_setup, arguments

TOLERANCE = {"float32": 1e-4, "bf16": 3e-2}
"""relative to the value or to the largest gradient of a tensor: the same terms summed in another order, or rounded to
8 bits in another order"""
CHUNK_ROWS = 3


def step(config, state, micro, counts):
    """({name: logged value}, {parameter: gradient})."""
    from megatron_alum.objective.losses import Objective
    from megatron_alum.training.step import backward

    one = torch.ones(())
    state.model.zero_grad_buffer()
    result = Objective(state.network, config).adversarial(micro, counts, iteration=20, loss_scale=one)
    backward(result.loss, one)
    gradients = {name: parameter.main_grad.clone() for name, parameter in state.network.named_parameters()}
    return {name: value.tolist() for name, value in result.logged.items()}, gradients


def both_steps(rank, world_size, argv):
    """(logged with whole logits, logged in chunks, {parameter: relative difference of its gradient})."""
    config, state, *batch = adversarial_setup(argv)
    whole, expected = step(config, state, *batch)
    chunked, found = step(replace(config, alum=replace(config.alum, head_chunk_rows=CHUNK_ROWS)), state, *batch)
    differences = {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-6))
        for name in found
    }
    return whole, chunked, differences


OPTIONS = {
    "paper": {},
    "full-gradients": {
        "alum_detach_targets": False,
        "alum_inner_divergence": "symmetric",
        "alum_num_ascent_steps": 2,
        "alum_nsp": False,
    },
    "half-of-the-batch": {"alum_batch_fraction": 0.5},
    "an-eighth-tp2": {"alum_batch_fraction": 0.125, "tensor_model_parallel_size": 2},
    "recompute-full": {"recompute_granularity": "full"},
    "bf16": {"bf16": True},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2-sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True, "alum_inner_divergence": "symmetric"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_chunks_change_nothing(prefix, options):
    argv = arguments(prefix, "unused", **{**EXACT, **ASCENT, **options})
    tolerance = TOLERANCE["bf16" if "bf16" in options else "float32"]
    for whole, chunked, gradients in run_ranks(options.get("tensor_model_parallel_size", 1), both_steps, argv):
        assert whole.keys() == chunked.keys() and whole["alum_kl"] > 1e-3 and whole["kl_gain"] > 0
        for name, value in whole.items():
            assert chunked[name] == pytest.approx(value, rel=tolerance), name
        assert max(gradients.values()) < tolerance, gradients


def step_without_whole_logits(rank, world_size, argv):
    """A step of a network whose decoder refuses to compute the logits of all rows."""
    from megatron_alum.models import SplitBert

    def refuse(*_args, **_kwargs):
        raise AssertionError("whole logits")

    config, state, *batch = adversarial_setup(argv)
    heads, SplitBert.heads = SplitBert.heads, refuse
    try:
        return step(config, state, *batch)[0]["lm_loss"]
    finally:
        SplitBert.heads = heads


def test_no_row_is_left_out_of_the_chunks(prefix):
    """Including the rows of sequences that --alum-batch-fraction leaves out."""
    argv = arguments(prefix, "unused", **EXACT, **ASCENT, alum_batch_fraction=0.5, alum_head_chunk_rows=CHUNK_ROWS)
    assert run_ranks(1, step_without_whole_logits, argv)[0] > 0
    with pytest.raises(AssertionError, match="whole logits"):
        run_ranks(1, step_without_whole_logits, argv[:-2])


def float16_step(rank, world_size, argv, loss_scale, batches):
    """(gradient of the decoder's bias as it is in the buffer, ascent ratio) of one of the given number of
    micro-batches."""
    from megatron_alum.data.sampling.placement import Counts
    from megatron_alum.ops import perturbation_statistics
    from megatron_alum.training.step import backward

    _config, state, micro, counts = adversarial_setup(argv)
    scale = torch.tensor([loss_scale])
    counts = Counts(**{name: batches * value for name, value in vars(counts).items()})
    state.model.zero_grad_buffer()
    result = state.objective.adversarial(micro, counts, iteration=20, loss_scale=scale)
    backward(result.loss, scale)
    ratio = perturbation_statistics(result.logged["perturbation_sums"]).ascent_ratio
    return state.network.output_layer.bias.main_grad.float().clone(), float(ratio)


def test_the_chunked_head_scales_before_it_rounds_to_float16(prefix):
    """One row of a large global batch weighs about 1e-7: unscaled, most of its gradients round to 0 in float16."""
    options = {**EXACT, **ASCENT, "fp16": True, "alum_alpha": 1, "alum_inner_reduction": "batch"}
    (whole, ratio), (chunked, chunked_ratio) = (
        run_ranks(1, float16_step, arguments(prefix, "unused", **options, **chunk), 2.0**16, 65536)[0]
        for chunk in ({}, {"alum_head_chunk_rows": 3})
    )
    assert whole.abs().max() > 0
    assert (chunked - whole).abs().max() < 1e-2 * whole.abs().max()
    assert chunked_ratio == pytest.approx(ratio, rel=1e-2) and ratio > 0, "the ascent rounds as early as the loss"
