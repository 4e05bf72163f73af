"""Adversarial pre-training of BERT and RoBERTa: the entry for torchrun.

    torchrun --nproc-per-node 2 pretrain_bert_alum.py --data-path OUT --save DIR --model-size small \
        --seq-length 128 --train-iters 1000 --global-batch-size 32 --tensor-model-parallel-size 2

All options: `python pretrain_bert_alum.py --help`; recipes: `--config examples/from_scratch.yaml`.
"""

from collections.abc import Mapping
from typing import Any

from megatron_alum.config.cli import main_guard, parse_config
from megatron_alum.config.run import RunConfig


def network_of_start(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network's options where --load continues or --init-from starts, unless flags or YAML say otherwise."""
    if given.get("init_from") is None:
        return {}
    from megatron_alum.convert import model_flags_from_hf  # imports torch, which --help does not need
    from megatron_alum.training.resume import network_of_newest

    stored = network_of_newest(given.get("load"))  # on a resume the folder that the run started from may be gone
    return model_flags_from_hf(given["init_from"]) if stored is None else stored


def main() -> None:
    """Parse the command line into a RunConfig, then train."""
    description = "Pre-train BERT or RoBERTa with adversarial regularisation (ALUM)."
    config = parse_config(RunConfig, description=description, infer=network_of_start)
    # After parsing: --help and refused options need no megatron-core.
    from megatron_alum.training.dry_run import dry_run
    from megatron_alum.training.loop import train

    (dry_run if config.dry_run else train)(config)


if __name__ == "__main__":
    main_guard(main)
