"""Foreign and damaged lines of metrics.jsonl are distinguished from rows, counted and named."""

import json

import pytest

from megatron_alum.checkpoint.rows import Rows
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.training.metrics import Writers
from tests.training.runs import arguments, launch, launch_prepared, train_and_keep_stderr, without_timing

ROW = '{"iteration": 1, "lm_loss": 2.0}'
FOREIGN = {
    "text": b"srun: job 7 queued",
    "a half row": b'{"iteration": 2, "ph',
    "two rows in one": (ROW + ROW).encode(),
    "an iteration again": ROW.replace("2.0", "7.0").encode(),
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no iteration": b'{"loss": 1.0}',
    "iteration of another type": b'{"iteration": "1"}',
    "a truth value": b'{"iteration": true}',
    "no iteration but null": b'{"iteration": null}',
    "other bytes": b"\xff\xfe\x00",
    "zeros after a power cut": b"\0" * 40,
    "a deep nest": b"[" * 100_000,
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_line_is_no_row(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROW.encode() + b"\n" + line + b"\n\n" + ROW.replace("1,", "2,", 1).encode() + b"\n" + ROW.encode())
    rows = Rows.read(path)
    assert [row["iteration"] for row in rows.values] == [1, 2] and rows.foreign == [2]
    assert [json.loads(line) for line in rows.lines] == rows.values
    assert rows.up_to(1).lines == [ROW + "\n"]
    assert (
        rows.complaint(path) == f"WARNING: {path} had 1 line(s) that are not rows of a run (line 2); they are left out."
    )


def test_a_resume_skips_and_reports_them(prefix, tmp_path):
    run = tmp_path / "run"
    straight = launch(2, prefix, tmp_path / "straight", train_iters=4)
    launch(2, prefix, run, train_iters=4, exit_interval=2)
    for name in ("metrics.jsonl", "performance.jsonl"):
        with (run / name).open("ab") as stream:
            stream.write(b"\n".join(FOREIGN.values()) + b"\n")
    rows = launch_prepared(2, prefix, run, train_and_keep_stderr, train_iters=4, load=run)
    assert without_timing(rows) == without_timing(straight)
    printed = (tmp_path / "run-stderr-0").read_text()
    assert printed.count(f"had {len(FOREIGN)} line(s) that are not rows of a run (line 3, 4, 5, 6, 7, ...)") == 2


@pytest.mark.parametrize(
    ("kept", "resumed", "interval", "gap"),
    [
        ([1, 2, 3, 4], 4, 1, None),
        ([1, 2, 3, 4, 5, 6], 4, 1, None),  # later rows are dropped
        ([1, 2], 4, 1, "3 to 4"),
        ([], 4, 1, "1 to 4"),
        ([10], 14, 10, None),
        ([10], 25, 10, "11 to 25"),
        ([], 9, 10, None),
        ([], 0, 1, None),
    ],
)
@pytest.mark.parametrize("in_place", [True, False])
def test_iterations_without_rows_are_told(tmp_path, capsys, kept, resumed, interval, gap, in_place):
    """Where metrics.jsonl was lost or cut; a branch in another folder begins with its own rows."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps({"iteration": i}) + "\n" for i in kept))
    load = run if in_place else other
    config = parse_config(RunConfig, arguments("unused", run, load=load, log_interval=interval))
    Writers(config, rank=0, resumed_iteration=resumed).close()
    said = f"metrics.jsonl has no rows of the iterations {gap}," if gap and in_place else ""
    error = capsys.readouterr().err
    assert said in error and bool(error) == bool(said)
