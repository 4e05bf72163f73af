"""Floating-point operations of an iteration, by formula, and how much of a device's peak they use.

F is one forward pass over the real tokens. A backward pass to inputs and weights costs 2 F, to inputs alone (parameters
frozen) 1 F. U is the part of F above the perturbed hidden state: all of it, except with --alum-perturb layer.

    standard   3 F                            forward, backward
    ALUM       3 F + rho (2 K + 3) U          + K ascent steps (forward, input gradient) + adversarial forward, backward
               = 8 F for K = 1, rho = 1 and U = F
      label    3 F + rho 2 K U                + K ascent steps; no clean pass (--alum-ascent label)

where rho is the share of the global batch that --alum-batch-fraction selects: whole samples, at least one. Full
recomputation adds a forward to every backward.
Multiplications and additions count separately; only matrix products are counted.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.placement import Counts, num_adversarial
from megatron_alum.objective.schedule import Phase

# Dense 16-bit peak in TFLOP/s by a part of the device's name; from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0, "V100": 125.0}


@dataclass(frozen=True)
class TextSize:
    """How much text a pass reads; sums over its sequences."""

    sequences: float
    """sequences"""
    tokens: float
    """real tokens, special ones included"""
    squared_lengths: float
    """squared tokens of each sequence: what attention costs"""
    masked: float
    """masked tokens"""

    def scaled(self, factor: float) -> TextSize:
        """`factor` times as much text."""
        return TextSize(*(factor * value for value in astuple(self)))

    @classmethod
    def of(cls, counts: Counts, *, sequences: int) -> TextSize:
        """A global batch of `sequences` sequences."""
        return cls(sequences, counts.tokens, counts.squared_lengths, counts.masked)

    @classmethod
    def full(cls, config: RunConfig, *, tokens_per_sequence: float | None = None) -> TextSize:
        """A global batch whose sequences all have this length (default: --seq-length), masked at the mean rate."""
        length = config.model.seq_length if tokens_per_sequence is None else tokens_per_sequence
        sequences, rates = config.training.global_batch_size, config.data.mask_rates
        return cls(
            sequences, sequences * length, sequences * length * length, sequences * length * sum(rates) / len(rates)
        )


def forward_flops(config: RunConfig, text: TextSize, *, vocab_size: int, first_layer: int = 0) -> float:
    """F: layers beyond the first `first_layer` on every token, vocabulary head on masked tokens only.

    The last MLP, too, runs only on the tokens that the heads read, where the run allows it (`RunConfig.encodes_rows`).
    """
    model = config.model
    hidden, layers = model.hidden_size, model.num_layers - first_layer
    attention = 2 * text.tokens * 4 * hidden * hidden + 4 * text.squared_lengths * hidden
    mlp_of_a_token = 2 * 2 * hidden * model.ffn_hidden_size
    head = 2 * text.masked * (hidden * hidden + hidden * vocab_size)
    in_last_mlp = text.masked + text.sequences * model.has_nsp_head if config.encodes_rows else text.tokens
    mlps = ((layers - 1) * text.tokens + in_last_mlp) * mlp_of_a_token
    return layers * attention + mlps + head


def iteration_flops(config: RunConfig, phase: Phase, text: TextSize, *, vocab_size: int) -> float:
    """Operations of one iteration on `text` over all processes."""
    whole = forward_flops(config, text, vocab_size=vocab_size)
    first_layer = config.alum.perturb_layer or 0
    upper = forward_flops(config, text, vocab_size=vocab_size, first_layer=first_layer) if first_layer else whole
    passes_of_whole, passes_of_upper = _passes(config, phase)
    return passes_of_whole * whole + passes_of_upper * upper


def passes(config: RunConfig, phase: Phase, text: TextSize, *, vocab_size: int) -> float:
    """What an iteration costs in units of F."""
    whole = forward_flops(config, text, vocab_size=vocab_size)
    return iteration_flops(config, phase, text, vocab_size=vocab_size) / whole


def _passes(config: RunConfig, phase: Phase) -> tuple[float, float]:
    """(passes of the whole network, of its part above the perturbed hidden state), in units of their forward pass."""
    recompute = 1 if config.compute.recompute_granularity == "full" else 0
    if phase == "standard":
        return 3 + recompute, 0.0
    inner = config.alum.num_ascent_steps * (2 + recompute)
    outer = 3 + recompute if config.alum.ascent == "virtual" else 0
    batch = config.training.global_batch_size
    share = num_adversarial(batch, config.alum.batch_fraction) / batch
    return 3 + recompute, share * (inner + outer)


def run_iterations(config: RunConfig) -> dict[Phase, int]:
    """Iterations of each phase of the whole run."""
    total = config.training.train_iters
    standard = min(config.first_alum_iteration - 1, total)
    return {"standard": standard, "alum": total - standard}


def peak_flops(config: RunConfig, device: torch.device) -> float | None:
    """Peak operations per second of one device; None where it is unknown (give --peak-tflops)."""
    if config.logging.peak_tflops is not None:
        return 1e12 * config.logging.peak_tflops
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
