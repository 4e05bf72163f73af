"""The configuration of one pre-training run: checkpoints and logging, the dataclasses of all other concerns, and the
checks that need two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_alum.config.alum import AlumConfig
from megatron_alum.config.checks import Count, CountOrZero, Positive, check_fields
from megatron_alum.config.data import DataConfig
from megatron_alum.config.model import ModelConfig
from megatron_alum.config.places import AnyInput, OutputFolder
from megatron_alum.config.training import (
    ComputeConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints

    A checkpoint is a folder iter_0000020/ that appears only when complete.
    """

    save: OutputFolder | None = None
    """folder of the run: checkpoints and metrics.jsonl"""
    load: AnyInput | None = None
    """run to continue from its newest valid checkpoint, or from the one named (RUN/iter_0000040). Options that are not
    given keep the run's values. An existing empty folder is a fresh start. Going back in --save itself moves newer
    checkpoints and a copy of the metrics into RUN/rolled_back_0001/"""
    save_interval: CountOrZero = 1000
    """iterations between two checkpoints; 0 saves only at the end and on signals"""
    keep_last: CountOrZero = 3
    """newest checkpoints to keep; 0 keeps all. The newest valid one is never deleted"""
    async_save: bool = False
    """write checkpoints from a background thread; at most one is in flight, a second waits for it"""
    init_from: AnyInput | None = None
    """Hugging Face folder, imported checkpoint or run whose weights start a fresh run (continual pre-training)"""

    def __post_init__(self) -> None:
        """Refuse negative intervals."""
        check_fields(self)


@dataclass(frozen=True)
class LoggingConfig:
    """Logging

    metrics.jsonl is always written; the rest is optional.
    """

    log_interval: Count = 1
    """iterations between two rows of metrics.jsonl; values are fetched from the device only then"""
    tensorboard_dir: OutputFolder | None = None
    """folder for TensorBoard events"""
    wandb_project: str | None = None
    """Weights & Biases project; needs the wandb package, and works offline with WANDB_MODE=offline"""
    progress_bar: bool = True
    """show a progress bar with loss, tokens/s and remaining time"""
    peak_tflops: Positive | None = None
    """dense peak of one device in TFLOP/s for the model FLOPs utilisation (mfu); known for common GPUs by default"""

    profile_step_start: Count | None = None
    """first iteration of a trace by torch's profiler, of rank 0, with a snapshot of the GPU's memory: RUN/profile/"""
    profile_step_end: Count | None = None
    """last iteration of the trace, by default the first; a few are enough, each takes tens of megabytes"""

    def __post_init__(self) -> None:
        """Refuse an interval below 1, a peak that is not positive and an empty trace."""
        check_fields(self)
        start, end = self.profile_step_start, self.profile_step_end
        if end is None:
            object.__setattr__(self, "profile_step_end", start)
        elif start is None or start > end:
            raise ValueError(
                f"--profile-step-start must be at least 1 and at most --profile-step-end ({end}), but is {start} "
                "instead."
            )


