"""Stored names to network names: stacked and single layers, both LayerNorm namings, the wrong number of layers."""

from pathlib import Path

import pytest
import torch

from megatron_alum.convert.keys import ARCHITECTURES, expand_rows
from megatron_alum.convert.megatron_folder import DistributedTensors, read_megatron_tensors

ARCHITECTURE = ARCHITECTURES["megatron-bert"]
NUM_LAYERS = 3


class InMemory:
    """A StoredTensors over a dict."""

    folder = Path("memory")

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, name):
        return self.tensors[name]


def network():
    """{name: a tensor of its own number} of every row."""
    rows = expand_rows(ARCHITECTURE, NUM_LAYERS)
    return {row.megatron: torch.full((2,), float(number)) for number, row in enumerate(rows)}


def stacked(tensors, *, alias):
    """As megatron-core stores homogeneous layers: one tensor with the layer in front."""
    stored = {name: value for name, value in tensors.items() if ".layers." not in name}
    for row in ARCHITECTURE.rows:
        if "{i}" in row.megatron:
            name = row.alias if alias and row.alias else row.megatron
            layers = [tensors[row.megatron.format(i=i)] for i in range(NUM_LAYERS)]
            stored[name.replace(".{i}", "")] = torch.stack(layers)
    return stored


def single(tensors, *, alias):
    """As megatron-core stores layers that differ: one tensor a layer."""
    rows = expand_rows(ARCHITECTURE, NUM_LAYERS)
    return {row.alias if alias and row.alias else row.megatron: tensors[row.megatron] for row in rows}


@pytest.mark.parametrize("alias", [False, True], ids=["local names", "Transformer Engine names"])
@pytest.mark.parametrize("layout", [stacked, single])
def test_every_storage_gives_the_same_network(layout, alias):
    expected = network()
    found = read_megatron_tensors(InMemory(layout(expected, alias=alias)), ARCHITECTURE, NUM_LAYERS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", [stacked, single])
def test_another_number_of_layers_is_refused(layout):
    stored = InMemory(layout(network(), alias=False))
    with pytest.raises(ValueError, match="must have 2 layers as its configuration says, but has 3"):
        read_megatron_tensors(stored, ARCHITECTURE, 2)


def test_something_else_is_refused():
    with pytest.raises(ValueError, match=r"none of its tensors is known \(decoder.w\)"):
        read_megatron_tensors(InMemory({"decoder.w": torch.zeros(1)}), ARCHITECTURE, 2)


def test_a_folder_without_a_table_of_contents_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.metadata"):
        DistributedTensors(tmp_path)
