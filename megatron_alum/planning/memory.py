"""Memory of one process at the peak of a step, by formula, for any network, layout and precision.

    weights       parameters of this rank, in the compute dtype
    gradients     float32 or bfloat16 buffer of the data-parallel wrapper
    optimizer     Adam's two moments, and float32 master weights with 16 bits or the distributed optimizer
    activations   what the layers keep for backward: of the clean pass, and of the adversarial one in the same graph
    head          logits at masked positions and the gradients of the vocabulary table that meet there, unless they go
                  straight into the buffer (models/cpu.py)

The peak lies at the start of the outer backward: both graphs are alive, the inner pass's is freed by then and was
smaller (frozen parameters keep no inputs of linear layers). What a save takes: `checkpoint_bytes`. Sizes are those of
the real tokens. Letters: h hidden, f feed-forward. Not counted: the process itself (Python, torch, CUDA context),
communication buffers and allocator fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.placement import num_adversarial
from megatron_alum.objective.schedule import Phase
from megatron_alum.planning.flops import TextSize


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by use."""

    weights: float
    """parameters"""
    gradients: float
    """gradient buffer"""
    optimizer: float
    """moments and master weights"""
    activations: float
    """kept for backward by embedding and layers"""
    head: float
    """logits and what surrounds them"""

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def num_parameters(config: RunConfig, *, padded_vocab_size: int, tensor_parallel_size: int = 1) -> int:
    """Parameters one rank of a tensor-parallel group holds; all of the network for size 1."""
    return _stage_parameters(config, 0, 1, padded_vocab_size=padded_vocab_size, tp=tensor_parallel_size)


def _stage_parameters(config: RunConfig, stage: int, stages: int, *, padded_vocab_size: int, tp: int) -> int:
    """Parameters of one rank of pipeline stage `stage` of `stages`; the last one has a copy of the tied word table."""
    model = config.model
    h, f = model.hidden_size, model.ffn_hidden_size
    split = 4 * h * h + 3 * h + 2 * h * f + f
    layer = split // tp + 2 * h + 4 * h  # output biases and two LayerNorms are whole on every rank
    parameters = model.num_layers // stages * layer
    if stage in (0, stages - 1):
        parameters += padded_vocab_size // tp * h
    if stage == 0:
        parameters += (model.num_position_rows + model.num_token_types) * h
    if stage == stages - 1:  # the decoder's bias, the heads, the last LayerNorm
        parameters += padded_vocab_size // tp + h * h + 3 * h + 2 * h
        parameters += (h * h + h + 2 * h + 2) if model.has_nsp_head else 0
    return parameters