@dataclass(frozen=True)
class RunConfig:
    """This run"""

    data: DataConfig
    model: ModelConfig
    alum: AlumConfig = field(default_factory=AlumConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    dry_run: bool = False
    """build everything, run two steps of each phase, print batch arithmetic, FLOPs, memory and time at the measured
    speed; save nothing"""

    def __post_init__(self) -> None:
        """Refuse combinations that cannot run on any number of processes."""
        tp = self.parallel.tensor_model_parallel_size
        if self.model.num_attention_heads % tp:
            raise ValueError(
                f"--num-attention-heads must be a multiple of --tensor-model-parallel-size ({tp}), "
                f"but is {self.model.num_attention_heads} instead."
            )
        self._check_stages()
        self._check_layer()
        self._check_token_multiple()
        if self.parallel.grad_reduce_in_bf16 and not self.precision.bf16:
            raise ValueError("--grad-reduce-in-bf16 must be false without --bf16, but is true instead. Add --bf16.")
        if self.parallel.overlap_param_gather and self.compute.torch_compile:
            raise ValueError(
                "--overlap-param-gather must be false with --torch-compile, but is true instead: a compiled layer "
                "cannot wait for its weights. Leave one of them out."
            )
        if self.checkpoint.save is None and not self.dry_run:
            raise ValueError("--save must be given, but is not. Name the folder of the run, or try --dry-run.")

    @property
    def first_alum_iteration(self) -> int:
        """The first iteration of the adversarial phase, counted from 1; beyond the run when there is none."""
        total = self.training.train_iters
        return total + 1 if self.alum.alpha == 0.0 else round(self.alum.start_fraction * total) + 1

    @property
    def last_iteration(self) -> int:
        """The last iteration of this invocation."""
        exit_interval = self.training.exit_interval
        return self.training.train_iters if exit_interval is None else min(self.training.train_iters, exit_interval)

    @property
    def encodes_rows(self) -> bool:
        """Whether the last layer's MLP runs only on the positions that the heads read.

        Not when tokens are split over ranks or stages, and not when compiled: the number of positions changes with the
        batch.
        """
        whole = self.parallel.pipeline_model_parallel_size == 1 and not self.parallel.sequence_parallel
        return whole and not self.compute.torch_compile

    def _check_stages(self) -> None:
        """Refuse what pipeline stages cannot do."""
        stages, model = self.parallel.pipeline_model_parallel_size, self.model
        if stages == 1:
            return
        if self.last_iteration >= self.first_alum_iteration:
            raise ValueError(
                f"--pipeline-model-parallel-size must be 1 in the adversarial phase, but is {stages} instead: "
                "the ascent needs the embedding and the logits in one process. A network that needs stages has more "
                "than 20 billion parameters: use --tensor-model-parallel-size, "
                "--sequence-parallel, --use-distributed-optimizer or --recompute-granularity; or stop before iteration "
                f"{self.first_alum_iteration} with --exit-interval, or train without ALUM (--alum-alpha 0)."
            )
        if model.num_layers % stages:
            raise ValueError(
                f"--num-layers must be a multiple of --pipeline-model-parallel-size ({stages}), "
                f"but is {model.num_layers} instead."
            )
        if self.checkpoint.init_from is not None:
            raise ValueError(
                f"--init-from must not be given with --pipeline-model-parallel-size {stages}, but is "
                f"{self.checkpoint.init_from}. Run the first iteration without stages (--exit-interval 1), then "
                "continue with --load."
            )

    @property
    def token_multiple(self) -> int:
        """Tokens of a micro-batch are rounded up to a multiple of this: a multiple of 8 on every tensor-parallel
        rank."""
        return self.training.token_multiple or 8 * self.parallel.tensor_model_parallel_size

    def _check_token_multiple(self) -> None:
        """Refuse a multiple that would not give every tensor-parallel rank a multiple of 8 tokens."""
        smallest = 8 * self.parallel.tensor_model_parallel_size
        if self.token_multiple % smallest:
            raise ValueError(
                f"--token-multiple must be a multiple of 8 x --tensor-model-parallel-size = {smallest}, "
                f"but is {self.token_multiple} instead. Take {-(-self.token_multiple // smallest) * smallest}."
            )

    def _check_layer(self) -> None:
        """Refuse a perturbed layer that the network does not have, or whose hidden state is already the output."""
        layer, layers = self.alum.perturb_layer, self.model.num_layers
        if layer is not None and layer >= layers:
            raise ValueError(
                f"--alum-perturb-layer must be below --num-layers ({layers}), but is {layer} instead: "
                "the ascent needs a layer above it."
            )

    def data_parallel_size(self, world_size: int) -> int:
        """Number of data-parallel replicas on `world_size` processes.

        Raises: ValueError when the processes or the global batch do not divide evenly.
        """
        per_model = self.parallel.tensor_model_parallel_size * self.parallel.pipeline_model_parallel_size
        if world_size % per_model:
            raise ValueError(
                f"The number of processes must be a multiple of --tensor-model-parallel-size times "
                f"--pipeline-model-parallel-size ({per_model}), but is {world_size} instead. "
                "Set torchrun's --nproc-per-node (or --nnodes) accordingly."
            )
        dp, batch = world_size // per_model, self.training
        if batch.global_batch_size % (batch.micro_batch_size * dp):
            raise ValueError(
                f"--global-batch-size must be a multiple of --micro-batch-size ({batch.micro_batch_size}) times the "
                f"data-parallel size ({dp}), but is {batch.global_batch_size} instead."
            )
        return dp
