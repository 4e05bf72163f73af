"""--scheduler tcp://...: a real Dask scheduler and two worker processes on this machine give the bytes of a local
run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_alum.data.preprocessing.readers import records
from tests.data.preprocessing.corpora import prepare, write_jsonl
from tests.data.preprocessing.test_pipeline import parts

ROOT = Path(__file__).parents[3]
STARTER = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler with two workers, in processes of their own."""
    pytest.importorskip("distributed", reason="install megatron_alum[dask] to test --scheduler")
    script = tmp_path_factory.mktemp("dask") / "cluster.py"
    script.write_text(STARTER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def test_a_dask_cluster_gives_the_bytes_of_a_local_run(tmp_path, monkeypatch, scheduler):
    monkeypatch.setattr(records, "CHUNK_BYTES", 10_000)
    source = write_jsonl(tmp_path / "in.jsonl", [f"The cat {i} sat. The dog {i % 7} ran!" for i in range(3000)])
    prepare(tmp_path, source, output_prefix=str(tmp_path / "local"))
    prepare(tmp_path, source, scheduler=scheduler)
    assert parts(tmp_path) == parts(tmp_path, "local")


def test_an_error_on_a_dask_worker_ends_the_run(tmp_path, scheduler):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "The cat."}\n{broken\n')
    with pytest.raises(ValueError, match="must be whole UTF-8 text under --strict, but has: not JSON"):
        prepare(tmp_path, tmp_path / "in.jsonl", scheduler=scheduler, strict=True)