def estimate_memory(
    config: RunConfig, phase: Phase, *, vocab_size: int, world_size: int, on_gpu: bool, text: TextSize
) -> MemoryEstimate:
    """The peak of a step of `phase` on one of `world_size` processes; of pipeline stages, on the fullest one.

    `text` is an average global batch: placement by length gives every micro-batch nearly the same number of tokens.
    """
    tp, stages = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
    padded = -(-vocab_size // config.model.make_vocab_size_divisible_by) * config.model.make_vocab_size_divisible_by
    bytes_each = 4 if config.precision.dtype_name == "float32" else 2
    copies = world_size // (tp * stages)
    sharing = copies if config.parallel.use_distributed_optimizer else 1
    needs_master = bytes_each == 2 or config.parallel.use_distributed_optimizer
    micro_batches = config.training.global_batch_size // (config.training.micro_batch_size * copies)
    micro = text.scaled(config.training.micro_batch_size / config.training.global_batch_size)
    activations = _activations(config, phase, micro, bytes_each, on_gpu) / stages
    autograd = on_gpu or bytes_each == 2 or config.compute.torch_compile or config.parallel.overlap_grad_reduce
    table = padded // tp * config.model.hidden_size * bytes_each if autograd else 0

    def of_stage(stage: int) -> MemoryEstimate:
        parameters = _stage_parameters(config, stage, stages, padded_vocab_size=padded, tp=tp)
        in_flight = min(stages - stage, micro_batches)  # forward passes whose backward is still to come
        return MemoryEstimate(
            weights=parameters * bytes_each,
            gradients=parameters * (2 if config.parallel.grad_reduce_in_bf16 else 4),
            optimizer=parameters * (12 if needs_master else 8) / sharing,
            activations=activations * in_flight,
            head=_head(config, phase, micro, bytes_each, padded // tp, table) if stage == stages - 1 else 0.0,
        )

    return max((of_stage(stage) for stage in {0, stages - 1}), key=lambda estimate: estimate.total)


def checkpoint_bytes(config: RunConfig, *, vocab_size: int) -> float:
    """Size of a checkpoint: weights, and float32 moments and master weights where they are not the weights themselves.

    Every process writes an equal share of it; with --async-save it holds a copy of that share in host memory until it
    is written. A save needs no device memory: the shares are views of existing tensors.
    """
    divisor = config.model.make_vocab_size_divisible_by
    parameters = num_parameters(config, padded_vocab_size=-(-vocab_size // divisor) * divisor)
    is_16_bit = config.precision.dtype_name != "float32"
    return parameters * (
        (2 if is_16_bit else 4) + (12 if is_16_bit or config.parallel.use_distributed_optimizer else 8)
    )


def _activations(config: RunConfig, phase: Phase, micro: TextSize, bytes_each: int, on_gpu: bool) -> float:
    """Of embedding and layers, for both passes."""
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    tokens, layers = micro.tokens, model.num_layers
    # The residual stream and LayerNorm are split by tokens under sequence parallelism only.
    around = tp if config.parallel.sequence_parallel else 1
    embedding = 3 * tokens * model.hidden_size * 4 / around  # words, their sum with positions, the perturbation
    layer = _layer(config, micro, bytes_each, on_gpu)
    rho = 0.0 if phase == "standard" else _adversarial_share(config)
    layer_passes = layers + rho * (layers - (config.alum.perturb_layer or 0))  # late layers: the upper ones twice
    if config.compute.recompute_granularity == "full":
        kept = tokens * model.hidden_size * bytes_each / around
        # One layer at a time is computed again, whichever pass it belongs to, and its widest gradients exist beside it.
        gradients = tokens * (2 * model.ffn_hidden_size / tp + 2 * model.hidden_size / around) * bytes_each
        return (1 + rho) * embedding + layer_passes * kept + layer + gradients
    spared = _spared_by_the_last_mlp(config, micro, bytes_each, on_gpu)
    return (1 + rho) * (embedding - spared) + layer_passes * layer


def _adversarial_share(config: RunConfig) -> float:
    """Share of adversarial sequences in the micro-batch that has most of them; they are spread evenly."""
    training = config.training
    number = num_adversarial(training.global_batch_size, config.alum.batch_fraction)
    micro_batches = training.global_batch_size // training.micro_batch_size  # of all ranks
    return -(-number // micro_batches) / training.micro_batch_size


def _spared_by_the_last_mlp(config: RunConfig, micro: TextSize, bytes_each: int, on_gpu: bool) -> float:
    """What the last MLP, its LayerNorm and dropout would keep for the tokens that no head reads."""
    if not config.encodes_rows:
        return 0.0
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    unread = micro.tokens * (1 - max(config.data.mask_rates)) - micro.sequences * model.has_nsp_head
    residual = 2 * model.hidden_size * bytes_each + model.hidden_size * _keeps_masks(config, on_gpu)
    return unread * (residual + 2 * model.ffn_hidden_size / tp * bytes_each)


def _keeps_masks(config: RunConfig, on_gpu: bool) -> bool:
    """Whether dropout keeps a byte per element; on the CPU a seed is enough."""
    return on_gpu and config.model.hidden_dropout > 0


def _layer(config: RunConfig, micro: TextSize, bytes_each: int, on_gpu: bool) -> float:
    """What one layer keeps for its backward."""
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    h, f = model.hidden_size, model.ffn_hidden_size
    around = tp if config.parallel.sequence_parallel else 1
    residual = 4 * h * bytes_each + 2 * h * _keeps_masks(config, on_gpu)  # two LayerNorms, in and out; two masks
    inside = (4 * h + 2 * f) / tp * bytes_each  # q, k, v, context; before and after the GELU
    return micro.tokens * (residual / around + inside)


def _head(config: RunConfig, phase: Phase, micro: TextSize, bytes_each: int, rows: int, table: int) -> float:
    """Logits and the gradients of the vocabulary table at the start of backward, `table` bytes each."""
    model, alum = config.model, config.alum
    masked = micro.tokens * max(config.data.mask_rates)
    if phase == "standard":  # the gradient is written over the logits
        return masked * rows * bytes_each + table
    adversarial = masked * _adversarial_share(config)
    if alum.head_chunk_rows:
        chunk = min(alum.head_chunk_rows, max(adversarial, masked - adversarial))
        return 2 * chunk * rows * bytes_each + rows * model.hidden_size * 4 + table
    return (masked + adversarial) * rows * bytes_each + 2 * table
