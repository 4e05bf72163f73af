"""Adversarial pre-training of BERT and RoBERTa: the entry for torchrun.

    torchrun --nproc-per-node 2 pretrain_bert_alum.py --data-path OUT --save DIR --model-size small \
        --seq-length 128 --train-iters 1000 --global-batch-size 32 --tensor-model-parallel-size 2

All options: `python pretrain_bert_alum.py --help`; recipes: `--config examples/from_scratch.yaml`. The same as
`torchrun -m megatron_alum.pretrain`; the code is megatron_alum/cli/pretrain.py.
"""

from megatron_alum.cli.pretrain import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
