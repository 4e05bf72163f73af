"""Converts between checkpoints of this project (or of Megatron-LM) and Hugging Face folders, in one process on the CPU.

    megatron-alum convert to-hf   --load RUN_DIR  --output HF_DIR [--verify]
    megatron-alum convert from-hf --model HF_DIR  --save RUN_DIR  [--verify]

to-hf takes a run's folder (its newest valid checkpoint) or one iter_ folder, saved at any parallel layout, and
checkpoints of stock Megatron-LM BERT (torch_dist, or mp_rank_XX and mp_rank_XX_YYY, `release` too; keys of the local
spec, of Transformer Engine, or from before megatron-core) with --tokenizer.
from-hf writes a checkpoint at iteration 0 from which pre-training can start at any parallel size (--init-from).
--verify runs both models on a batch and prints the difference of their predictions; more than rounding is an error.
"""

import argparse
import shlex
import sys
from pathlib import Path


def main() -> None:
    """Parse the command line and run the one conversion it names."""
    arguments = _parser().parse_args()
    from megatron_alum.convert import commands
    from megatron_alum.convert.card_words import CardWish

    if arguments.direction == "to-hf":
        commands.to_hf(
            arguments.load,
            Path(arguments.output),
            kind=arguments.architecture,
            dtype=arguments.dtype,
            tokenizer=None if arguments.tokenizer is None else Path(arguments.tokenizer),
            num_attention_heads=arguments.num_attention_heads,
            verify=arguments.verify,
            wish=CardWish(
                license=arguments.license,
                languages=tuple(arguments.language),
                command=f"megatron-alum convert {shlex.join(sys.argv[1:])}",
            ),
        )
    else:
        commands.from_hf(arguments.model, Path(arguments.save), dtype=arguments.dtype, verify=arguments.verify)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    directions = parser.add_subparsers(dest="direction", required=True, metavar="to-hf|from-hf")
    to_hf = directions.add_parser("to-hf", help="checkpoint to Hugging Face folder")
    to_hf.add_argument("--load", required=True, metavar="DIR", help="run folder or one checkpoint in it")
    to_hf.add_argument("--output", required=True, metavar="HF_DIR", help="new folder to write")
    to_hf.add_argument(
        "--architecture",
        choices=("pretraining", "masked-lm", "encoder"),
        help="heads of the exported class: MLM and NSP, MLM, or none (default: the heads that were trained)",
    )
    to_hf.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="tokenizer folder of a checkpoint that has none: Megatron-LM's, or the import of a model without one",
    )
    to_hf.add_argument(
        "--num-attention-heads",
        type=int,
        metavar="N",
        help="of a Megatron-LM checkpoint that stores no arguments (default: heads of size 64)",
    )
    to_hf.add_argument("--license", default="unknown", help="of the model card, such as apache-2.0 (default: unknown)")
    to_hf.add_argument(
        "--language",
        nargs="+",
        default=[],
        metavar="CODE",
        help="of the model card, such as en (default: the language given to preprocessing)",
    )
    from_hf = directions.add_parser("from-hf", help="Hugging Face folder to checkpoint")
    from_hf.add_argument("--model", required=True, metavar="HF_DIR", help="folder, or name on the hub")
    from_hf.add_argument("--save", required=True, metavar="DIR", help="new run folder to write")
    for direction in (to_hf, from_hf):
        direction.add_argument(
            "--dtype", choices=("float32", "bfloat16", "float16"), help="cast the weights (default: as they are stored)"
        )
        direction.add_argument("--verify", action="store_true", help="compare both models on a batch")
    return parser
