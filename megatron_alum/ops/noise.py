"""The random start of the ascent: Gaussian noise that depends on what a number is for, never on who computes it.

    noise[s, b, h] = std * gaussian(Philox(key = (seed, iteration), counter = (sample_index[b], position[s], h)))

So tensor-, sequence- and data-parallel layouts, micro-batch sizes and devices all see the same perturbation, bit for
bit, and nothing random has to be stored in a checkpoint. Definition and sources:
megatron_alum/ops/reference/noise.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_alum.ops import dispatch
from megatron_alum.ops.reference import noise as reference

_WORDS = 1 << 32


@dataclass(frozen=True)
class NoiseKey:
    """A random start that is generated where it is used and never stored."""

    seed: int
    """Of the run, 0 <= seed < 2^32."""
    iteration: int
    """Training iteration, 0 <= iteration < 2^32."""
    sample_index: Tensor
    """int64 [B]: global index of each sample."""
    position: Tensor
    """int64 [S]: position in the sequence of each token held here, 0 <= position < 2^32."""
    std: float
    """Standard deviation."""
    batch_first: bool = False
    """Noise of shape [B, S, H] instead of [S, B, H]."""

    def __post_init__(self) -> None:
        """Refuses what the 32-bit words of the generator cannot hold; tensors' values are not read (no host sync)."""
        check_key((self.seed, self.iteration))
        check_indices(self.sample_index, self.position)
        if not self.std >= 0:
            raise ValueError(f"`std` must be >= 0, but is {self.std} instead.")


def gaussian_noise(
    sample_index: Tensor,
    position: Tensor,
    num_channels: int,
    *,
    std: float,
    key: tuple[int, int],
    batch_first: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Noise [S, B, num_channels], or [B, S, num_channels] with `batch_first`; bit-equal for every `impl`.

    sample_index int64 [B] (global), position int64 [S]; key = (seed, iteration), each in [0, 2^32). `device` is the
    index tensors' by default. The numbers are float32, rounded to `dtype` at the end.
    """
    check_key(key)
    check_indices(sample_index, position)
    if num_channels < 1:
        raise ValueError(f"`num_channels` must be >= 1, but is {num_channels} instead.")
    device = sample_index.device if device is None else torch.device(device)
    sample_index, position = sample_index.to(device), position.to(device)
    if dispatch.select(impl, torch.empty(0, dtype=torch.float32, device=device)) == "reference":
        noise = reference.gaussian_noise(sample_index, position, num_channels, std, key)
    else:
        noise = torch.ops.megatron_alum.gaussian_noise(sample_index, position, num_channels, std, *key)
    return (noise.transpose(0, 1).contiguous() if batch_first else noise).to(dtype)


def check_key(key: tuple[int, int]) -> None:
    """Seed and iteration are one 32-bit word each."""
    for name, value in zip(("seed", "iteration"), key, strict=True):
        if not 0 <= value < _WORDS:
            raise ValueError(f"`{name}` of the noise must be in [0, 2^32), but is {value} instead.")


def check_indices(sample_index: Tensor, position: Tensor) -> None:
    """Both one-dimensional int64."""
    for name, tensor in (("sample_index", sample_index), ("position", position)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            found = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise ValueError(f"`{name}` must be an int64 tensor with one dimension, but is {found} instead.")
