"""Few cases instead of a full grid: every value of an option meets every value of every other option at least once.

    @pytest.mark.parametrize(*pairs(shape=SHAPES, dtype=DTYPES, detach=[True, False]))

A fault caused by one value or by two together is found just as with the full grid; one that needs three at once has its
own test. test_pairs.py checks the promise.
"""

import itertools
from collections.abc import Sequence
from typing import Any


def pairs(**options: Sequence[Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """(names, cases) for parametrize. Greedy: each case takes one missing pair and as many others as fit."""
    names, values = tuple(options), list(options.values())
    sizes = [range(len(axis)) for axis in values]
    missing = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(names)), 2)
        for a, b in itertools.product(sizes[i], sizes[j])
    }
    cases = []
    while missing:
        chosen = dict(min(missing))
        for axis in range(len(names)):
            if axis not in chosen:
                chosen[axis] = max(
                    sizes[axis], key=lambda value, axis=axis: (_gain(axis, value, chosen, missing), -value)
                )
        missing -= set(itertools.combinations(sorted(chosen.items()), 2))
        cases.append(tuple(values[axis][chosen[axis]] for axis in range(len(names))))
    return names, cases


def _gain(axis: int, value: int, chosen: dict[int, int], missing: set) -> int:
    """Missing pairs that this value of this axis makes with the values chosen so far."""
    return sum(tuple(sorted([(axis, value), item])) in missing for item in chosen.items())
