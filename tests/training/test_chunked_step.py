"""An adversarial micro-batch with --alum-head-chunk-rows against one with whole logits: all it logs, every gradient.

Both run on the same network. kl_gain is compared with plain torch in float64 as well: the two heads take it in
different places, but it stays the inner divergence at x + delta less that at the random start.
"""

from dataclasses import replace

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments
from tests.training.test_objective import ASCENT, Plain, plain_kl, setup

TOLERANCE = {"float32": 1e-4, "bf16": 3e-2}
"""relative to the value or to the largest gradient of a tensor: the same terms summed in another order, or rounded to
8 bits in another order"""
CHUNK_ROWS = 3


def step(config, state, micro):
    """({name: logged value}, {parameter: gradient})."""
    from megatron_alum.training.ascents import build_objective

    from megatron_alum.training.step import backward

    one = torch.ones(())
    state.model.zero_grad_buffer()
    result = build_objective(state.network, config).adversarial(micro, micro.counts, iteration=20, loss_scale=one)
    backward(result.loss, one)
    gradients = {name: parameter.main_grad.clone() for name, parameter in state.network.named_parameters()}
    return {name: float(value) for name, value in result.logged.items()}, gradients


def both_steps(rank, world_size, argv):
    """(logged with whole logits, logged in chunks, {parameter: relative difference of its gradient})."""
    config, state, micro = setup(argv)
    whole, expected = step(config, state, micro)
    chunked, found = step(replace(config, alum=replace(config.alum, head_chunk_rows=CHUNK_ROWS)), state, micro)
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
        assert chunked == pytest.approx(whole, rel=tolerance)
        assert max(gradients.values()) < tolerance, gradients


def logged_and_plain_gain(rank, world_size, argv):
    """(kl_gain as logged, kl_gain by plain torch)."""
    config, state, micro = setup(argv)
    logged, _ = step(config, state, micro)
    symmetric = config.alum.inner_divergence == "symmetric"
    plain = Plain(config, state, micro)
    x = plain.embed().detach()
    clean = [logits.detach().double() for logits in plain.forward(x)]

    def divergence(delta):
        pairs = zip(clean, (logits.double() for logits in plain.forward(x + delta)), strict=True)
        return sum((plain_kl(a, b) + (plain_kl(b, a) if symmetric else 0.0)).mean() for a, b in pairs)

    start = plain.start(20).requires_grad_()
    before = divergence(start)
    after = divergence(plain.ascended(start.detach(), torch.autograd.grad(before, start)[0]))
    return logged["kl_gain"], float(after - before)


@pytest.mark.parametrize("divergence", ["kl", "symmetric"])
@pytest.mark.parametrize("chunk_rows", [0, CHUNK_ROWS])
def test_the_gain_is_that_of_plain_torch(prefix, chunk_rows, divergence):
    options = {"alum_head_chunk_rows": chunk_rows, "alum_inner_divergence": divergence}
    argv = arguments(prefix, "unused", **{**EXACT, **ASCENT, **options})
    ((logged, plain),) = run_ranks(1, logged_and_plain_gain, argv)
    assert plain > 0
    assert logged == pytest.approx(plain, rel=TOLERANCE["float32"])
