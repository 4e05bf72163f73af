"""Converts between checkpoints of this project (or of Megatron-LM) and Hugging Face folders, in one process on the CPU.

    megatron-alum convert to-hf   --load RUN_DIR  --output HF_DIR [--verify]
    megatron-alum convert from-hf --model HF_DIR  --save RUN_DIR  [--verify]

to-hf takes a run's folder (its newest valid checkpoint) or one iter_ folder, saved at any parallel layout, and
checkpoints of stock Megatron-LM BERT (torch_dist, or mp_rank_XX and mp_rank_XX_YYY, `release` too; keys of the local
spec, of Transformer Engine, or from before megatron-core) with --tokenizer.
from-hf writes a checkpoint at iteration 0 from which pre-training can start at any parallel size (--init-from).
--verify runs both models on a batch and prints the difference of their predictions; more than rounding is an error.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_alum.config.checks import Count, check_fields
from megatron_alum.config.cli import parse_config
from megatron_alum.config.places import AnyInput, OutputFolder, check_places
from megatron_alum.config.words import not_one_of

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ToHfConfig:
    """Checkpoint to Hugging Face folder"""

    load: AnyInput
    """run folder or one checkpoint in it"""
    output: OutputFolder
    """new Hugging Face folder to write"""
    architecture: Literal["pretraining", "masked-lm", "encoder"] | None = None
    """heads of the exported class: MLM and NSP, MLM, or none; by default the heads that were trained"""
    tokenizer: AnyInput | None = None
    """tokenizer folder of a checkpoint that has none: Megatron-LM's, or the import of a model without one"""
    num_attention_heads: Count | None = None
    """of a Megatron-LM checkpoint that stores no arguments; by default heads of size 64"""
    license: str = "unknown"
    """of the model card, such as apache-2.0"""
    language: tuple[str, ...] = ()
    """of the model card, such as en; by default the language given to preprocessing"""
    dtype: Dtype | None = None
    """type to which the weights are cast; by default as they are stored"""
    verify: bool = False
    """compare both models on a batch"""

    def __post_init__(self) -> None:
        """Refuse a number of heads that no network has."""
        check_fields(self)


@dataclass(frozen=True)
class FromHfConfig:
    """Hugging Face folder to checkpoint"""

    model: AnyInput
    """Hugging Face folder, or name on the hub"""
    save: OutputFolder
    """new run folder to write"""
    dtype: Dtype | None = None
    """type to which the weights are cast; by default as they are stored"""
    verify: bool = False
    """compare both models on a batch"""


def main() -> None:
    """Run the one conversion that the command line names."""
    program, *words = sys.argv
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {Path(program).name} to-hf|from-hf [options]\n\n{__doc__}\n`to-hf --help` lists the options.")
        sys.exit(0)
    directions = {"to-hf": _to_hf, "from-hf": _from_hf}
    if words[0] not in directions:
        raise ValueError(not_one_of("the direction", words[0], directions))
    sys.argv = [f"{program} {words[0]}", *words[1:]]  # the name shown in --help
    directions[words[0]]()


def _to_hf() -> None:
    config = parse_config(ToHfConfig, description=__doc__ or "")
    check_places(config)
    from megatron_alum.convert import commands
    from megatron_alum.convert.card_words import CardWish

    commands.to_hf(
        config.load,
        Path(config.output),
        kind=config.architecture,
        dtype=config.dtype,
        tokenizer=None if config.tokenizer is None else Path(config.tokenizer),
        num_attention_heads=config.num_attention_heads,
        verify=config.verify,
        wish=CardWish(
            license=config.license,
            languages=config.language,
            command=f"megatron-alum convert to-hf {shlex.join(sys.argv[1:])}",
        ),
    )


def _from_hf() -> None:
    config = parse_config(FromHfConfig, description=__doc__ or "")
    check_places(config)
    from megatron_alum.convert import commands

    commands.from_hf(config.model, Path(config.save), dtype=config.dtype, verify=config.verify)
