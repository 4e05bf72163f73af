"""How a run trains: length and batches, optimizer, layout over processes, number formats, memory and cost.

The paper gives the learning-rate schedule (section 4.2: peak 1e-4, linear warm-up over the first 1 % of the steps,
linear decay to 0); betas, epsilon and weight decay are those of Devlin et al. 2018. Biases and LayerNorm weights are
never decayed. Master weights, moments, losses and delta are float32 in every number format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_alum.config.checks import (
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Range,
    ShareBelowOne,
    check_fields,
)

Backend = Literal["nccl", "gloo"]


@dataclass(frozen=True)
class TrainingConfig:
    """Length of the run and batch sizes

    One iteration is one optimizer step over the global batch, however many processes and micro-batches share it.
    """

    train_iters: Count = 1_000_000
    """iterations of the whole run; fixes learning-rate, phase and mask-rate schedules (ALUM section 4.2: 1,000,000)"""
    global_batch_size: Count = 256
    """samples of one optimizer step (ALUM section 4.2: 256)"""
    micro_batch_size: Count = 8
    """samples that one process sends through the network at a time, on average: those of an iteration are distributed
    by length"""
    token_multiple: Count | None = None
    """the tokens of a micro-batch are filled up to a multiple of this, itself a multiple of 8 x
    --tensor-model-parallel-size (the default). A large one (1024, say) leaves few shapes for compilers and CUDA graphs,
    but adds idle tokens, half of it on average"""
    seed: Annotated[int, Range(0, 2**31, high_open=True)] = 1234
    """seed of initial weights, dropout, sampling and the adversarial noise"""
    eval_interval: CountOrZero = 1000
    """iterations between two validations on the held-out split; 0 turns validation off"""
    eval_iters: Count = 10
    """global batches of one validation"""
    exit_interval: Count | None = None
    """save and stop cleanly after this iteration, as if the run had been interrupted there"""
    override_schedule: bool = False
    """accept other samples and schedules (--train-iters, --global-batch-size, --seed, masking, blend weights, ...) than
    those of the run that is resumed; no sample is skipped or seen twice if only the batch changes"""
    max_consecutive_skips: CountOrZero = 20
    """abort with a diagnosis after this many consecutive iterations with a non-finite loss or gradient; 0 never
    aborts"""

    def __post_init__(self) -> None:
        """Refuse counts that leave nothing to do and batches that do not divide."""
        check_fields(self)
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"--global-batch-size must be a multiple of --micro-batch-size ({self.micro_batch_size}), "
                f"but is {self.global_batch_size} instead."
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate

    Adam with decoupled weight decay; linear warm-up, then linear decay to the last iteration.
    """

    lr: Positive = 1e-4
    """peak learning rate (ALUM section 4.2: 1e-4 from scratch, 4e-5 continual)"""
    min_lr: PositiveOrZero = 0.0
    """learning rate towards which the decay runs; it would be reached one iteration after the last"""
    lr_warmup_fraction: ShareBelowOne = 0.01
    """share of --train-iters over which the rate rises linearly from 0 (ALUM section 4.2: 1 %)"""
    weight_decay: PositiveOrZero = 0.01
    """decoupled weight decay; none on biases and LayerNorm (Devlin et al. 2018: 0.01)"""
    adam_beta1: ShareBelowOne = 0.9
    """decay of the first moment (Devlin et al. 2018)"""
    adam_beta2: ShareBelowOne = 0.999
    """decay of the second moment (Devlin et al. 2018; RoBERTa: 0.98)"""
    adam_eps: Positive = 1e-6
    """added to the root of the second moment (Devlin et al. 2018: 1e-6)"""
    clip_grad: PositiveOrZero = 1.0
    """largest global L2 norm of the gradient; 0 turns clipping off"""

    def __post_init__(self) -> None:
        """Refuse rates outside their range."""
        check_fields(self)
        if self.min_lr > self.lr:
            raise ValueError(f"--min-lr must be between 0 and --lr ({self.lr}), but is {self.min_lr} instead.")


