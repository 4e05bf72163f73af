"""Adversarial pre-training of BERT and RoBERTa: the entry for torchrun.

    torchrun --nproc-per-node 2 pretrain_bert_alum.py --data-path OUT --save DIR --model-size small \
        --seq-length 128 --train-iters 1000 --global-batch-size 32 --tensor-model-parallel-size 2

All options: `python pretrain_bert_alum.py --help`; recipes: `--config examples/from_scratch.yaml`.
"""

from megatron_alum.config.cli import main_guard, parse_config
from megatron_alum.config.run import RunConfig


def main() -> None:
    """Parse the command line into a RunConfig, then train."""
    config = parse_config(RunConfig, description="Pre-train BERT or RoBERTa with adversarial regularisation (ALUM).")
    from megatron_alum.training.loop import train  # after parsing: --help and errors need no megatron-core

    train(config)


if __name__ == "__main__":
    main_guard(main)
