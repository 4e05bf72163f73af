"""What a kill may leave of a grid, and how the next call continues from it."""

import json
import shutil

from transformers import Trainer

from megatron_alum.finetune.runs.records import collect_results, last_checkpoint
from tests.finetune.runs.test_tools import encoder, flags, rows_of, run_tool, sentiment  # noqa: F401


def killed_while_saving(monkeypatch, checkpoint):
    """The process ends when a checkpoint of that name has its weights and nothing else."""
    save_model = Trainer.save_model

    def killed(self, output_dir=None, **options):
        save_model(self, output_dir, **options)
        if checkpoint in str(output_dir):
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save_model", killed)


def test_killed_between_a_run_and_its_rows(encoder, sentiment, tmp_path):  # noqa: F811
    """The first run has its DONE file and no row yet; the second never began: each result is written once."""
    command = flags(encoder, sentiment, tmp_path / "out", "--max-train-samples", 16, "--num-train-epochs", 1)
    run_tool("finetune", *command)
    results = tmp_path / "out" / "results.jsonl"
    first, second = rows_of(results)
    results.unlink()
    shutil.rmtree(tmp_path / "out" / "runs" / "lr0.005-bs16-seed2")
    left = tmp_path / "out" / "runs" / "lr0.005-bs16-seed1" / "checkpoint-1"
    left.mkdir()  # of the run that is done: another kill came before this was gone
    run_tool("finetune", *command)
    again = rows_of(results)
    assert not left.exists()
    assert again[0] == first and {**again[1], "seconds": 0} == {**second, "seconds": 0}
    assert len(again) == 2


def test_killed_between_the_rows_and_the_checkpoints(tmp_path):
    """Rows of a run that ended twice over (the kill came before its checkpoints were gone) stand there once."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "DONE").write_text(json.dumps([{"value": 1}]))
    for _ in range(2):
        collect_results(tmp_path)
        assert rows_of(tmp_path / "results.jsonl") == [{"value": 1}]


def test_a_torn_checkpoint_is_not_resumed(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((4, '{"global_step": 4}'), (10, '{"global_step": 10}'), (12, '{"global_st'), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"")
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_run_killed_during_a_save_continues(encoder, sentiment, tmp_path, monkeypatch):  # noqa: F811
    """The second epoch's checkpoint has its weights only: the run continues from the first, with the same result."""
    more = ("--max-train-samples", 64, "--seeds", 3)
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "a", *more))
    killed_while_saving(monkeypatch, "checkpoint-8")
    assert run_tool("finetune", *flags(encoder, sentiment, tmp_path / "b", *more), expect_error=True) == 130
    monkeypatch.undo()
    run = tmp_path / "b" / "runs" / "lr0.005-bs16-seed3"
    assert last_checkpoint(run) == str(run / "checkpoint-4") and (run / "checkpoint-8").is_dir()
    assert not (run / "elapsed").read_text().startswith("0.000")
    (run / "elapsed").write_text("1000.0")
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "b", *more))
    (row,) = rows_of(tmp_path / "b" / "results.jsonl")
    assert 1000 < row["seconds"] < 1400, "the seconds before the kill count"
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_run_killed_in_its_last_evaluation_is_not_trained_further(encoder, sentiment, tmp_path, monkeypatch):  # noqa: F811
    """Nothing improves on the first epoch, whose checkpoint alone is kept: the other four need not be repeated."""
    more = ("--max-train-samples", 32, "--learning-rate", 1e-12, "--num-train-epochs", 5, "--seeds", 3)
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "a", *more))

    def killed(*_unused):
        raise KeyboardInterrupt

    monkeypatch.setattr("megatron_alum.finetune.runs.grid.write_predictions", killed)
    assert run_tool("finetune", *flags(encoder, sentiment, tmp_path / "b", *more), expect_error=True) == 130
    monkeypatch.undo()
    run = tmp_path / "b" / "runs" / "lr1e-12-bs16-seed3"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.setattr(Trainer, "train", killed)
    (run / "elapsed").write_text("1000.0")
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "b", *more))
    rows = [rows_of(tmp_path / name / "results.jsonl") for name in "ab"]
    assert 1000 <= rows[1][0]["seconds"] < 1400, "the seconds of the training count"
    assert [{**row, "seconds": 0} for row in rows[1]] == [{**row, "seconds": 0} for row in rows[0]]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert not (run / "TRAINED").exists() and not list(run.glob("checkpoint-*"))


def test_early_stopping_counts_on_after_a_resume(encoder, sentiment, tmp_path, monkeypatch):  # noqa: F811
    """A run that cannot improve stops after two epochs without improvement, the third, even if killed in the second."""
    more = ("--learning-rate", 1e-12, "--num-train-epochs", 10, "--early-stopping-patience", 2, "--seeds", 1)
    command = flags(encoder, sentiment, tmp_path / "out", "--max-train-samples", 16, *more)
    killed_while_saving(monkeypatch, "checkpoint-3")
    assert run_tool("finetune", *command, expect_error=True) == 130
    monkeypatch.undo()
    run_tool("finetune", *command)
    assert [row["epochs"] for row in rows_of(tmp_path / "out" / "results.jsonl")] == [3.0]


def test_the_papers_grid_is_not_continued_from_shorter_runs(encoder, sentiment, tmp_path, capsys):  # noqa: F811
    command = flags(encoder, sentiment, tmp_path / "out", "--max-train-samples", 16, "--num-train-epochs", 1)
    run_tool("finetune", *command)
    assert run_tool("finetune", *command, "--paper-grid", expect_error=True) == 2
    assert "was made with --num-train-epochs 1.0 and is now given 10" in capsys.readouterr().err


def test_a_seed_given_twice_runs_once(encoder, sentiment, tmp_path):  # noqa: F811
    run_tool("finetune", *flags(encoder, sentiment, tmp_path, "--max-train-samples", 16, "--seeds", 1, 1))
    assert len(rows_of(tmp_path / "results.jsonl")) == 1