@dataclass(frozen=True)
class ParallelConfig:
    """Layout over processes

    Data-parallel size = number of processes / (tensor-parallel size x pipeline stages).
    """

    tensor_model_parallel_size: Count = 1
    """processes that share every layer's matrices (heads, feed-forward columns, vocabulary rows)"""
    pipeline_model_parallel_size: Count = 1
    """stages of consecutive layers, one after another in time (1F1B); only for runs without an adversarial phase or
    that --exit-interval stops before it, because its inner pass needs the embedding and the logits in one process"""
    sequence_parallel: bool = False
    """split LayerNorm, dropout and the residual over tokens inside a tensor-parallel group; saves activation memory"""
    use_distributed_optimizer: bool = False
    """split master weights and Adam's moments over the data-parallel group"""
    overlap_grad_reduce: bool = False
    """all-reduce gradients over the data-parallel group while the backward pass still runs"""
    overlap_param_gather: bool = False
    """gather the distributed optimizer's new weights while the next forward pass begins; with
    --use-distributed-optimizer and --overlap-grad-reduce, without pipeline stages"""
    grad_reduce_in_bf16: bool = False
    """keep and reduce gradients in bfloat16: half the memory and traffic, but sums over micro-batches and replicas have
    8 bits of precision; only with --bf16"""
    check_weight_hash_across_dp_replicas_interval: CountOrZero = 0
    """iterations between two checks that all data-parallel replicas hold the same weights, bit for bit; 0 never checks.
    Each check is one pass over the weights, for which the host waits"""
    distributed_backend: Backend | None = None
    """what carries tensors between processes: by default nccl on GPUs and gloo on CPUs. gloo on GPUs goes through the
    memory of the host and lets the processes of a node share its GPUs: a trial of several ranks where there is one GPU
    """
    distributed_timeout_minutes: Positive = 10.0
    """minutes after which a collective that some process has not joined is abandoned"""

    def __post_init__(self) -> None:
        """Refuse sizes below one and unsupported layouts."""
        check_fields(self)
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError(
                "--sequence-parallel must be false without tensor parallelism, but is true instead. "
                "Set --tensor-model-parallel-size to 2 or more."
            )
        needed = {
            "--use-distributed-optimizer": self.use_distributed_optimizer,
            "--overlap-grad-reduce": self.overlap_grad_reduce,
            "--pipeline-model-parallel-size 1": self.pipeline_model_parallel_size == 1,
        }
        missing = [flag for flag, given in needed.items() if not given]
        if self.overlap_param_gather and missing:
            raise ValueError(
                f"--overlap-param-gather must be false without {' and '.join(missing)}, but is true instead. Give "
                "these, or leave it out."
            )


@dataclass(frozen=True)
class PrecisionConfig:
    """Precision

    float32 unless --bf16 or --fp16; with ALUM the embedding, delta and the first LayerNorm's input stay in float32.
    """

    bf16: bool = False
    """run the encoder and the heads in bfloat16"""
    fp16: bool = False
    """run the encoder and the heads in float16 with dynamic loss scaling, which covers the inner gradient too"""
    initial_loss_scale: Positive = 2.0**16
    """initial loss scale (fp16)"""
    min_loss_scale: Positive = 1.0
    """smallest loss scale (fp16)"""
    loss_scale_window: Count = 1000
    """iterations without overflow after which the loss scale doubles (fp16)"""
    hysteresis: Count = 2
    """overflows before the loss scale is halved (fp16)"""

    def __post_init__(self) -> None:
        """Refuse both formats at once and scales that cannot work."""
        check_fields(self)
        if self.bf16 and self.fp16:
            raise ValueError("--fp16 must be false when --bf16 is true, but both are true instead. Choose one.")
        if self.min_loss_scale > self.initial_loss_scale:
            raise ValueError(
                f"--min-loss-scale must be at most --initial-loss-scale ({self.initial_loss_scale}), "
                f"but is {self.min_loss_scale} instead."
            )

    @property
    def dtype_name(self) -> str:
        """`torch` attribute of the compute dtype."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


@dataclass(frozen=True)
class ComputeConfig:
    """Memory and cost of a step"""

    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """activations recomputed in the backward pass: none, selective (the attention core, which saves nothing here: its
    weights are never kept), full (every layer); dropout masks are replayed, so the losses do not change"""
    torch_compile: bool = False
    """compile the encoder layers with torch.compile"""
    manual_gc_interval: CountOrZero = 0
    """iterations between two runs of Python's garbage collector, in all processes at once: otherwise each stops for it
    at a different time while the others wait; 0 leaves it to Python"""

    def __post_init__(self) -> None:
        """Refuse negative intervals."""
        check_fields(self)
