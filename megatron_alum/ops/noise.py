"""The random start of the ascent: Gaussian noise that depends on what a number is for, never on who computes it.

    noise[t, h] = std * gaussian(Philox(key = (seed, iteration), counter = (sample_index[t], position[t], h)))

So tensor-, sequence- and data-parallel layouts, micro-batch sizes and devices all see the same perturbation, bit for
bit, and nothing random has to be stored in a checkpoint. Definition and sources: megatron_alum/reference/noise.py.
"""

import torch
from torch import Tensor

from megatron_alum.ops import dispatch
from megatron_alum.reference import noise as reference
from megatron_alum.reference.noise import NoiseKey, check_indices, check_key

__all__ = ["NoiseKey", "gaussian_noise"]


def gaussian_noise(
    sample_index: Tensor,
    position: Tensor,
    num_channels: int,
    *,
    std: float,
    key: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Noise [n, num_channels]; bit-equal for every `impl`.

    sample_index (global) and position int64 [n], one of each per token; key = (seed, iteration), each in [0, 2^32).
    `device` defaults to that of the index tensors. The numbers are float32, rounded to `dtype` at the end.
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
        noise = torch.ops.megatron_alum.perturb(
            *(None, None, sample_index, position, std, *key, num_channels), *(None, 0.0, 0.0, 0, None, torch.float32)
        )[1]
    return noise.to(dtype)
