"""Floating-point operations of an iteration, by formula, and how much of a device's peak they use.

F is one forward pass. A backward pass to inputs and weights costs 2 F, to inputs alone (parameters frozen) 1 F:

    standard   3 F                            forward, backward
    ALUM       3 F + rho (2 K + 3) F          + K ascent steps (forward, input gradient) + adversarial forward, backward
               = 8 F for K = 1 and rho = 1
      free     3 F + rho 3 F                  + adversarial forward, backward (--alum-ascent free)
      label    3 F + rho 2 K F                + K ascent steps; no clean pass (--alum-ascent label)

where rho is --alum-batch-fraction. Full recomputation adds a forward to every backward.
Multiplications and additions count separately; only matrix products are counted.
"""

from __future__ import annotations

import torch

from megatron_alum.config.run import RunConfig
from megatron_alum.training.schedule import Phase

# Dense 16-bit peak in TFLOP/s by a part of the device's name; from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0, "V100": 125.0}


def forward_flops(config: RunConfig, *, vocab_size: int) -> float:
    """F of one sequence: layers on every token, vocabulary head on masked tokens only (the curriculum's mean rate).

    The last MLP, too, runs on no more than the heads read, where the run allows it (`RunConfig.encodes_rows`).
    """
    model = config.model
    hidden, tokens = model.hidden_size, model.seq_length
    attention = 2 * tokens * 4 * hidden * hidden + 4 * tokens * tokens * hidden
    mlp_of_a_token = 2 * 2 * hidden * model.ffn_hidden_size
    masked = tokens * sum(config.data.mask_rates) / len(config.data.mask_rates)
    head = 2 * masked * (hidden * hidden + hidden * vocab_size)
    in_last_mlp = masked + model.has_nsp_head if config.encodes_rows else tokens
    mlps = ((model.num_layers - 1) * tokens + in_last_mlp) * mlp_of_a_token
    return model.num_layers * attention + mlps + head


def passes(config: RunConfig, phase: Phase) -> float:
    """Forward passes that one sequence costs in `phase`, everything counted in units of F."""
    recompute = 1 if config.compute.recompute_granularity == "full" else 0
    standard = 3 + recompute
    if phase == "standard":
        return standard
    inner = config.alum.num_ascent_steps * (2 + recompute)
    added = {"virtual": inner + 3 + recompute, "label": inner, "free": 3 + recompute}[config.compute.alum_ascent]
    return standard + config.alum.batch_fraction * added


def iteration_flops(config: RunConfig, phase: Phase, *, vocab_size: int) -> float:
    """Operations of one iteration over all processes."""
    sequences = config.training.global_batch_size
    return sequences * passes(config, phase) * forward_flops(config, vocab_size=vocab_size)


def run_iterations(config: RunConfig) -> dict[Phase, int]:
    """Iterations of each phase of the whole run."""
    total = config.training.train_iters
    standard = min(config.first_alum_iteration - 1, total)
    return {"standard": standard, "alum": total - standard}


def peak_flops(config: RunConfig, device: torch.device) -> float | None:
    """Operations a second that one device could do at best; None where it is not known (give --peak-tflops)."""
    if config.logging.peak_tflops is not None:
        return 1e12 * config.logging.peak_tflops
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
