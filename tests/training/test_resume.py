"""Stopping and continuing: bit for bit on the same layout, within rounding on another, refused where runs would mix."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from megatron_alum.checkpoint.folder import hash_file, iteration_folder
from megatron_alum.cli.pretrain import options_of_start
from megatron_alum.config.cli import config_to_dict, parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.to_hf import export_folder
from tests.helpers.distributed import run_ranks
from tests.training.runs import (
    EXACT,
    arguments,
    largest_difference,
    launch,
    read_rows,
    train_and_keep_stderr,
    train_quietly,
    without_timing,
)

LOSSES = ("lm_loss", "nsp_loss", "alum_kl", "grad_norm")
TOLERANCE = 1e-4
"""relative, as in test_layouts.py"""


@pytest.fixture(scope="module")
def interrupted(prefix, tmp_path_factory):
    """A TP=2 run of 12 iterations with dropout that stopped after 7, and the rows of the uninterrupted one."""
    folder = tmp_path_factory.mktemp("interrupted")
    straight = launch(2, prefix, folder / "straight", tensor_model_parallel_size=2, train_iters=12)
    launch(2, prefix, folder / "run", tensor_model_parallel_size=2, train_iters=12, exit_interval=7)
    return folder / "run", straight


def copy_of(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_exit_interval_stops_with_a_checkpoint(interrupted):
    run, straight = interrupted
    assert without_timing(read_rows(run)) == without_timing(straight[:7])
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "7\n"
    config = json.loads((run / "iter_0000007" / "config.json").read_text())
    assert (config["iteration"], config["consumed_samples"]) == (7, 56)
    assert config["run"]["train_iters"] == 12 and config["layout"]["tensor_parallel_size"] == 2


def test_a_resumed_run_equals_the_straight_one_bit_for_bit(interrupted, prefix, tmp_path):
    """Dropout is on: its generators continue too. A row past the checkpoint and half a row are dropped first."""
    run, straight = interrupted
    run = copy_of(run, tmp_path)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({**straight[7], "lm_loss": 99.0}) + "\n" + '{"iteration": 9, "ph')
    rows = launch(2, prefix, run, load=run, tensor_model_parallel_size=2, train_iters=12)
    assert without_timing(rows) == without_timing(straight)


def test_a_checkpoint_of_two_tensor_parallel_ranks_continues_on_one(prefix, tmp_path):
    straight = launch(1, prefix, tmp_path / "straight", **EXACT)
    launch(2, prefix, tmp_path / "run", **EXACT, tensor_model_parallel_size=2, exit_interval=8)
    rows = launch(1, prefix, tmp_path / "run", load=tmp_path / "run", **EXACT)
    worst = largest_difference(rows, straight, LOSSES)
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_layers": 1}, "--num-layers must be 2 as in .*iter_0000007, but is 1 instead"),
        ({"hidden_size": 64}, "--hidden-size must be 32 as in .*, but is 64 instead"),
        ({"train_iters": 14}, "--train-iters must be 12 as in .*, but is 14 instead. Or pass --override-schedule"),
        ({"bf16": True}, "--bf16 must be False as in .*, but is True instead"),
        (
            {"use_distributed_optimizer": True},
            "--use-distributed-optimizer must be False as in .*, but is True instead",
        ),
        ({"seed": 4}, "--seed must be 1234 as in .*, but is 4 instead"),
        ({"load": None}, "--save must be a folder without checkpoints, but .* holds some"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_may_not_change_is_refused(interrupted, prefix, options, sentence):
    run, _ = interrupted
    given = {"load": run, "train_iters": 12, **options}
    given = {name: value for name, value in given.items() if value is not None}
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(ValueError, match=re.compile(sentence)):
        launch(1, prefix, run, **given)
    assert sorted(path.name for path in run.iterdir()) == before


def test_another_corpus_is_refused(interrupted, prefix, tmp_path):
    run, _ = interrupted
    for suffix in (".bin", ".idx", ".json"):
        shutil.copy(prefix + suffix, tmp_path / f"other{suffix}")
    shutil.copytree(f"{prefix}-tokenizer", tmp_path / "other-tokenizer")
    launch(1, str(tmp_path / "other"), copy_of(run, tmp_path), load=tmp_path / "run", train_iters=12, exit_interval=8)
    manifest = json.loads((tmp_path / "other.json").read_text())
    manifest["files"][".bin"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"--data-path must name the corpus that .* was trained on"):
        launch(1, str(tmp_path / "other"), tmp_path / "run", load=tmp_path / "run", train_iters=12)


def test_a_longer_schedule_is_accepted_on_request(interrupted, prefix, tmp_path):
    run, _ = interrupted
    copied = copy_of(run, tmp_path)
    rows = launch(1, prefix, copied, load=copied, train_iters=14, override_schedule=True, exit_interval=8)
    assert len(rows) == 8


@pytest.fixture(scope="module")
def exported(interrupted, tmp_path_factory):
    """The interrupted run's network as a Hugging Face folder."""
    return export_folder(read_checkpoint_source(interrupted[0]), tmp_path_factory.mktemp("exported") / "hf")


