"""The random start: known answers of Philox, bit equality over implementations and shardings, moments of the
numbers."""

import json
import math
from pathlib import Path

import pytest
import torch

from megatron_alum import ops
from megatron_alum.reference import noise as reference
from tests.ops import tolerances

KEY = (1234, 7)
GOLDEN = Path(__file__).parents[1] / "golden" / "noise" / "noise.json"


def noise(samples, positions, channels, impl, device, **options):
    """Noise [positions, samples, channels] of every sample at every position, in that order of tokens."""
    samples, positions = (torch.as_tensor(x, device=device) for x in (samples, positions))
    index = samples.repeat(len(positions)), positions.repeat_interleave(len(samples))
    tokens = ops.gaussian_noise(*index, channels, std=options.pop("std", 1.0), key=KEY, impl=impl, **options)
    return tokens.view(len(positions), len(samples), channels)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, kat_vectors, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = reference.philox([torch.tensor(word) for word in counter], key)
    assert tuple(int(word) for word in words) == expected


def test_the_number_is_the_quantile_of_its_word():
    """Against scipy's inverse distribution function, tails and centre included."""
    special = pytest.importorskip("scipy.special")
    words = torch.randint(0, 2**32, (100_000,), generator=torch.Generator().manual_seed(0))
    words[:6] = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
    tail = ((words & 0x7FFFFFFF).double() + 0.5) / 2**32
    exact = -torch.from_numpy(special.ndtri(tail.numpy())) * torch.where(words >> 31 == 1, -1.0, 1.0)
    # 3e-6 relative (Giles: 1e-6 of erfinv, and the logarithm); 1e-7 absolute near 0, where 1 - 2v is rounded. His
    # polynomial ends where float32 holds no 1 - 2v below 1, at 5.5 (one number in 3e7 lies beyond).
    limit = torch.where(exact.abs() > 5.5, 4e-4, 3e-6)
    assert ((reference.gaussian(words) - exact).abs() <= limit * exact.abs() + 1e-7).all()


def test_bit_equal_to_the_reference(device, impl):
    samples, positions = [0, 3, 2**31, 2**40 + 5], [0, 1, 511, 70000]
    for channels in (1, 3, 4, 127, 256, 768):
        found = noise(samples, positions, channels, impl, device, std=1e-5)
        expected = noise(samples, positions, channels, "reference", "cpu", std=1e-5)
        assert torch.equal(found.cpu(), expected), channels


def test_the_bits_are_those_of_the_golden_file(device, impl):
    """Written by an earlier commit (tests/golden/noise): a resumed run gets the noise that it would have had."""
    golden = json.loads(GOLDEN.read_text())
    samples, positions = torch.tensor(golden["tokens"], device=device).unbind(1)
    found = ops.gaussian_noise(samples, positions, 9, std=1.0, key=KEY, impl=impl)
    assert found.view(torch.int32).tolist() == golden["noise"]
    x = (torch.arange(16 * 9) % 29 - 14).view(16, 9).to(device) / 8
    grad = (torch.arange(16 * 9) * 7 % 31 - 15).view(16, 9).to(device) / 4
    start = ops.NoiseKey(*KEY, samples, positions, 1e-3)
    for projection, expected in golden["steps"].items():
        step = {"step_size": 1e-3, "epsilon": 1e-3, "projection": projection, "impl": impl}
        moved = ops.perturb_embeddings(x, start, grad, **step)[:2]
        assert [t.view(torch.int32).tolist() for t in moved] == expected


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_bit_equal_under_any_sharding(device, impl, parts):
    """Tokens split as in sequence parallelism, samples split as in data parallelism, in any order: the same numbers."""
    samples, positions = torch.arange(100, 108), torch.arange(16)
    whole = noise(samples, positions, 32, impl, device)
    by_token = [noise(samples, part, 32, impl, device) for part in positions.chunk(parts)]
    by_sample = [noise(part, positions, 32, impl, device) for part in samples.chunk(parts)]
    assert torch.equal(torch.cat(by_token, dim=0), whole) and torch.equal(torch.cat(by_sample, dim=1), whole)
    order = torch.randperm(8)
    assert torch.equal(noise(samples[order], positions, 32, impl, device), whole[:, order.to(device)])


def test_fewer_channels_are_a_prefix(device, impl):
    assert torch.equal(noise([5], [9], 7, impl, device), noise([5], [9], 64, impl, device)[..., :7])


def test_dtype(device, impl):
    first = noise([1, 2, 3], [0, 1], 8, impl, device)
    assert first.dtype == torch.float32
    assert torch.equal(noise([1, 2, 3], [0, 1], 8, impl, device, dtype=torch.bfloat16), first.bfloat16())


def test_every_part_of_the_key_matters(device, impl):
    def draw(samples=(5,), positions=(6,), key=(1, 2)):
        where = {"std": 1.0, "key": key, "impl": impl}
        return ops.gaussian_noise(
            torch.tensor(samples, device=device), torch.tensor(positions, device=device), 8, **where
        )

    others = [draw(samples=(6,)), draw(positions=(5,)), draw(key=(2, 2)), draw(key=(1, 3)), draw(samples=(5 + 2**32,))]
    assert all((draw() != other).all() for other in others)


def test_moments(device, impl):
    z = noise(torch.arange(64), torch.arange(64), 256, impl, device).double().flatten()
    n, errors = z.numel(), tolerances.MOMENT_ERRORS
    assert abs(z.mean()) < errors / math.sqrt(n)
    assert abs(z.square().mean() - 1) < errors * math.sqrt(2 / n)
    assert abs((z**3).mean()) < errors * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < errors * math.sqrt(96 / n)
    grid = z.view(64, 64, 256)
    for left, right in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[..., 1:], grid[..., :-1])):
        assert abs((left * right).mean()) < errors / math.sqrt(left.numel())


@pytest.mark.parametrize("key", [(-1, 0), (2**32, 0), (0, 2**32)])
def test_a_key_outside_32_bits_is_refused(key):
    with pytest.raises(ValueError, match=r"must be in \[0, 2\^32\)"):
        ops.gaussian_noise(torch.arange(2), torch.arange(2), 4, std=1.0, key=key)


def test_wrong_indices_are_refused():
    with pytest.raises(ValueError, match="`position` must be an int64 tensor"):
        ops.gaussian_noise(torch.arange(2), torch.zeros(2), 4, std=1.0, key=KEY)
    with pytest.raises(ValueError, match="must be of equal length, but have 2 and 3 elements"):
        ops.gaussian_noise(torch.arange(2), torch.arange(3), 4, std=1.0, key=KEY)
    with pytest.raises(ValueError, match="`std` must be >= 0"):
        ops.NoiseKey(1, 2, torch.arange(2), torch.arange(2), -1.0)
