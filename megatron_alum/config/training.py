"""How many samples, in what portions, for how long, and what happens between the steps."""

from __future__ import annotations

from dataclasses import dataclass


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
