"""Losses and gradients of every objective against plain torch: log_softmax, autograd, no fused op, no regulariser.

The reference recomputes the forward passes of the same network with delta given as a constant, dropout 0. What it must
know, it asks only of the network (embed, encode, heads).
"""

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments

GRADIENT_TOLERANCE = 2e-4
"""largest difference over the largest gradient of the tensor: two float32 ways to sum the same terms"""
LOSS_TOLERANCE = 1e-5
ASCENT = {"alum_step_size": 0.5, "alum_epsilon": 0.1, "alum_noise_std": 0.05}


def setup(argv):
    from megatron_alum.config.cli import parse_config
    from megatron_alum.config.run import RunConfig
    from megatron_alum.parallel import initialize
    from megatron_alum.training.objective import MicroBatch
    from megatron_alum.training.state import build_state

    config = parse_config(RunConfig, argv)
    tp, split = config.parallel.tensor_model_parallel_size, config.parallel.sequence_parallel
    state = build_state(config, initialize(tensor_parallel_size=tp, sequence_parallel=split, timeout_seconds=60))
    batch = state.datasets.train.batch(range(8))
    with torch.no_grad():  # fresh weights are so small that every divergence drowns in rounding
        for parameter in state.network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return config, state, MicroBatch.load(batch, config.alum, torch.device("cpu"))


def plain_kl(a, b):
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class Plain:
    """The network through its three doors, with the losses written out."""

    def __init__(self, config, state, micro):
        self.network, self.batch, self.alum = state.network, micro.batch, config.alum
        self.valid = self.network.real_vocab_size
        sequences = max(1, round(8 * config.alum.batch_fraction))
        self.part = slice(sequences)
        self.rows = slice(int((self.batch.masked_positions < sequences * self.batch.tokens.shape[1]).sum()))

    def embed(self):
        return self.network.embed(self.batch.tokens, token_types=self.batch.token_types)

    def forward(self, x, part=slice(None), rows=slice(None)):
        batch = self.batch
        types, mask = batch.token_types[part], batch.padding_mask[part]
        hidden = self.network.encode(x, token_types=types, padding_mask=mask)
        logits, nsp = self.network.heads(hidden, batch.masked_positions[rows])
        return logits[:, : self.valid], nsp

    def label_loss(self, outputs, part=slice(None), rows=slice(None)):
        cross_entropy = torch.nn.functional.cross_entropy
        mlm = cross_entropy(outputs[0], self.batch.masked_labels[rows], reduction="sum") / len(self.batch.masked_labels)
        return mlm + cross_entropy(outputs[1], self.batch.nsp_labels[part], reduction="sum") / 8

    def divergence(self, clean, adversarial, *, one_sided=False):
        terms = 0.0
        for a, b in zip(clean, adversarial, strict=True):
            terms = terms + plain_kl(a.detach(), b).mean()
            terms = terms + (0.0 if one_sided else plain_kl(b.detach(), a).mean())
        return terms

    def start(self, iteration):
        from megatron_alum.ops import gaussian_noise

        positions = torch.arange(self.batch.tokens.shape[1])
        key, std = (1234, iteration), self.alum.noise_std
        noise = gaussian_noise(self.batch.sample_index[self.part], positions, 32, std=std, key=key, impl="reference")
        return noise * self.batch.padding_mask[self.part].T[..., None]

    def ascended(self, start, gradient):
        mask = self.batch.padding_mask[self.part].T[..., None]
        return ((start + self.alum.step_size * gradient).clamp(-self.alum.epsilon, self.alum.epsilon)) * mask


def virtual_loss(plain, iteration):
    x, part, rows = plain.embed(), plain.part, plain.rows
    clean = plain.forward(x)
    clean_part = (clean[0][rows], clean[1][part])
    delta = plain.start(iteration)
    for _ in range(plain.alum.num_ascent_steps):
        leaf = (x.detach()[:, part] + delta).requires_grad_()
        inner = plain.divergence([c.detach() for c in clean_part], plain.forward(leaf, part, rows), one_sided=True)
        delta = plain.ascended(delta, torch.autograd.grad(inner, leaf)[0])
    adversarial = plain.forward(x[:, part] + delta, part, rows)
    return plain.label_loss(clean) + plain.alum.alpha * plain.divergence(clean_part, adversarial)


def label_loss(plain, iteration):
    x, part, rows = plain.embed(), plain.part, plain.rows
    delta = plain.start(iteration)
    for _ in range(plain.alum.num_ascent_steps):
        leaf = (x.detach()[:, part] + delta).requires_grad_()
        inner = plain.label_loss(plain.forward(leaf, part, rows), part, rows)
        delta = plain.ascended(delta, torch.autograd.grad(inner, leaf)[0])
    x_all = torch.cat((x[:, part] + delta, x[:, part.stop :]), dim=1)
    return plain.label_loss(plain.forward(x_all))


