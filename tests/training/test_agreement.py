"""A gradient of the ascent that is not finite on one rank's tokens, under sequence parallelism: all ranks must leave
the same sample out, or their losses and gradients differ from then on.
"""

import math

import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import ASCENT, EXACT, adversarial_setup, arguments


def step_with_a_nan(rank, world_size, argv):
    """(what one micro-batch logs, sum of the word table's gradient) when rank 1's first token gets a NaN in the inner
    pass."""
    from megatron_alum.models import SplitBert
    from megatron_alum.training.step import backward

    _config, state, micro, counts = adversarial_setup(argv)
    encode = SplitBert.encode

    def spoil(gradient):
        return gradient.index_fill(0, torch.tensor([0]), math.nan)

    def spoiled(self, x, *args, **kwargs):
        is_inner = not next(self.parameters()).requires_grad
        if rank == 1 and is_inner and x.requires_grad:
            x.register_hook(spoil)
        return encode(self, x, *args, **kwargs)

    SplitBert.encode = spoiled
    try:
        one = torch.ones(())
        result = state.objective.adversarial(micro, counts, iteration=20, loss_scale=one)
        backward(result.loss, one)
    finally:
        SplitBert.encode = encode
    gradient = state.network.embedding.word_embeddings.weight.main_grad
    return {name: value.tolist() for name, value in result.logged.items()}, bool(torch.isfinite(gradient).all())


def test_a_nan_on_one_rank_leaves_the_sample_out_on_all(prefix):
    argv = arguments(
        prefix, "unused", **EXACT, **ASCENT, tensor_model_parallel_size=2, sequence_parallel=True, alum_nsp=False
    )
    (first, is_finite), (second, is_finite_too) = run_ranks(2, step_with_a_nan, argv)
    assert is_finite and is_finite_too
    assert first["nonfinite"] == second["nonfinite"] == 1
    assert first["alum_kl"] == second["alum_kl"] and math.isfinite(first["alum_kl"])