def test_imported_weights_are_no_run_to_resume(exported, prefix, tmp_path):
    import_folder(str(exported), tmp_path / "imported")
    before = hash_file(iteration_folder(tmp_path / "imported", 0) / "COMPLETE")
    sentence = r"--load must name a run to continue, but .*iter_0000000 holds weights alone .* with --init-from instead"
    for save in (tmp_path / "imported", tmp_path / "run"):
        with pytest.raises(ValueError, match=sentence):
            launch(1, prefix, save, load=tmp_path / "imported", train_iters=2)
    assert hash_file(iteration_folder(tmp_path / "imported", 0) / "COMPLETE") == before
    assert launch(1, prefix, tmp_path / "run", init_from=tmp_path / "imported", train_iters=2)


def test_a_resume_does_not_need_the_folder_that_the_run_started_from(exported, prefix, tmp_path):
    """Its network then comes from the checkpoint, as does the config.json that exports keep."""
    start = shutil.copytree(exported, tmp_path / "start")
    options = {"init_from": start, "train_iters": 4, "hidden_dropout": 0.25}
    (tmp_path / "run").mkdir()
    given = arguments(prefix, tmp_path / "run", **options, load=tmp_path / "run")
    shape = [word for name in ("num-layers", "hidden-size", "num-attention-heads") for word in (f"--{name}",)]
    without_shape = [
        word for flag, value in zip(given[::2], given[1::2], strict=True) if flag not in shape for word in (flag, value)
    ]
    first = parse_config(RunConfig, without_shape, infer=options_of_start)
    straight = launch(1, prefix, tmp_path / "straight", **options)
    launch(1, prefix, tmp_path / "run", **options, exit_interval=2)
    shutil.rmtree(start)
    assert config_to_dict(parse_config(RunConfig, without_shape, infer=options_of_start)) == config_to_dict(first)
    resumed = launch(1, prefix, tmp_path / "run", **options, load=tmp_path / "run")
    assert without_timing(resumed) == without_timing(straight)
    kept = json.loads((tmp_path / "run" / "iter_0000004" / "config.json").read_text())["hf_config"]
    assert kept == json.loads((exported / "config.json").read_text())


def test_load_of_an_empty_folder_starts_fresh(prefix, tmp_path):
    (tmp_path / "run").mkdir()
    rows = launch(1, prefix, tmp_path / "run", load=tmp_path / "run", train_iters=2)
    assert [row["iteration"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("world_size", "options"),
    [(2, {}), (1, {}), (2, {"bf16": True})],
    ids=["same-layout", "fewer-ranks", "bf16"],
)
def test_a_distributed_optimizers_checkpoint_continues(prefix, tmp_path, world_size, options):
    """Bit for bit where the layout is the same, moments and step counts included; within rounding on another."""
    distributed = {**EXACT, "train_iters": 8, "use_distributed_optimizer": True, "bf16": options.get("bf16", False)}
    straight = launch(2, prefix, tmp_path / "straight", **distributed)
    launch(2, prefix, tmp_path / "run", **distributed, exit_interval=3)
    resumed = launch(world_size, prefix, tmp_path / "run", **{**distributed, **options}, load=tmp_path / "run")
    worst = largest_difference(resumed, straight, LOSSES)
    assert max(worst.values()) < TOLERANCE, worst
    assert world_size == 1 or without_timing(resumed) == without_timing(straight)


def test_a_run_of_another_kind_of_device_continues_with_new_random_states(prefix, tmp_path):
    """What a rank on a GPU saves: generator states of 16 bytes, which the CPU's cannot load."""
    run, options = tmp_path / "run", {"train_iters": 4}
    launch(1, prefix, run, **options, exit_interval=2)
    folder = iteration_folder(run, 2)
    states = torch.load(folder / "rng_00000.pt", weights_only=True)
    philox = torch.zeros(16, dtype=torch.uint8)
    states |= {"cuda": philox, "tracker": dict.fromkeys(states["tracker"], philox)}
    torch.save(states, folder / "rng_00000.pt")
    marker = json.loads((folder / "COMPLETE").read_text())
    marker["files"]["rng_00000.pt"] = hash_file(folder / "rng_00000.pt")
    (folder / "COMPLETE").write_text(json.dumps(marker))
    rows = launch(1, prefix, run, **options, load=run)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4] and rows[-1]["skipped"] == 0


def train_noting_samples(rank, world_size, argv):
    """One rank; returns the global samples of its micro-batches in order."""
    from megatron_alum.objective.micro_batch import MicroBatch

    load, seen = MicroBatch.load.__func__, []

    def noting(cls, batch, *args, **kwargs):
        seen.extend(batch.sample_index.tolist())
        return load(cls, batch, *args, **kwargs)

    MicroBatch.load = classmethod(noting)
    try:
        assert train_quietly(rank, world_size, argv) is None
    finally:
        MicroBatch.load = classmethod(load)
    return seen


