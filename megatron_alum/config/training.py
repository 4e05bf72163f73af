"""How a run trains: length and batches, optimizer, layout over processes, number formats, memory against time.

The paper gives the learning-rate schedule (section 4.2: peak 1e-4, linear warm-up over the first 1 % of the steps,
linear decay to 0); betas, epsilon and weight decay are those of Devlin et al. 2018. Biases and LayerNorm weights are
never decayed. Master weights, moments, losses and delta are float32 in every number format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """Length of the run and batch sizes

    One iteration is one optimizer step over the global batch, however many processes and micro-batches share it.
    """

    train_iters: int = 1_000_000
    """iterations of the whole run; fixes learning-rate, phase and mask-rate schedules (ALUM section 4.2: 1,000,000)"""
    global_batch_size: int = 256
    """sequences in one optimizer step (ALUM section 4.2: 256)"""
    micro_batch_size: int = 8
    """sequences one process sends through the model at a time, on average: an iteration's are shared out by length"""
    token_multiple: int | None = None
    """tokens of a micro-batch are filled up to a multiple of this, itself a multiple of 8 x
    --tensor-model-parallel-size, the default. A large one (1024, say) leaves few shapes for compilers and CUDA graphs,
    and adds half of itself in idle tokens"""
    seed: int = 1234
    """seed of initial weights, dropout, sampling and the adversarial noise"""
    eval_interval: int = 1000
    """iterations between two validations on the held-out split; 0 turns validation off"""
    eval_iters: int = 10
    """global batches of one validation"""
    exit_interval: int | None = None
    """save and stop cleanly after this iteration, as if the run had been interrupted there"""
    override_schedule: bool = False
    """accept other samples and schedules (--train-iters, --global-batch-size, --seed, masking, blend weights, ...) than
    those of the run that is resumed; no sample is skipped or seen twice where the batch alone changes"""
    max_consecutive_skips: int = 20
    """abort with a diagnosis after this many iterations in a row with a non-finite loss or gradient; 0 never aborts"""

    def __post_init__(self) -> None:
        """Refuse counts that leave nothing to do and batches that do not divide."""
        for flag, count in (
            ("train-iters", self.train_iters),
            ("global-batch-size", self.global_batch_size),
            ("micro-batch-size", self.micro_batch_size),
            ("eval-iters", self.eval_iters),
        ):
            if count < 1:
                raise ValueError(f"--{flag} must be at least 1, but is {count} instead.")
        for flag, count in (
            ("eval-interval", self.eval_interval),
            ("max-consecutive-skips", self.max_consecutive_skips),
        ):
            if count < 0:
                raise ValueError(f"--{flag} must not be negative, but is {count} instead.")
        if self.token_multiple is not None and self.token_multiple < 1:
            raise ValueError(f"--token-multiple must be at least 1, but is {self.token_multiple} instead.")
        if self.exit_interval is not None and self.exit_interval < 1:
            raise ValueError(f"--exit-interval must be at least 1, but is {self.exit_interval} instead.")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"--seed must be at least 0 and below 2**31, but is {self.seed} instead.")
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

    lr: float = 1e-4
    """peak learning rate (ALUM section 4.2: 1e-4 from scratch, 4e-5 continual)"""
    min_lr: float = 0.0
    """learning rate that the decay runs towards; it would be reached one iteration after the last one"""
    lr_warmup_fraction: float = 0.01
    """share of --train-iters over which the rate rises linearly from 0 (ALUM section 4.2: 1 %)"""
    weight_decay: float = 0.01
    """decoupled weight decay; none on biases and LayerNorm (Devlin et al. 2018: 0.01)"""
    adam_beta1: float = 0.9
    """decay of the first moment (Devlin et al. 2018)"""
    adam_beta2: float = 0.999
    """decay of the second moment (Devlin et al. 2018; RoBERTa: 0.98)"""
    adam_eps: float = 1e-6
    """added to the root of the second moment (Devlin et al. 2018: 1e-6)"""
    clip_grad: float = 1.0
    """largest global L2 norm of the gradient; 0 turns clipping off"""

    def __post_init__(self) -> None:
        """Refuse rates outside their range."""
        if self.lr <= 0:
            raise ValueError(f"--lr must be positive, but is {self.lr} instead.")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"--min-lr must be between 0 and --lr ({self.lr}), but is {self.min_lr} instead.")
        for flag, share in (
            ("lr-warmup-fraction", self.lr_warmup_fraction),
            ("adam-beta1", self.adam_beta1),
            ("adam-beta2", self.adam_beta2),
        ):
            if not 0 <= share < 1:
                raise ValueError(f"--{flag} must be at least 0 and below 1, but is {share} instead.")
        for flag, value in (("weight-decay", self.weight_decay), ("clip-grad", self.clip_grad)):
            if value < 0:
                raise ValueError(f"--{flag} must not be negative, but is {value} instead.")
        if self.adam_eps <= 0:
            raise ValueError(f"--adam-eps must be positive, but is {self.adam_eps} instead.")


