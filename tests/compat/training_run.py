"""A few steps of megatron-core's own training machinery on the CPU, for the tests of the redirects."""

import logging

import torch
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from torch.nn import functional as F

from megatron_alum.config.model import ModelConfig
from megatron_alum.models import ModelInputs, build_model
from megatron_alum.parallel import initialize, seed_everything

VOCAB_SIZE = 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Records(logging.Handler):
    """Collects what is logged."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def build(world_size, precision, distributed_optimizer, *, tensor_parallel_size=None):
    """(model, DDP, optimizer, groups) of a small BERT with dropout."""
    groups = initialize(tensor_parallel_size=tensor_parallel_size or world_size)
    seed_everything(5, groups)
    config = ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2, seq_length=8)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, dtype=DTYPES[precision])
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=distributed_optimizer, grad_reduce_in_fp32=True
    )
    ddp = DistributedDataParallel(model.config, ddp_config, model)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=3e-3,
            clip_grad=1.0,
            log_num_zeros_in_grad=True,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            initial_loss_scale=2.0**8,
            params_dtype=DTYPES[precision],
            use_distributed_optimizer=distributed_optimizer,
        ),
        [ddp],
    )
    return model, ddp, optimizer, groups


def inputs_of(tokens, masked_positions):
    """Rows [B, S] of full length as the network takes them."""
    num_rows, length = tokens.shape
    return ModelInputs.of(
        tokens=tokens.flatten(),
        token_types=torch.zeros(tokens.numel(), dtype=torch.int64),
        position=torch.arange(length).repeat(num_rows),
        lengths=(length,) * num_rows,
        masked_positions=masked_positions,
        device=torch.device("cpu"),
    )


def step(model, ddp, optimizer):
    """One step on fixed tokens; the loss."""
    ddp.zero_grad_buffer()
    optimizer.zero_grad()
    tokens = torch.arange(24).view(3, 8) % VOCAB_SIZE
    positions = torch.arange(0, 24, 2)
    outputs = ddp(inputs_of(tokens, positions))
    logits = [torch.empty_like(outputs.mlm_logits) for _ in range(model.groups.tp_size)]
    torch.distributed.all_gather(logits, outputs.mlm_logits.detach(), group=model.groups.tp)
    logits[model.groups.tp_rank] = outputs.mlm_logits
    # autograd sees only one rank's part of the cross-entropy's gradient: enough to fit 12 tokens
    loss = F.cross_entropy(torch.cat(logits, 1).float()[:, :VOCAB_SIZE], tokens.flatten()[positions])
    optimizer.scale_loss(loss).backward()
    ddp.finish_grad_sync()
    finalize_model_grads([ddp])
    succeeded, grad_norm, num_zeros = optimizer.step()
    return loss.item(), succeeded, float(grad_norm), num_zeros


def train(rank, world_size, precision, distributed_optimizer, tensor_parallel_size):
    """Losses of 12 steps, gradient norms, and what the RNG tracker's logger passed."""
    records = Records()
    logger = logging.getLogger("megatron.core.tensor_parallel.random")
    logger.addHandler(records)
    model, ddp, optimizer, _ = build(
        world_size, precision, distributed_optimizer, tensor_parallel_size=tensor_parallel_size
    )
    steps = [step(model, ddp, optimizer) for _ in range(12)]
    logger.warning("something else")
    logger.removeHandler(records)
    return steps, records.messages


def save(rank, world_size, folder):
    """Trains three steps, saves model and optimizer with dist_checkpointing, and trains one more."""
    model, ddp, optimizer, _ = build(world_size, "fp32", False)
    for _ in range(3):
        step(model, ddp, optimizer)
    state = {"model": model.sharded_state_dict()}
    state["optimizer"] = optimizer.sharded_state_dict(state["model"])
    dist_checkpointing.save(state, folder)
    return _eval_loss(model)


def load(rank, world_size, folder):
    """Loads what `save` left, at another layout."""
    model, ddp, optimizer, _ = build(world_size, "fp32", False)
    step(
        model, ddp, optimizer
    )  # gives the optimizer a state to load into, and the network another one than what was saved
    state = {"model": model.sharded_state_dict()}
    state["optimizer"] = optimizer.sharded_state_dict(state["model"], is_loading=True)
    loaded = dist_checkpointing.load(state, folder)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    return _eval_loss(model)


@torch.no_grad()
def _eval_loss(model):
    """Log-sum-exp and logits of a fixed batch, over all ranks' vocabulary rows."""
    tokens = torch.arange(24).view(3, 8) % VOCAB_SIZE
    model.eval()
    outputs = model(inputs_of(tokens, torch.arange(24)))
    parts = [torch.empty_like(outputs.mlm_logits) for _ in range(model.groups.tp_size)]
    torch.distributed.all_gather(parts, outputs.mlm_logits, group=model.groups.tp)
    return torch.cat(parts, 1)[:, :VOCAB_SIZE]
