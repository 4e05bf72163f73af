"""Parameters and operations of a step, against published figures and hand calculations."""

from dataclasses import replace

import pytest

from megatron_alum.planning.flops import TextSize, forward_flops, passes
from megatron_alum.planning.memory import num_parameters
from tests.training.test_recipes import read


def test_sizes_and_operations_against_published_figures():
    """BERT-base 110 M and large 336 M parameters; 3.9 B of Megatron-LM; forward + backward 0.301 TFLOP at 512."""
    base, large, huge = read("from_scratch.yaml"), read("bert_large.yaml"), read("bert_3.9b.yaml")
    counts = [num_parameters(config, padded_vocab_size=30_592) for config in (base, large, huge)]
    assert [round(count / 1e6) for count in counts] == [110, 336, 3869]
    every_token = replace(base, compute=replace(base.compute, torch_compile=True))
    full = TextSize.full(base).scaled(1 / 256)
    assert full == TextSize(1, 512, 512 * 512, pytest.approx(0.15 * 512))
    assert 3 * forward_flops(every_token, full, vocab_size=30_592) == pytest.approx(0.301e12, rel=0.002)
    # The last MLP on 15 % of 512 tokens (the mean rate) and the first one: 434.2 tokens less at 2 x 2 x 768 x 3072.
    spared = forward_flops(every_token, full, vocab_size=30_592) - forward_flops(base, full, vocab_size=30_592)
    assert spared == pytest.approx(434.2 * 9_437_184)
    # Two sequences of 100 and 40 tokens: 140 tokens, and 100 x 100 + 40 x 40 scores a layer of 4 x 768 operations each.
    two = TextSize(2, 140, 11_600, 21)
    layer = 140 * 2 * (4 * 768 * 768 + 2 * 768 * 3072) + 11_600 * 4 * 768
    head = 21 * 2 * (768 * 768 + 768 * 30_592)
    assert forward_flops(every_token, two, vocab_size=30_592) == 12 * layer + head
    assert forward_flops(every_token, two, vocab_size=30_592, first_layer=9) == 3 * layer + head


def test_passes_of_a_step():
    """A standard step is 3 forward passes; the ascent adds 2 a step, the branch 3, of what lies above delta."""
    base = read("from_scratch.yaml")
    text = TextSize.full(base)

    def passes_of(phase="alum", **alum):
        return pytest.approx(passes(replace(base, alum=replace(base.alum, **alum)), phase, text, vocab_size=30_592))

    assert passes_of("standard") == 3 and passes_of() == 8 and passes_of(batch_fraction=0.5) == 5.5
    assert passes_of(num_ascent_steps=2) == 10 and passes_of(ascent="label") == 5
    assert passes_of(num_ascent_steps=0) == 6
    assert passes_of(batch_fraction=1e-6) == 3 + 5 / 256  # at least one sample of 256, as placement selects
    # A third of the layers above delta, and all of the head and of the spared part of the last MLP.
    layer = 12 * 512 * 24 * 768 * 768 + 12 * 4 * 512 * 512 * 768
    head, spared = 0.15 * 512 * 2 * (768 * 768 + 768 * 30_592), 434.2 * 9_437_184
    share = (layer / 3 + head - spared) / (layer + head - spared)
    assert passes_of(perturb="layer", perturb_layer=8) == 3 + 5 * share
    compute = replace(base.compute, recompute_granularity="full")
    assert passes(replace(base, compute=compute), "alum", text, vocab_size=30_592) == pytest.approx(4 + 3 + 4)
