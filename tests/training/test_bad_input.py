"""Errors of users: one sentence, exit status 2, nothing half-written; through the real command line."""

import re
import shutil

import pytest

from megatron_alum.checkpoint.folder import list_iterations
from tests.helpers.warm import run_script
from tests.training.runs import arguments, launch, launch_prepared, train_quietly, train_with_small_files


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"seq_length": 64, "max_position_embeddings": 32},
            "--seq-length must be at most --max-position-embeddings 32",
        ),
        (
            {"tensor_model_parallel_size": 3},
            "--num-attention-heads must be a multiple of --tensor-model-parallel-size (3)",
        ),
        (
            {"micro_batch_size": 3},
            "--global-batch-size must be a multiple of --micro-batch-size (3), but is 8 instead.",
        ),
        (
            {"pipeline_model_parallel_size": 2},
            "--pipeline-model-parallel-size must be 1 in the adversarial phase, but is 2 instead: the ascent needs the "
            "embedding and the logits in one process. A network that needs stages has more than 20 billion parameters: "
            "use --tensor-model-parallel-size, --sequence-parallel, --use-distributed-optimizer or "
            "--recompute-granularity; or stop before iteration 11",
        ),
        (
            {"pipeline_model_parallel_size": 3, "alum_alpha": 0},
            "--num-layers must be a multiple of --pipeline-model-parallel-size (3), but is 2 instead.",
        ),
        (
            {"pipeline_model_parallel_size": 2, "alum_alpha": 0, "init_from": "models/roberta"},
            "--init-from must not be given with --pipeline-model-parallel-size 2, but is models/roberta.",
        ),
        ({"pipeline_model_parallel_size": 0}, "--pipeline-model-parallel-size must be at least 1, but is 0 instead."),
        ({"sequence_parallel": True}, "--sequence-parallel must be false without tensor parallelism"),
        ({"bf16": True, "fp16": True}, "--fp16 must be false when --bf16 is true"),
        ({"lr": -1}, "--lr must be positive, but is -1.0 instead."),
        ({"trian_iters": 3}, "--trian-iters is not an option of this program. Did you mean --train-iters?"),
        ({"config": "no/such.yaml"}, "no/such.yaml"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_configuration_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, options, sentence):
    from megatron_alum.config.cli import main_guard, parse_config
    from megatron_alum.config.run import RunConfig

    argv = arguments("anything", tmp_path / "run", **options)
    with pytest.raises(SystemExit) as caught:
        main_guard(lambda: parse_config(RunConfig, argv))
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert printed.startswith("error: ") and sentence in printed and printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_entry_script_prints_one_line_and_no_traceback(tmp_path):
    finished = run_script("pretrain_bert_alum.py", *arguments("anything", tmp_path / "run", micro_batch_size=3))
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: --global-batch-size must be a multiple of --micro-batch-size (3), but is 8 instead.\n"
    )


@pytest.mark.parametrize(
    ("world_size", "options", "sentence"),
    [
        (
            1,
            {"tensor_model_parallel_size": 2},
            "number of processes must be a multiple of --tensor-model-parallel-size",
        ),
        (2, {"micro_batch_size": 8}, "--global-batch-size must be a multiple of --micro-batch-size"),
        (1, {"data_path": "no-such-shards"}, "no-such-shards"),
        (1, {"split": "0,1,0"}, "--split must leave documents for training"),
    ],
)
def test_what_depends_on_ranks_and_files_is_refused(prefix, tmp_path, world_size, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        launch(world_size, prefix, tmp_path / "run", **options)
    assert not list_iterations(tmp_path / "run")


def test_a_full_disk_while_saving_leaves_nothing_half_written(prefix, tmp_path):
    run = tmp_path / "run"
    launch(2, prefix, run, train_iters=6, exit_interval=2)
    with pytest.raises(OSError, match=r"checkpoint of iteration 4 could not be written .* File too large"):
        launch_prepared(2, prefix, run, train_with_small_files, load=run, train_iters=6, exit_interval=4)
    assert list_iterations(run) == [2] and not list(run.glob(".*iter*"))
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "2\n"
    assert len(launch(2, prefix, run, load=run, train_iters=6)) == 6


def test_too_little_space_is_refused_before_writing(prefix, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused = train_quietly(0, 1, arguments(prefix, tmp_path / "run", train_iters=1))
    said = r"must have [\d.]+ [kM]B free for a checkpoint, but has 1 kB instead"
    assert isinstance(refused, OSError) and re.search(said, str(refused))
    assert not list_iterations(tmp_path / "run")
