"""The Weights & Biases option: the real package, offline; its record file has the content of metrics.jsonl."""

import json
import os
import struct
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from tests.helpers import distributed
from tests.helpers.distributed import run_ranks
from tests.training.runs import arguments, launch_prepared, read_rows, train_quietly

_BLOCK_BYTES = 32_768
_FIRST, _MIDDLE = 2, 3
"""kinds of record fragments that another one follows (LevelDB's log format, which wandb keeps its records in)"""


def train_offline(rank, world_size, argv):
    """One rank whose wandb sends nothing."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return train_quietly(rank, world_size, argv)


def train_without_wandb(rank, world_size, argv):
    """One rank of an environment that lacks the package."""
    import sys

    sys.modules["wandb"] = None  # type: ignore[assignment]  # makes the import raise ImportError
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        del sys.modules["wandb"]


def records(path: Path):
    """The records of a .wandb file: a header of 7 bytes, then fragments of at most a block."""
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind not in (_FIRST, _MIDDLE):
            yield Record.FromString(whole)
            whole = b""


def history(run: Path):
    """[({name: value}, step)] of all calls of wandb.log below a run's folder, and the ids of its wandb runs."""
    rows, ids = [], []
    for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in records(path):
            if record.HasField("run"):
                ids.append(record.run.run_id)
            if record.HasField("history"):
                items = {
                    ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                rows.append((items, items["_step"]))
    return rows, ids


def test_what_is_logged_is_what_metrics_jsonl_holds(prefix, tmp_path):
    run = tmp_path / "run"
    options = {"wandb_project": "alum", "train_iters": 6}
    launch_prepared(2, prefix, run, train_offline, **options, exit_interval=3)
    rows = launch_prepared(2, prefix, run, train_offline, **options, load=run)
    logged, ids = history(run)
    merged = {}
    for items, step in logged:
        merged.setdefault(step, {}).update(items)
    assert sorted(merged) == [1, 2, 3, 4, 5, 6]
    for row in rows:
        for name in ("lm_loss", "nsp_loss", "alum_kl", "grad_norm", "lr", "loss"):
            assert merged[row["iteration"]].get(f"metrics/{name}") == row[name]
    for row in read_rows(run, "performance.jsonl"):
        assert merged[row["iteration"]]["performance/samples_per_second"] == row["samples_per_second"]
    assert len(set(ids)) == 1 and (run / "wandb_run.txt").read_text().strip() == ids[0]


def test_without_the_package_the_option_is_refused(prefix, tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"wandb must be installed.*pip install 'megatron_alum\[wandb\]'"):
        launch_prepared(1, prefix, tmp_path / "run", train_without_wandb, wandb_project="alum", train_iters=1)


def train_logged_out(rank, world_size, argv):
    """One rank of a user without any API key."""
    save = argv[argv.index("--save") + 1]
    nowhere = {"HOME": save, "NETRC": f"{save}/netrc", "WANDB_MODE": "online", "WANDB_SILENT": "true"}
    known = {name: os.environ.pop(name, None) for name in (*nowhere, "WANDB_API_KEY")}
    os.environ |= nowhere
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        for name, value in known.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def test_without_a_login_every_rank_says_the_same_sentence(prefix, tmp_path):
    argv = arguments(prefix, tmp_path / "run", wandb_project="alum", train_iters=1)
    distributed.stop_pool()  # a process that has used the package once no longer asks for a login
    refused = run_ranks(2, train_logged_out, argv)
    assert len({str(error) for error in refused}) == 1 and isinstance(refused[0], ValueError)
    sentence = str(refused[0])
    assert sentence.startswith("--wandb-project alum could not be opened; Weights & Biases says: ")
    assert "Run `wandb login` or set WANDB_API_KEY" in sentence
