"""Every pair of values occurs, in far fewer cases than the grid has."""

import itertools

import pytest

from tests.helpers.pairs import pairs


@pytest.mark.parametrize(
    ("sizes", "most"),
    [((2, 2), 4), ((9, 3, 2), 27), ((4, 3, 2, 2), 13), ((3, 3, 3, 3), 12), ((5, 3, 2, 2, 2), 17)],
    ids=str,
)
def test_every_pair_is_met(sizes, most):
    options = {f"option{number}": list(range(size)) for number, size in enumerate(sizes)}
    names, cases = pairs(**options)
    assert names == tuple(options) and len(cases) <= most
    for one, other in itertools.combinations(range(len(sizes)), 2):
        met = {(case[one], case[other]) for case in cases}
        assert met == set(itertools.product(range(sizes[one]), range(sizes[other])))
