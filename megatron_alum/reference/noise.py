"""The random start in plain torch: Philox4x32-10 and the inverse Gaussian distribution function, bit-equal to csrc.

One Philox block gives four neighbouring channels of one token:
    key     = (seed, iteration)
    counter = (channel // 4, position, low word of the global sample index, its high word)
Word -> number: the top bit is the sign, the other 31 bits give a tail probability v = (bits + 1/2) / 2^32 in (0,
1/2], and the number is the Gaussian quantile of v, sqrt(2) erfinv(1 - 2 v), |z| <= 6.3, to 3e-6 (4e-4 beyond 5.5).
Only +, -, *, / and sqrt of float32 in a fixed order (each correctly rounded by IEEE 754, contraction off) and exact
bit operations: the same bits on every device. C++ twin: csrc/common/philox.h and gaussian.h.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); polynomials of erfinv: M. Giles,
"Approximating the erfinv function" (GPU Computing Gems, 2010), single precision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_WORDS = 1 << 32
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_SQRT_HALF_BITS = 0x3F3504F3
_LN_2 = 0.693147182
_SQRT_2 = 1.41421354
# log(1 + f) = f + f^2 P(f) for 1 + f in [sqrt(1/2), sqrt(2)], highest power first: least squares at 400 Chebyshev
# points, coefficients rounded to float32; relative error 1.1e-7.
_LOG = (0.08808367, -0.14351936, 0.1491018, -0.16563112, 0.1996212, -0.25002128, 0.33333957, -0.49999985)
_CENTRAL = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


@dataclass(frozen=True)
class NoiseKey:
    """A random start that is generated where it is used and never stored.

    Its n tokens are in row-major order of the leading dimensions of the tensor it is added to.
    """

    seed: int
    """Of the run, 0 <= seed < 2^32."""
    iteration: int
    """Training iteration, 0 <= iteration < 2^32."""
    sample_index: Tensor
    """int64 [n]: global index of each token's sample."""
    position: Tensor
    """int64 [n]: position of each token in its sequence, 0 <= position < 2^32."""
    std: float
    """Standard deviation."""

    def __post_init__(self) -> None:
        """Refuses what the 32-bit words of the generator cannot hold; tensors' values are not read (no host sync)."""
        check_key((self.seed, self.iteration))
        check_indices(self.sample_index, self.position)
        if not self.std >= 0:
            raise ValueError(f"`std` must be >= 0, but is {self.std} instead.")


def gaussian_noise(
    sample_index: Tensor, position: Tensor, num_channels: int, std: float, key: tuple[int, int]
) -> Tensor:
    """Noise [n, num_channels] float32 of n tokens, each with its sample_index and position (int64 [n])."""
    blocks = -(-num_channels // 4)
    channel = torch.arange(blocks, device=sample_index.device)
    shape = (sample_index.numel(), blocks)
    sample = sample_index[:, None]
    counter = (channel, position[:, None], sample & _WORD, sample >> 32 & _WORD)
    words = philox([word.expand(shape) for word in counter], key)
    noise = gaussian(torch.stack(words, dim=-1)).reshape(-1, 4 * blocks)
    return noise[..., :num_channels] * torch.tensor(std, dtype=torch.float32, device=noise.device)


def check_key(key: tuple[int, int]) -> None:
    """Seed and iteration are one 32-bit word each."""
    for name, value in zip(("seed", "iteration"), key, strict=True):
        if not 0 <= value < _WORDS:
            raise ValueError(f"`{name}` of the noise must be in [0, 2^32), but is {value} instead.")


def check_indices(sample_index: Tensor, position: Tensor) -> None:
    """Both must be one-dimensional int64 of equal length."""
    for name, tensor in (("sample_index", sample_index), ("position", position)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            found = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise ValueError(f"`{name}` must be an int64 tensor with one dimension, but is {found} instead.")
    if sample_index.shape != position.shape:
        found = f"{len(sample_index)} and {len(position)}"
        raise ValueError(f"`sample_index` and `position` must be of equal length, but have {found} elements instead.")


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """The four 32-bit words (in int64) of Philox4x32-10. The products wrap in int64; their bits are those of uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _WORD) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32 & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = k0 + _KEY_STEPS[0] & _WORD, k1 + _KEY_STEPS[1] & _WORD
    return [c0, c1, c2, c3]


def gaussian(words: Tensor) -> Tensor:
    """Standard Gaussian numbers (float32) from 32-bit words held in int64."""
    v = ((words & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-32
    x = 1.0 - 2.0 * v
    w = -_log((4.0 * v) * (1.0 - v))
    # Through float64, whose root rounds to the correct float32: torch's own float32 root may come from a library that
    # does not round correctly (MKL's is off by one unit in one case of a thousand).
    root = torch.sqrt(w.double()).float()
    z = torch.where(w < 5.0, _horner(_CENTRAL, w - 2.5), _horner(_TAIL, root - 3.0)) * x * _SQRT_2
    return torch.where(words >> 31 == 1, -z, z)


def _log(y: Tensor) -> Tensor:
    bits = y.view(torch.int32) - _SQRT_HALF_BITS
    exponent = (bits >> 23).to(torch.float32)
    f = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32) - 1.0
    return (f + (f * f) * _horner(_LOG, f)) + exponent * _LN_2


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
