"""What a run does on a GPU, on a stand-in for one: the CPU's numbers, no tensor on the wrong device, and a host that
waits for the device when it logs, validates or saves, but in no step.
"""

from collections import Counter
from unittest import mock

import pytest
from megatron.core import parallel_state

from megatron_alum.convert import commands
from tests.helpers.other_device import on_fresh_rank, other_device
from tests.training.runs import ASCENT, EXACT, arguments, largest_difference, launch, read_rows, train_quietly

MAY_WAIT = ("_log", "validate", "save", "check_replicas")
"""functions of the loop that read what the device computed, each at its own interval"""
SHORT = {"train_iters": 4, "num_layers": 2, **EXACT, **ASCENT, "log_interval": 2}
SHORT |= {"eval_interval": 3, "eval_iters": 1, "split": "8,2,0"}
RUNS = {
    "defaults": {},
    "two steps at the encoder's input": {"alum_perturb": "encoder_input", "alum_num_ascent_steps": 2},
    "a layer, half of the batch": {"alum_perturb": "layer", "alum_perturb_layer": 1, "alum_batch_fraction": 0.5},
    "random start only": {"alum_num_ascent_steps": 0, "alum_step_size": 1e-3, "alum_epsilon": 1e-5},
    "label": {"alum_ascent": "label"},
    "post-LayerNorm, chunks": {"model_type": "bert", "alum_head_chunk_rows": 3},
    "recomputed": {"recompute_granularity": "full", "check_weight_hash_across_dp_replicas_interval": 2},
    "shared dropout": {"alum_dropout": "shared", "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "bf16, distributed optimizer": {
        **{"bf16": True, "use_distributed_optimizer": True, "overlap_grad_reduce": True},
        **{"overlap_param_gather": True, "async_save": True, "save_interval": 2},
    },
}
ROUNDED = ("bf16", "hidden_dropout")
"""options whose numbers differ from the CPU's: by the kernels' rounding, by the generator's masks"""


def train_on_the_gpu(rank, world_size, runs):
    """Runs one after another; where the host of each waited in its steps after the first."""
    from megatron_alum.parallel import groups
    from megatron_alum.training.loop import Run

    answers, iterate = [], Run._iteration
    with (
        other_device() as gpu,
        mock.patch.object(groups, "shutdown", parallel_state.destroy_model_parallel),
        mock.patch.object(groups, "reduce_one_bucket_at_a_time"),  # the group, which is gloo's, stands for one of NCCL
    ):
        gpu.excepted = MAY_WAIT

        def noted(run, *args):
            before = Counter(gpu.waits)
            iterate(run, *args)
            if run.state.iteration > 1:
                waits.update(gpu.waits - before)

        for argv in runs:
            waits = Counter()
            with mock.patch.object(Run, "_iteration", noted):
                if (refused := train_quietly(rank, world_size, argv)) is not None:
                    raise refused
            answers.append(dict(waits))
    return answers


@pytest.fixture(scope="module")
def finished(prefix, tmp_path_factory):
    """{name: (folder of the run on the GPU, where its host waited)}; the first stopped once and was continued."""
    folder = tmp_path_factory.mktemp("gpu")
    folders = [folder / str(number) for number in range(len(RUNS))]
    lines = [
        arguments(prefix, save, **{**SHORT, **options}) for save, options in zip(folders, RUNS.values(), strict=True)
    ]
    lines[:1] = [[*lines[0], "--exit-interval", "2"], [*lines[0], "--load", str(folders[0])]]
    answers = on_fresh_rank(train_on_the_gpu, lines)
    return {name: (save, waits) for name, save, waits in zip(RUNS, folders, answers[1:], strict=True)}


@pytest.mark.parametrize("name", RUNS)
def test_numbers_of_the_cpu_and_no_wait_in_a_step(finished, prefix, tmp_path, name):
    run, waits = finished[name]
    assert waits == {}
    rows, validation = read_rows(run), read_rows(run, "validation.jsonl")
    assert [row["phase"] for row in rows] == ["standard", "alum"] and None not in (rows[1]["loss"], validation)
    if not any(option in RUNS[name] for option in ROUNDED):
        expected = launch(1, prefix, tmp_path / "cpu", **{**SHORT, **RUNS[name]})
        worst = largest_difference(rows, expected, ("lm_loss", "nsp_loss", "alum_kl", "grad_norm"))
        assert max(worst.values()) < 1e-4, worst


def convert_on_the_gpu(rank, world_size, run, folder):
    """Out to Hugging Face and back, compared on the device both times."""
    from megatron_alum.parallel import groups

    with other_device(), mock.patch.object(groups, "shutdown", parallel_state.destroy_model_parallel):
        commands.to_hf(str(run), folder / "hf", verify=True)
        commands.from_hf(str(folder / "hf"), folder / "again", verify=True)


def test_conversion_compares_on_the_device(finished, tmp_path):
    run, _ = finished["defaults"]
    on_fresh_rank(convert_on_the_gpu, run, tmp_path)
