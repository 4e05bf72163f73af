"""Fine-tune and evaluate an encoder on a benchmark of the paper, with or without adversarial regularisation.

    megatron-alum finetune --model HF_DIR --task sst2 --data-dir glue --output out/sst2 --alum --seeds 1 2 3

Results: OUTPUT/results.jsonl, predictions in OUTPUT/runs/*/, the best model in OUTPUT/model. Run the same command again
to resume. Without training data: `--evaluate-only`, or `--predict-file FILE`, with --model OUTPUT/model.
Several processes: `torchrun --nproc-per-node N -m megatron_alum finetune ...`.
"""

from __future__ import annotations

from pathlib import Path

from megatron_alum.config.cli import format_changes, parse_config
from megatron_alum.config.extras import EXTRAS, require
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.config.places import check_places
from megatron_alum.config.words import counted


def main() -> None:
    """Parse the command line, then run it."""
    config = parse_config(FinetuneConfig, description=__doc__ or "")
    check_places(config)
    require(*EXTRAS["finetune"])
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_run)(config)  # torchrun shows the first traceback of all ranks


def _run(config: FinetuneConfig) -> None:
    """Prepare, run, summarise."""
    from megatron_alum.finetune.runs.evaluation import evaluate_folder
    from megatron_alum.finetune.runs.grid import exit_together, is_main_process, run_grid
    from megatron_alum.finetune.runs.prepare import prepare
    from megatron_alum.finetune.runs.summary import format_summary

    if config.data.evaluate_only or config.data.predict_file is not None:
        for row in evaluate_folder(config):
            print(f"{row['split']} {row['metric']} {row['value']:.4f} ({counted(row['n'], 'example')})")
        print(f"predictions: {config.data.output}")
        return
    prepared = prepare(config)
    if is_main_process():  # after all refusals
        print(format_changes(config), flush=True)
    rows = run_grid(config, prepared)
    if is_main_process():
        print(format_summary(rows, prepared.task.metrics[0]))
        print(f"results: {Path(config.data.output) / 'results.jsonl'}")
    exit_together()
