"""One ALUM step of a SplitBert through megatron-core's DDP, with gradients assembled from all ranks.

The divergence is the vocab-parallel reference of `ops`; the ascent is `alum.ascend`, which also drives the transformers
models that it is compared with.
"""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from torch.nn import functional as F

from megatron_alum.alum import ascend
from megatron_alum.config.alum import AlumConfig
from megatron_alum.models import build_model
from megatron_alum.ops import NoiseKey, kl_divergence, mlm_symmetric_kl, perturb_embeddings, symmetric_kl
from megatron_alum.parallel import initialize, seed_everything
from tests.models.batches import VOCAB_SIZE
from tests.models.huggingface import randomize_whole

ALPHA = 10.0
# Large enough for the KL to rise above float32 rounding, and a step that makes delta depend on the inner gradient.
ALUM = AlumConfig(epsilon=0.05, noise_std=0.05, step_size=0.02, projection="normalized_gradient")


def noise_key(sample, position) -> NoiseKey:
    """The random start of tokens by their sequence and position; the same values on every layout."""
    return NoiseKey(seed=3, iteration=1, sample_index=sample + 100, position=position, std=ALUM.noise_std)


def divergence(clean, adversarial, kl, *, vocab_size=None, group=None):
    """Mean over masked tokens and, where there are pairs, mean over sequences."""
    mlm = kl(clean.mlm_logits, adversarial.mlm_logits, valid_vocab_size=vocab_size, group=group, impl="reference")
    if clean.nsp_logits is None:
        return mlm.mean()
    return mlm.mean() + kl(clean.nsp_logits, adversarial.nsp_logits, impl="reference").mean()


def gradients(rank, world_size, config, batch, options):
    """{parameter name: whole gradient}, losses, main_grad after the ascent and delta; `options` see the first lines."""
    sequence_parallel, level = options.get("sequence_parallel", False), options.get("level", "word")
    recompute, adversarial = options.get("recompute", "none"), options.get("adversarial", True)
    dtype, rows = options.get("dtype", torch.float32), options.get("rows", False)
    groups = initialize(tensor_parallel_size=world_size, sequence_parallel=sequence_parallel)
    seed_everything(11, groups)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, recompute=recompute)
    randomize_whole(model, groups)
    model.to(dtype)
    ddp = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    ddp.zero_grad_buffer()
    inputs = batch.inputs
    x = model.embed(inputs, level=level)

    def forward(x):
        return model.heads((model.encode_rows if rows else model.encode)(x, inputs, level=level), inputs)

    clean = forward(x)
    losses = _standard_losses(clean, batch, groups)
    inner_main_grad, delta = 0.0, None
    if adversarial:
        delta = _ascent(model, x, clean, forward, batch=batch, plain_backward=recompute != "none")
        inner_main_grad = max(p.main_grad.abs().max().item() for p in model.parameters())
        losses["kl"] = divergence(clean, forward(x + delta), symmetric_kl, vocab_size=VOCAB_SIZE, group=groups.tp)
    total = sum(losses[name] * (ALPHA if name == "kl" else 1.0) for name in losses)
    total.backward()
    ddp.finish_grad_sync()
    finalize_model_grads([ddp])
    whole = {name: _whole(p.main_grad, p, groups) for name, p in model.named_parameters()}
    result = {name: loss.item() for name, loss in losses.items()}
    return whole, result, inner_main_grad, delta


def _ascent(model, x, clean, forward, *, batch, plain_backward):
    """delta of this rank's tokens."""
    local = model.groups.local_tokens
    group = model.groups.tp

    def inner_loss(x_adv):
        detached = type(clean)(*(None if logits is None else logits.detach() for logits in clean))
        return divergence(detached, forward(x_adv), kl_divergence, vocab_size=VOCAB_SIZE, group=group)

    return ascend(
        x,
        inner_loss,
        start=noise_key(local(batch.sequence), local(batch.position)),
        config=ALUM,
        perturb=perturb_embeddings,
        segments=local(batch.sequence)[:, None],
        num_segments=len(batch.lengths),
        mask=local(batch.is_real)[:, None],
        parameters=model.parameters(),
        plain_backward=plain_backward,
    ).delta


def _standard_losses(clean, batch, groups):
    mlm, _ = mlm_symmetric_kl(
        clean.mlm_logits,
        clean.mlm_logits.detach(),
        batch.labels,
        valid_vocab_size=VOCAB_SIZE,
        group=groups.tp,
        impl="reference",
    )
    losses = {"mlm": mlm.mean()}
    if clean.nsp_logits is not None:
        losses["nsp"] = F.cross_entropy(clean.nsp_logits.float(), torch.arange(clean.nsp_logits.size(0)) % 2)
    return losses


def _whole(gradient, parameter, groups):
    """The gradient of the unsplit parameter, assembled from the tensor-parallel ranks."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return gradient.clone()
    parts = [torch.empty_like(gradient) for _ in range(groups.tp_size)]
    torch.distributed.all_gather(parts, gradient.contiguous(), group=groups.tp)
    return torch.cat(parts, dim=parameter.partition_dim)
