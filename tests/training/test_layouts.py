"""The same run on other layouts: losses within TOLERANCE of the single process, both phases included.

dropout 0, float32, epsilon = noise_std = 0.05, 20 iterations, global batch 8: the divergence is of the order of 1, so
float32 rounding (1e-7 per sum, growing with the updates) is the only difference left.
"""

import functools

import pytest

from tests.training.runs import EXACT, largest_difference, launch, read_rows

LOSSES = ("lm_loss", "nsp_loss", "alum_kl", "alum_nsp_kl", "grad_norm")
STATISTICS_TOLERANCE = 1e-3
"""relative: kl_gain is a difference of two divergences, effective_perturbation one of sums that round"""
STATISTICS = ("effective_perturbation", "ascent_ratio", "kl_gain")
TOLERANCE = 1e-4
"""relative, over 20 iterations: the project's own promise"""


def assert_equal_runs(rows, expected):
    """Losses and logged statistics of two runs, each within its tolerance."""
    for names, tolerance in ((LOSSES, TOLERANCE), (STATISTICS, STATISTICS_TOLERANCE)):
        worst = largest_difference(rows, expected, names)
        assert max(worst.values()) < tolerance, worst


@pytest.fixture(scope="module")
def single(prefix, tmp_path_factory):
    """Rows of the single-process run, by its options, computed once."""

    @functools.cache
    def run(**options):
        return launch(1, prefix, tmp_path_factory.mktemp("single"), **EXACT, **options)

    return run


OPTIONS = {
    "normalized-gradient": {"alum_projection": "normalized_gradient", "alum_num_ascent_steps": 2},
    "released-code": {
        "alum_projection": "normalize",
        "alum_perturb": "encoder_input",
        "alum_detach_embeddings": True,
        "alum_epsilon": 1e-5,
        "alum_inner_reduction": "batch",
    },
    "full-gradients": {"alum_detach_targets": False, "alum_inner_divergence": "symmetric", "alum_nsp": False},
    "half-of-the-batch": {"alum_batch_fraction": 0.5},
    "chunked-head": {"alum_head_chunk_rows": 3},
    "label-of-a-part": {"alum_ascent": "label", "alum_batch_fraction": 0.5},
    "late-layer-of-a-part": {"alum_perturb": "layer", "alum_perturb_layer": 1, "alum_batch_fraction": 0.4},
    "random-start-only": {"alum_num_ascent_steps": 0, "alum_step_size": 1e-3, "alum_epsilon": 1e-5},
    "post-layernorm": {"model_type": "bert"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_right_under_sequence_parallelism(prefix, tmp_path, options):
    """Adversarial from the first iteration, with an ascent that moves delta as far as its random start."""
    given = {**EXACT, "alum_start_fraction": 0, "alum_step_size": 5.0, "alum_epsilon": 0.1, "train_iters": 3, **options}
    split = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    rows = launch(2, prefix, tmp_path / "run", **given, **split)
    expected = launch(1, prefix, tmp_path / "single", **given)
    assert_equal_runs(rows, expected)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(2, {"tensor_model_parallel_size": 2, "micro_batch_size": 8}, id="tp2"),
        pytest.param(2, {}, id="dp2"),
        pytest.param(1, {"micro_batch_size": 8}, id="one-micro-batch"),
        pytest.param(
            2, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "micro_batch_size": 8}, id="tp2-sp"
        ),
        pytest.param(
            4, {"use_distributed_optimizer": True, "overlap_grad_reduce": True}, id="dp4-distributed-optimizer-overlap"
        ),
        pytest.param(
            4,
            {
                "tensor_model_parallel_size": 2,
                "sequence_parallel": True,
                "use_distributed_optimizer": True,
                "micro_batch_size": 4,
            },
            id="all",
        ),
        pytest.param(1, {"recompute_granularity": "full"}, id="recompute-full"),
        pytest.param(1, {"recompute_granularity": "selective"}, id="recompute-selective"),
        pytest.param(
            2,
            {"tensor_model_parallel_size": 2, "alum_head_chunk_rows": 3, "micro_batch_size": 8},
            id="tp2-chunked-head",
        ),
    ],
)
def test_losses_do_not_depend_on_the_layout(single, prefix, tmp_path, world_size, layout):
    rows = launch(world_size, prefix, tmp_path / "run", **EXACT, **layout)
    expected = single()
    assert [row["phase"] for row in rows] == ["standard"] * 10 + ["alum"] * 10
    assert_equal_runs(rows, expected)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(4, {}, id="three of four ranks without an adversarial sample"),
        pytest.param(1, {}, id="three of four micro-batches without one"),
        pytest.param(2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}, id="split tokens"),
    ],
)
def test_every_statistic_is_that_of_the_whole_batch(prefix, tmp_path, world_size, layout):
    """Rows over several iterations and across the change of phase; one sample of eight is adversarial."""
    given = {**EXACT, "alum_step_size": 5.0, "alum_epsilon": 0.1, "alum_batch_fraction": 0.125, "train_iters": 8}
    given |= {"alum_start_fraction": 0.25, "log_interval": 4, "eval_interval": 4, "eval_iters": 1, "split": "8,2,0"}
    expected = launch(1, prefix, tmp_path / "whole", **{**given, "micro_batch_size": 8})
    rows = launch(world_size, prefix, tmp_path / "run", **given, **layout)
    assert expected[0]["alum_kl"] is not None and expected[0]["phase"] == "alum"
    assert_equal_runs(rows, expected)
    pairs = [read_rows(tmp_path / name, "validation.jsonl") for name in ("run", "whole")]
    worst = largest_difference(*pairs, ("lm_loss", "nsp_loss"))
    assert max(worst.values()) < TOLERANCE, worst
    for row, other in zip(*(read_rows(tmp_path / name, "performance.jsonl") for name in ("run", "whole")), strict=True):
        assert all(row[name] == other[name] for name in ("fill", "nonfinite_samples", "loss_scale"))