def free_loss(plain, iteration):
    x, part, rows = plain.embed(), plain.part, plain.rows
    clean = plain.forward(x)
    loss = plain.label_loss(clean)
    gradient = torch.autograd.grad(loss, x, retain_graph=True)[0][:, part]
    delta = plain.ascended(plain.start(iteration), gradient)
    adversarial = plain.forward(x[:, part] + delta, part, rows)
    clean_part = (clean[0][rows], clean[1][part])
    return loss + plain.alum.alpha * plain.divergence(clean_part, adversarial, one_sided=True)


REFERENCES = {"virtual": virtual_loss, "label": label_loss, "free": free_loss}


def compare(rank, world_size, argv):
    """(relative difference of the loss, {parameter: relative difference of its gradient})."""
    from megatron_alum.training.step import backward

    config, state, micro = setup(argv)
    parameters = dict(state.network.named_parameters())
    state.model.zero_grad_buffer()
    one = torch.ones(())
    result = state.objective.adversarial(micro, micro.counts, iteration=20, loss_scale=one)
    backward(result.loss, one)
    found = {name: parameter.main_grad.clone() for name, parameter in parameters.items()}
    logged = {name: float(value) for name, value in result.logged.items()}
    for parameter in parameters.values():  # the reference takes its gradients from autograd
        parameter.accumulates_in_place = False
    loss = REFERENCES[config.compute.alum_ascent](Plain(config, state, micro), 20)
    expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    alpha = config.alum.alpha
    total = logged["lm_loss"] + logged["nsp_loss"] + alpha * (logged.get("alum_kl", 0) + logged.get("alum_nsp_kl", 0))
    worst = {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-6))
        for name in parameters
    }
    return abs(total - float(loss)) / abs(float(loss)), worst, logged


@pytest.mark.parametrize(
    ("ascent", "options"),
    [
        ("virtual", {}),
        ("virtual", {"alum_num_ascent_steps": 3}),
        ("virtual", {"alum_batch_fraction": 0.5}),
        ("virtual", {"alum_head_chunk_rows": 3}),
        ("virtual", {"alum_head_chunk_rows": 3, "alum_batch_fraction": 0.5}),
        ("label", {"alum_num_ascent_steps": 2}),
        ("label", {"alum_batch_fraction": 0.5}),
        ("free", {}),
        ("free", {"alum_batch_fraction": 0.5}),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_plain_torch(prefix, ascent, options):
    argv = arguments(prefix, "unused", **{**EXACT, **ASCENT, **options}, alum_ascent=ascent, alum_alpha=3)
    loss_difference, gradients, logged = run_ranks(1, compare, argv)[0]
    assert loss_difference < LOSS_TOLERANCE
    assert max(gradients.values()) < GRADIENT_TOLERANCE, {k: v for k, v in gradients.items() if v >= GRADIENT_TOLERANCE}
    if ascent != "label":
        assert logged["alum_kl"] > 1e-3, "too small to tell right from wrong"
    assert logged["ascent_ratio"] > 1e-3


def float16_step(rank, world_size, argv, loss_scale, batches):
    """(gradient of the decoder's bias as it stands in the buffer, ascent ratio) of one of so many micro-batches."""
    from megatron_alum.training.objective import Counts
    from megatron_alum.training.step import backward

    _config, state, micro = setup(argv)
    scale = torch.tensor([loss_scale])
    counts = Counts(*(batches * getattr(micro.counts, field) for field in Counts.__dataclass_fields__))
    state.model.zero_grad_buffer()
    result = state.objective.adversarial(micro, counts, iteration=20, loss_scale=scale)
    backward(result.loss, scale)
    return state.network.output_layer.bias.main_grad.float().clone(), float(result.logged["ascent_ratio"])


def test_the_chunked_head_scales_before_it_rounds_to_float16(prefix):
    """One row of a large global batch weighs about 1e-7: unscaled, most of its gradients round to 0 in float16."""
    options = {**EXACT, **ASCENT, "fp16": True, "alum_alpha": 1}
    (whole, ratio), (chunked, chunked_ratio) = (
        run_ranks(1, float16_step, arguments(prefix, "unused", **options, **chunk), 2.0**16, 65536)[0]
        for chunk in ({}, {"alum_head_chunk_rows": 3})
    )
    assert whole.abs().max() > 0
    assert (chunked - whole).abs().max() < 1e-2 * whole.abs().max()
    assert chunked_ratio == pytest.approx(ratio, rel=1e-2) and ratio > 0, "the ascent rounds as early as the loss"
