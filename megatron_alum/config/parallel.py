"""How the processes of a run share model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["nccl", "gloo"]


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
    distributed_backend: Backend | None = None
    """what carries tensors between processes: by default nccl on GPUs and gloo on CPUs. gloo on GPUs goes through the
    memory of the host and lets the processes of a node share its GPUs: a trial of several ranks where there is one GPU
    """
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
