"""One ALUM step of a SplitBert through megatron-core's DDP, with gradients put together from all ranks.

The divergence is the vocab-parallel reference of `ops`; the step itself is `alum.AlumRegularizer`, which also drives
the transformers models it is compared with.
"""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from torch.nn import functional as F

from megatron_alum.alum import AlumRegularizer, Kernels
from megatron_alum.config.alum import AlumConfig
from megatron_alum.models import build_model
from megatron_alum.ops import NoiseKey, kl_divergence, mlm_symmetric_kl, perturb_embeddings, symmetric_kl
from megatron_alum.parallel import initialize, seed_everything
from tests.models.batches import VOCAB_SIZE
from tests.models.huggingface import randomize_whole

ALPHA = 10.0
# Large enough for the KL to rise above float32 rounding, and a step that makes delta depend on the inner gradient.
ALUM = AlumConfig(epsilon=0.05, noise_std=0.05, step_size=0.02, projection="normalized_gradient")


def noise_key(
    batch, *, first_position: int = 0, num_positions: int | None = None, batch_first: bool = False
) -> NoiseKey:
    """The random start of this batch; the same values on every layout."""
    num_positions = num_positions or batch.tokens.size(1)
    return NoiseKey(
        seed=3,
        iteration=1,
        sample_index=torch.arange(batch.tokens.size(0)) + 100,
        position=torch.arange(num_positions) + first_position,
        std=ALUM.noise_std,
        batch_first=batch_first,
    )


def kernels(group, vocab_size) -> Kernels:
    """The fused operators' reference, vocab-parallel over `group`."""

    def divergence(clean, adversarial, *, symmetric, detach_targets):
        kl = symmetric_kl if symmetric else kl_divergence
        options = {"detach_targets": detach_targets, "impl": "reference"}
        mlm = kl(clean.mlm_logits, adversarial.mlm_logits, valid_vocab_size=vocab_size, group=group, **options).mean()
        if clean.nsp_logits is None:
            return mlm
        return mlm + kl(clean.nsp_logits, adversarial.nsp_logits, **options).mean()

    return Kernels(perturb=perturb_embeddings, divergence=divergence, agree=lambda finite: finite)


def gradients(rank, world_size, config, batch, options):
    """{parameter name: whole gradient}, losses and main_grad after the ascent; `options` see the first lines."""
    sequence_parallel, level = options.get("sequence_parallel", False), options.get("level", "word")
    recompute, adversarial = options.get("recompute", "none"), options.get("adversarial", True)
    dtype = options.get("dtype", torch.float32)
    groups = initialize(tensor_parallel_size=world_size, sequence_parallel=sequence_parallel)
    seed_everything(11, groups)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, recompute=recompute)
    randomize_whole(model, groups)
    model.to(dtype)
    ddp = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    ddp.zero_grad_buffer()
    x = model.embed(batch.tokens, token_types=batch.token_types, level=level)

    def forward(embeddings):
        hidden = model.encode(embeddings, token_types=batch.token_types, padding_mask=batch.padding_mask, level=level)
        return model.heads(hidden, batch.masked_positions)

    clean = forward(x)
    losses = _standard_losses(clean, batch, groups)
    inner_main_grad = 0.0
    if adversarial:
        step = _adversarial_loss(
            model, x, clean, forward, batch=batch, groups=groups, plain_backward=recompute != "none"
        )
        inner_main_grad = max(p.main_grad.abs().max().item() for p in model.parameters())
        losses["kl"], delta = step.loss, step.delta
    total = sum(losses[name] * (ALPHA if name == "kl" else 1.0) for name in losses)
    total.backward()
    ddp.finish_grad_sync()
    finalize_model_grads([ddp])
    whole = {name: _whole(p.main_grad, p, groups) for name, p in model.named_parameters()}
    result = {name: loss.item() for name, loss in losses.items()}
    return whole, result, inner_main_grad, delta if adversarial else None


def _adversarial_loss(model, x, clean, forward, *, batch, groups, plain_backward):
    length = x.size(0)
    first = groups.tp_rank * length if groups.sequence_parallel else 0
    mask = batch.padding_mask.transpose(0, 1)[first : first + length]
    regularizer = AlumRegularizer(ALUM, kernels(groups.tp, VOCAB_SIZE), plain_backward=plain_backward)
    key = noise_key(batch, first_position=first, num_positions=length)
    return regularizer(x, clean, forward, mask=mask, noise_key=key, parameters=model.parameters())


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
    """The gradient of the unsplit parameter, put together from the tensor-parallel ranks."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return gradient.clone()
    parts = [torch.empty_like(gradient) for _ in range(groups.tp_size)]
    torch.distributed.all_gather(parts, gradient.contiguous(), group=groups.tp)
    return torch.cat(parts, dim=parameter.partition_dim)
