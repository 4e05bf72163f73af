"""Arguments of Megatron-LM that are stored among the tensors of a torch_dist folder, as megatron-core does from 0.19
on."""

import io
import pickle
import shutil

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_alum.checkpoint.metadata import read_metadata
from megatron_alum.convert.common_state import read_common_state
from megatron_alum.convert.stock_folder import find_stock_checkpoint
from tests.convert.test_stock import INSIDE, NUM_LAYERS, RunsCode, save_stock
from tests.helpers.distributed import run_ranks


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside") / "iter_0000100"
    run_ranks(1, save_stock, 1, str(folder), INSIDE, False)
    return folder


def with_entry(saved, tmp_path, stored):
    """A copy in which the entry's bytes are `stored`, behind two others; None leaves the entry out."""
    folder = shutil.copytree(saved, tmp_path / "iter_0000100")
    metadata = read_metadata(folder, tensors_only=False)
    (index,) = [index for index in metadata.storage_data if index.fqn == "common_state/shard_0_1"]
    if stored is None:
        del metadata.storage_data[index]
    else:
        (folder / "other.distcp").write_bytes(b"--" + stored + b"--")
        metadata.storage_data[index] = _StorageInfo("other.distcp", 2, len(stored))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def as_stored(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_the_arguments_are_read_without_a_file_of_their_own(saved, tmp_path):
    assert not (saved / "common.pt").exists() and find_stock_checkpoint(saved) == saved
    common = read_common_state(saved)
    assert common["iteration"] == 100 and common["args"].num_layers == NUM_LAYERS
    assert read_common_state(with_entry(saved, tmp_path, as_stored([{"iteration": 7}]))) == {"iteration": 7}


def test_code_in_the_entry_is_refused_and_not_run(saved, tmp_path):
    trap = tmp_path / "trapped"
    folder = with_entry(saved, tmp_path, as_stored([{"args": RunsCode(str(trap))}]))
    with pytest.raises(ValueError, match=r"common_state/shard_0_1 of .* names (posix|nt)\.mkdir"):
        read_common_state(folder)
    assert not trap.exists()


DAMAGE = {
    "cut off": (as_stored([{"iteration": 7}])[:-40], r"not a complete torch\.save archive"),
    "of another kind": (as_stored([7]), "holds a int instead of a dictionary"),
    "not listed": (None, "must be in .* not in the table of contents"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_refused(saved, tmp_path, name):
    stored, complaint = DAMAGE[name]
    with pytest.raises(ValueError, match=complaint):
        read_common_state(with_entry(saved, tmp_path, stored))


def test_a_lost_file_is_named(saved, tmp_path):
    folder = with_entry(saved, tmp_path, as_stored([{"iteration": 7}]))
    (folder / "other.distcp").unlink()
    with pytest.raises(ValueError, match=r"must be in .*other\.distcp.*damaged or incomplete"):
        read_common_state(folder)
