"""A checkpoint from an attacker: pickles that would create a file are refused, and the file never appears.

The attacker can recompute every SHA-256, so COMPLETE is made valid again after each planting.
"""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from megatron_alum.checkpoint.folder import content_files, hash_file
from megatron_alum.checkpoint.metadata import read_metadata
from tests.training.runs import launch


class Payload:
    """Unpickling this creates the file `path`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def reseal(folder: Path) -> None:
    digests = {name: hash_file(folder / name) for name in content_files(folder)}
    (folder / "COMPLETE").write_text(json.dumps({"files": digests}))


def plant_in_metadata(folder, payload):
    (folder / ".metadata").write_bytes(pickle.dumps(payload))


def plant_beside_real_metadata(folder, payload):
    metadata = read_metadata(folder)
    metadata.planner_data = {"a": payload}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_as_bytes_entry(folder, payload):
    """PyTorch unpickles entries of kind "bytes" without restrictions: the table itself must be refused."""
    metadata = read_metadata(folder)
    name = next(iter(metadata.state_dict_metadata))
    metadata.state_dict_metadata[name] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_in_common(folder, payload):
    torch.save({"optimizer": payload}, folder / "common.pt")


def plant_in_rng(folder, payload):
    for path in folder.glob("rng_*.pt"):
        torch.save({"cpu": payload}, path)


def plant_in_tensors(folder, payload):
    """Replaces the pickle inside every tensor's archive of every .distcp file, keeping sizes and offsets."""
    metadata = read_metadata(folder)
    stored = sorted(metadata.storage_data.values(), key=lambda info: info.offset)
    for info in stored:
        path = folder / info.relative_path
        data = path.read_bytes()
        planted = io.BytesIO()
        torch.save(payload, planted)
        archive = planted.getvalue()
        if len(archive) <= info.length:
            archive = archive + b"\0" * (info.length - len(archive))
            path.write_bytes(data[: info.offset] + archive + data[info.offset + info.length :])


PLACES = (
    plant_in_metadata,
    plant_beside_real_metadata,
    plant_as_bytes_entry,
    plant_in_common,
    plant_in_rng,
    plant_in_tensors,
)


@pytest.mark.parametrize("plant", PLACES, ids=lambda plant: plant.__name__)
def test_nothing_planted_is_ever_run(run, prefix, tmp_path, plant):
    marker = tmp_path / "executed"
    plant(run / "iter_0000006", Payload(marker))
    reseal(run / "iter_0000006")
    with pytest.raises((ValueError, OSError)) as caught:
        launch(2, prefix, run, load=run, tensor_model_parallel_size=2, train_iters=8)
    assert not marker.exists()
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_payload_would_work(tmp_path):
    """Without this the tests above could pass for the wrong reason."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def test_a_distcp_file_is_a_zip_archive_per_tensor(run):
    info = next(iter(read_metadata(run / "iter_0000006").storage_data.values()))
    data = (run / "iter_0000006" / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
    assert zipfile.is_zipfile(io.BytesIO(data))