def test_every_sample_is_seen_once_however_the_ranks_change(prefix, tmp_path):
    run, tensor, pipeline = tmp_path / "run", "tensor_model_parallel_size", "pipeline_model_parallel_size"
    run.mkdir()
    parts = [(2, {}), (1, {"micro_batch_size": 4}), (4, {tensor: 2}), (2, {pipeline: 2}), (2, {"micro_batch_size": 1})]
    for number, (world_size, layout) in enumerate(parts):
        options = {"train_iters": 10, "alum_alpha": 0, "exit_interval": 2 * number + 2, "load": run, **layout}
        seen = run_ranks(world_size, train_noting_samples, arguments(prefix, run, **options))
        copies = layout.get(tensor, 1) * layout.get(pipeline, 1)
        samples = list(range(16 * number, 16 * number + 16)) * copies
        assert sorted(sample for rank in seen for sample in rank) == sorted(samples)
    assert [row["iteration"] for row in read_rows(run)] == list(range(1, 11))


def test_no_sample_is_skipped_or_seen_twice_when_the_global_batch_changes(prefix, tmp_path):
    """Nor by a later resume; the mask rate rises over all the samples of the run."""
    run, first, iterations = tmp_path / "run", 0, 0
    parts = [(8, 3, 1), (12, 6, 2), (4, 8, 1), (4, 10, 2)]  # global batch, last iteration, ranks
    for batch, last, world_size in parts:
        options = {"train_iters": 10, "alum_alpha": 0, "exit_interval": last, "global_batch_size": batch}
        more = {"load": run, "override_schedule": True} if iterations else {}
        seen = run_ranks(world_size, train_noting_samples, arguments(prefix, run, **options, **more))
        after = first + batch * (last - iterations)
        assert sorted(sample for rank in seen for sample in rank) == list(range(first, after))
        first, iterations = after, last
        stored = json.loads((iteration_folder(run, last) / "config.json").read_text())
        assert stored["consumed_samples"] == after
    begins, rates = [0, 8, 16, 24, 36, 48, 60, 64, 68, 72], (0.05, 0.1, 0.15, 0.2, 0.25)
    totals = [80] * 3 + [24 + 7 * 12] * 3 + [60 + 4 * 4] * 4
    expected = [rates[min(4, 5 * begin // total)] for begin, total in zip(begins, totals, strict=True)]
    assert [row["mask_rate"] for row in read_rows(run)] == expected


def launch_on(data_path, run, **options):
    """A resume of `run` on other shards; returns what it printed. Raises: its error."""
    argv = arguments("X", run, load=run, train_iters=12, **options)
    place = argv.index("X")
    (refused,) = run_ranks(1, train_and_keep_stderr, [*argv[:place], *data_path, *argv[place + 1 :]])
    if refused is not None:
        raise refused
    return Path(f"{run}-stderr-0").read_text()


def test_a_moved_corpus_is_found_by_its_fingerprint_and_other_weights_are_refused(prefix, tmp_path):
    for number in (1, 2):
        for suffix in (".bin", ".idx", ".json"):
            shutil.copy(prefix + suffix, tmp_path / f"shard{number}{suffix}")
        shutil.copytree(f"{prefix}-tokenizer", tmp_path / f"shard{number}-tokenizer")
    one, two, run = str(tmp_path / "shard1"), str(tmp_path / "shard2"), tmp_path / "run"
    argv = arguments("X", run, train_iters=12, exit_interval=2)
    place = argv.index("X")
    assert run_ranks(1, train_quietly, [*argv[:place], "3", one, "1", two, *argv[place + 1 :]]) == [None]
    for given, sentence in {
        ("1", one, "1", two): "--data-path must have the weights 3.0 1.0 as in .*, but has 1.0 1.0 instead. Or pass --",
        (one, two): r"must have the weights 3.0 1.0 as in .*, but has none \(in proportion to tokens\) instead",
        ("3", one): r"--data-path must name 2 shard\(s\) as in .*iter_0000002, but names 1 instead",
        ("3", one, "1", str(tmp_path / "gone")): r"`.*gone.json` does not exist. A corpus that was moved is recognised",
        ("3", one, two): r"--data-path must have a weight before every prefix or before none, but has no weight before",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            launch_on(given, run)
    assert "weights 3.0 1.0 in " in launch_on(("1", one, "1", two), run, override_schedule=True, exit_interval=3)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in list(tmp_path.glob("shard*")):
        path.rename(moved / path.name)
    new = [str(moved / "shard1"), str(moved / "shard2")]
    printed = launch_on(("0.5", new[0], "0.5", new[1]), run, exit_interval=4)
    assert f"is now read from {' '.join(new)} (same fingerprint)" in printed
