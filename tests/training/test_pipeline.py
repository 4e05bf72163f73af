"""Pipeline stages for the standard objective: the same run as on one process, checkpoints that go both ways."""

import pytest

from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments, dry_run_output, largest_difference, launch, read_rows, without_timing

STANDARD = {**EXACT, "alum_alpha": 0, "num_layers": 4, "train_iters": 10}
LOSSES = ("lm_loss", "nsp_loss", "grad_norm")
TOLERANCE = 1e-4
"""relative, over 10 iterations, as over 20 in test_layouts.py"""
STAGES = {"pipeline_model_parallel_size": 2}
HELD_OUT = {"split": "60,40,0", "eval_interval": 5, "eval_iters": 2}


@pytest.fixture(scope="module")
def single(prefix, tmp_path_factory):
    """The folder of the single-process run."""
    run = tmp_path_factory.mktemp("single") / "run"
    launch(1, prefix, run, **STANDARD, **HELD_OUT)
    return run


def assert_near(rows, expected, names=LOSSES):
    worst = largest_difference(rows, expected, names)
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(2, {}, id="pp2"),
        pytest.param(4, {"pipeline_model_parallel_size": 4}, id="pp4", marks=pytest.mark.slow),
        pytest.param(4, {"tensor_model_parallel_size": 2}, id="tp2-pp2", marks=pytest.mark.slow),
        pytest.param(
            4, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "micro_batch_size": 4}, id="tp2-sp-pp2"
        ),
        pytest.param(
            4,
            {"use_distributed_optimizer": True, "overlap_grad_reduce": True},
            id="pp2-dp2-distributed",
            marks=pytest.mark.slow,
        ),
        pytest.param(2, {"recompute_granularity": "full", "micro_batch_size": 8}, id="pp2-recompute-one-micro-batch"),
    ],
)
def test_losses_are_those_of_one_process(single, prefix, tmp_path, world_size, layout):
    rows = launch(world_size, prefix, tmp_path / "run", **{**STANDARD, **STAGES, **HELD_OUT, **layout})
    assert_near(rows, read_rows(single))
    validated = read_rows(tmp_path / "run", "validation.jsonl")
    assert_near(validated, read_rows(single, "validation.jsonl"), ("lm_loss", "nsp_loss"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"model_type": "bert"}, id="post-ln"),
        pytest.param({"bf16": True}, id="bf16", marks=pytest.mark.slow),
        pytest.param({"fp16": True}, id="fp16"),
    ],
)
def test_other_networks_and_precisions(prefix, tmp_path, options):
    rows = launch(2, prefix, tmp_path / "run", **{**STANDARD, "train_iters": 6}, **STAGES, **options)
    expected = launch(1, prefix, tmp_path / "single", **{**STANDARD, "train_iters": 6}, **options)
    worst = largest_difference(rows, expected, LOSSES)
    assert max(worst.values()) < (TOLERANCE if "model_type" in options else 5e-3), worst


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, STAGES), (1, {})),
        ((1, {}), (2, STAGES)),
        (
            (4, {**STAGES, "tensor_model_parallel_size": 2, "micro_batch_size": 4}),
            (2, {"tensor_model_parallel_size": 2, "micro_batch_size": 8}),
        ),
        ((2, {"use_distributed_optimizer": True}), (4, {**STAGES, "use_distributed_optimizer": True})),
    ],
    ids=["pp2-to-1", "1-to-pp2", "tp2-pp2-to-tp2", "dp2-to-pp2-dp2-distributed"],
)
def test_a_checkpoint_continues_on_another_number_of_stages(single, prefix, tmp_path, first, then):
    run = tmp_path / "run"
    for (world_size, layout), options in ((first, {"exit_interval": 4}), (then, {"load": run})):
        launch(world_size, prefix, run, **STANDARD, **HELD_OUT, **layout, **options)
    assert_near(read_rows(run), read_rows(single))


def test_a_resume_on_the_same_stages_is_bit_equal_with_dropout(prefix, tmp_path):
    options = {"alum_alpha": 0, "train_iters": 6, "tensor_model_parallel_size": 2, **STAGES}
    straight = launch(4, prefix, tmp_path / "straight", **options)
    launch(4, prefix, tmp_path / "run", **options, exit_interval=3)
    resumed = launch(4, prefix, tmp_path / "run", **options, load=tmp_path / "run")
    assert without_timing(resumed) == without_timing(straight)


def test_the_standard_phase_runs_in_stages_and_the_adversarial_one_without(prefix, tmp_path):
    """A run of the paper's kind: stages until ALUM begins, then the same run on one process."""
    expected = launch(1, prefix, tmp_path / "single", **EXACT)
    run = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"--pipeline-model-parallel-size must be 1 in the adversarial phase, .* 11 with"
    ):
        launch(2, prefix, run, **EXACT, **STAGES)
    launch(2, prefix, run, **EXACT, **STAGES, exit_interval=10)
    rows = launch(1, prefix, run, **EXACT, load=run)
    assert_near(rows, expected, (*LOSSES, "alum_kl", "alum_nsp_kl"))


def test_a_dry_run_counts_the_stages(prefix, tmp_path):
    argv = arguments(prefix, None, **STANDARD, **STAGES, dry_run=True)
    printed, nothing = run_ranks(2, dry_run_output, argv)
    assert (
        "8 sequences = 2 a micro-batch on average x 4 micro-batches x 1 data-parallel replica(s) of 2 process(es)"
        in printed
    )
    assert "standard    10 iterations" in printed and nothing == ""


def test_a_dry_run_in_stages_times_no_adversarial_phase(prefix):
    """A run that leaves the adversarial phase to a later run without stages."""
    argv = arguments(prefix, None, **STAGES, exit_interval=10, dry_run=True)
    printed, _ = run_ranks(2, dry_run_output, argv)
    assert "alum        10 iterations, for a run without pipeline stages" in printed
