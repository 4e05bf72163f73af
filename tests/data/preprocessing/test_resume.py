"""Interruptions: runs killed at random moments, crashing workers, other settings on resume, two runs at once."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_alum.data.preprocessing import journal as journal_module
from megatron_alum.data.preprocessing import pipeline
from megatron_alum.data.preprocessing.readers import records
from megatron_alum.data.preprocessing.worker import process_chunk
from megatron_alum.data.shards.files import open_shards
from tests.data.preprocessing.corpora import left_behind, prepare, write_jsonl, write_vocab
from tests.data.preprocessing.test_pipeline import parts

ROOT = Path(__file__).parents[3]
TEXTS = [f"The cat {i} sat. The dog {i % 7} ran far away!" for i in range(3000)]
KEEP = {"in.jsonl", "vocab.txt"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """3000 documents in 20 chunks."""
    monkeypatch.setattr(records, "CHUNK_BYTES", 10_000)
    return write_jsonl(tmp_path / "in.jsonl", TEXTS)


class Interrupted(BaseException):
    """Stands for a kill inside the process: nothing catches it."""


def interrupt_after(monkeypatch, name, calls):
    """Make the journal's method `name` raise Interrupted at its `calls`-th call, after its work is done."""
    original = getattr(journal_module.Journal, name)
    seen = iter(range(1, 10_000))

    def wrapped(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if next(seen) == calls:
            raise Interrupted
        return result

    monkeypatch.setattr(journal_module.Journal, name, wrapped)


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize(("method", "calls"), [("append", 3), ("append", 11), ("checkpoint", 2), ("checkpoint", 12)])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, monkeypatch, source, method, calls, deduplicate):
    (tmp_path / "whole").mkdir()
    write_vocab(tmp_path / "whole")
    options = {"checkpoint_mb": 0, "deduplicate": deduplicate, "vocab_file": str(write_vocab(tmp_path))}
    prepare(tmp_path / "whole", source, **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, method, calls)
        with pytest.raises(Interrupted):
            prepare(tmp_path, source, **options)
    assert left_behind(tmp_path, keep={*KEEP, "whole"}) == ["out.partial"]
    read = []
    original = records.RecordReader.documents
    monkeypatch.setattr(records.RecordReader, "documents", lambda self, c: read.append(c) or original(self, c))
    prepare(tmp_path, source, resume=True, **options)
    assert parts(tmp_path) == parts(tmp_path / "whole")
    assert 0 < len(read) < 20  # chunks that were finished are not read again
    assert left_behind(tmp_path, keep={*KEEP, "whole"}) == ["out-tokenizer", "out.bin", "out.idx", "out.json"]