@dataclass(frozen=True)
class ParallelConfig:
    """Layout over processes

    Data-parallel size = number of processes / (tensor-parallel size x pipeline stages).
    """

    tensor_model_parallel_size: int = 1
    """processes that share every layer's matrices (heads, feed-forward columns, vocabulary rows)"""
    pipeline_model_parallel_size: int = 1
    """stages of consecutive layers, one after another in time (1F1B); for runs without an adversarial phase only, whose
    inner pass needs the embedding and the logits in one process"""
    sequence_parallel: bool = False
    """split LayerNorm, dropout and the residual over tokens inside a tensor-parallel group; saves activation memory"""
    use_distributed_optimizer: bool = False
    """split master weights and Adam's moments over the data-parallel group"""
    overlap_grad_reduce: bool = False
    """reduce gradients over the data-parallel group while backward still runs"""
    grad_reduce_in_bf16: bool = False
    """keep the gradient buffer in bfloat16 and reduce it so: half the memory and traffic, and sums over micro-batches
    and replicas with 8 bits; with --bf16 only"""
    check_weight_hash_across_dp_replicas_interval: int = 0
    """iterations between two checks that all data-parallel replicas hold the same weights, bit for bit; 0 never checks.
    One pass over the weights, for which the host waits"""
    distributed_timeout_minutes: float = 10.0
    """minutes after which a collective that some process never joined is given up"""

    def __post_init__(self) -> None:
        """Refuse sizes below one and layouts that do not exist here."""
        for flag, size in (
            ("tensor-model-parallel-size", self.tensor_model_parallel_size),
            ("pipeline-model-parallel-size", self.pipeline_model_parallel_size),
        ):
            if size < 1:
                raise ValueError(f"--{flag} must be at least 1, but is {size} instead.")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError(
                "--sequence-parallel must be false without tensor parallelism, but is true instead. "
                "Set --tensor-model-parallel-size to 2 or more."
            )
        if self.check_weight_hash_across_dp_replicas_interval < 0:
            raise ValueError(
                "--check-weight-hash-across-dp-replicas-interval must not be negative, but is "
                f"{self.check_weight_hash_across_dp_replicas_interval} instead."
            )
        if self.distributed_timeout_minutes <= 0:
            raise ValueError(
                f"--distributed-timeout-minutes must be positive, but is {self.distributed_timeout_minutes} instead."
            )


@dataclass(frozen=True)
class PrecisionConfig:
    """Precision

    float32 unless --bf16 or --fp16; with ALUM the embedding, delta and the first LayerNorm's input stay float32.
    """

    bf16: bool = False
    """run the encoder and the heads in bfloat16"""
    fp16: bool = False
    """run the encoder and the heads in float16 with dynamic loss scaling, which covers the inner gradient too"""
    initial_loss_scale: float = 2.0**16
    """first factor on the loss (fp16)"""
    min_loss_scale: float = 1.0
    """smallest factor on the loss (fp16)"""
    loss_scale_window: int = 1000
    """iterations without overflow after which the factor doubles (fp16)"""
    hysteresis: int = 2
    """overflows before the factor is halved (fp16)"""

    def __post_init__(self) -> None:
        """Refuse both formats at once and scales that cannot work."""
        if self.bf16 and self.fp16:
            raise ValueError("--fp16 must be false when --bf16 is true, but both are true instead. Choose one.")
        if not 0 < self.min_loss_scale <= self.initial_loss_scale:
            raise ValueError(
                f"--min-loss-scale must be positive and at most --initial-loss-scale ({self.initial_loss_scale}), "
                f"but is {self.min_loss_scale} instead."
            )
        for flag, count in (("loss-scale-window", self.loss_scale_window), ("hysteresis", self.hysteresis)):
            if count < 1:
                raise ValueError(f"--{flag} must be at least 1, but is {count} instead.")

    @property
    def dtype_name(self) -> str:
        """`torch` attribute of the compute dtype."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


@dataclass(frozen=True)
class ComputeConfig:
    """Memory and cost of a step"""

    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """activations computed again in backward: none, selective (the attention core), full (every layer); dropout masks
    are replayed, so the losses do not change"""
    torch_compile: bool = False
    """compile the encoder layers with torch.compile"""
    manual_gc_interval: int = 0
    """iterations between two runs of Python's garbage collector, on all processes at once, where each would otherwise
    stop for it at a time of its own and let the others wait; 0 leaves it to Python"""

    def __post_init__(self) -> None:
        """Refuse negative intervals."""
        if self.manual_gc_interval < 0:
            raise ValueError(f"--manual-gc-interval must not be negative, but is {self.manual_gc_interval} instead.")