@pytest.mark.parametrize("calls", range(1, 6))
def test_killed_between_the_final_renames(tmp_path, monkeypatch, source, calls):
    prepare(tmp_path, source, output_prefix=str(tmp_path / "whole"))
    replaced = os.replace
    seen = iter(range(1, 100))

    def replace(a, b):
        if "out.partial" in str(a) and not str(b).endswith(("state.json", "manifest.json")) and next(seen) == calls:
            raise Interrupted
        replaced(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if calls <= 4:
            with pytest.raises(Interrupted):
                prepare(tmp_path, source)
            with pytest.raises(ValueError, match=r"out\S* must exist"):
                open_shards(tmp_path / "out")
    prepare(tmp_path, source, resume=True)
    assert parts(tmp_path) == parts(tmp_path, "whole")


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_killed_before_its_first_checkpoint_is_not_input(tmp_path, monkeypatch, resume):
    """The output may be in the input folder: what a kill leaves there is not taken for text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "in.jsonl", TEXTS[:50])
    prepare(tmp_path, folder, output_prefix=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_keep_or_discard", lambda _journal: None)  # a killed process cleans nothing up
        interrupt_after(patch, "append", 1)
        with pytest.raises(Interrupted):
            prepare(tmp_path, folder, output_prefix=str(folder / "out"))
    assert (folder / "out.partial" / "documents.i64").stat().st_size > 0
    assert not (folder / "out.partial" / "state.json").exists()
    prepare(tmp_path, folder, output_prefix=str(folder / "out"), resume=resume)
    assert parts(folder) == parts(tmp_path, "whole")


def test_without_resume_an_interrupted_run_starts_afresh(tmp_path, monkeypatch, source):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "append", 5)
        with pytest.raises(Interrupted):
            prepare(tmp_path, source, checkpoint_mb=0)
    assert prepare(tmp_path, source)["num_documents"] == len(TEXTS)


def test_resume_refuses_other_settings_and_other_inputs(tmp_path, monkeypatch, source):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "append", 5)
        with pytest.raises(Interrupted):
            prepare(tmp_path, source, checkpoint_mb=0)
    with pytest.raises(ValueError, match="--resume must be given the settings and inputs that the run began with"):
        prepare(tmp_path, source, resume=True, deduplicate=True)
    write_jsonl(source, TEXTS[:-1])
    with pytest.raises(ValueError, match="--resume must be given the settings and inputs"):
        prepare(tmp_path, source, resume=True)


def test_two_runs_at_once_are_refused(tmp_path, source):
    with journal_module.Journal(str(tmp_path / "out"), "x", resume=False):
        with pytest.raises(ValueError, match="must not be written by two runs at once"):
            prepare(tmp_path, source)


def test_resume_of_nothing_is_a_fresh_run(tmp_path, source):
    assert prepare(tmp_path, source, resume=True)["num_documents"] == len(TEXTS)


def crash(spec, format_name, chunk):
    """A worker's function that fails on the fourth chunk."""
    if chunk.ordinal == 3:
        raise KeyError("the cat is not on the mat")
    return process_chunk(spec, format_name, chunk)


def die(spec, format_name, chunk):
    """A worker's function whose process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "kind", "message"), [(crash, KeyError, "not on the mat"), (die, ValueError, "one died .* --workers")]
)
def test_a_failing_worker_ends_the_run(tmp_path, monkeypatch, source, function, kind, message):
    """With the traceback of its exception, within seconds, and without output or a hint to resume."""
    monkeypatch.setattr(pipeline, "process_chunk", function)
    begun = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        prepare(tmp_path, source, workers=2)
    assert time.monotonic() - begun < 60
    if function is crash:
        assert "in crash" in str(caught.value.__cause__)  # the worker's own traceback
    assert "--resume" not in str(caught.value)
    assert left_behind(tmp_path, keep=KEEP) == []


def tool(folder, prefix):
    """The command that prepares folder/in.jsonl in small chunks, resuming."""
    code = "from megatron_alum.data.preprocessing.readers import records; records.CHUNK_BYTES = 20_000; "
    code += "import runpy, sys; "
    path = str(ROOT / "tools/preprocess_data.py")
    code += f"sys.argv[0] = {path!r}; runpy.run_path({path!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "--input", str(folder / "in.jsonl"), "--output-prefix", str(folder / prefix)]
    return [*command, "--workers", "2", "--vocab-file", str(folder / "vocab.txt"), "--checkpoint-mb", "0", "--resume"]


def run_tool(folder, prefix):
    """Undisturbed; returns its seconds."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(tool(folder, prefix), env=environment, capture_output=True, text=True, timeout=300)
    assert (folder / f"{prefix}.json").exists(), done.stderr
    return time.monotonic() - begun


def kill_and_resume(folder, kills, seed, seconds):
    """Run the tool, which takes `seconds`, killing it `kills` times after random times; returns how often it was
    killed.
    """
    draw = random.Random(seed)
    state = folder / "out.partial" / "state.json"
    killed = 0
    for attempt in range(kills):
        before = state.stat().st_mtime_ns if state.exists() else 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            tool(folder, "out"), env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        # every other kill comes during writing, recognised by a new checkpoint; the others at any time from the start
        while attempt % 2 and process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, seconds / 4 if attempt % 2 else seconds))
        if process.poll() is None:
            workers = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
            _gone, alive = psutil.wait_procs(workers, timeout=20)
            assert alive == [], "workers outlived the killed run"
        process.wait()
        process.stderr.close()
        if (folder / "out.json").exists():
            break
    run_tool(folder, "out")
    return killed


def check_kills(folder, kills, documents):
    texts = [f"The cat {i} sat. The dog {i % 7} ran far away! " * 4 for i in range(documents)]
    write_jsonl(folder / "in.jsonl", texts)
    write_vocab(folder)
    seconds, total = run_tool(folder, "whole"), 0
    for seed in range(10 * kills):
        total += kill_and_resume(folder, kills - total, seed, seconds)
        assert parts(folder) == parts(folder, "whole")
        if total >= kills:
            return
        for name in ("out.bin", "out.idx", "out.json"):
            (folder / name).unlink()
    pytest.fail(f"only {total} of {kills} kills met a running process")


def test_three_kills(tmp_path):
    check_kills(tmp_path, 3, 4000)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    check_kills(tmp_path, 20, 40_000)
