"""The console command `megatron-alum`, also `python -m megatron_alum`: finds the sub-command and runs it."""

from __future__ import annotations

import importlib
import sys

from megatron_alum import __version__
from megatron_alum.config.cli import main_guard
from megatron_alum.config.words import not_one_of

COMMANDS = {
    "preprocess": "turn raw text (dumps, JSON lines, parquet, plain text) into shards for training",
    "train-tokenizer": "train a vocabulary on raw text",
    "inspect": "show counts, documents and training samples of shards",
    "merge": "merge separately written shards into one corpus",
    "pretrain": "standard and adversarial pre-training; with several processes: torchrun -m megatron_alum.pretrain",
    "convert": "convert a checkpoint to a Hugging Face folder and back",
    "finetune": "fine-tune and evaluate an encoder on the paper's benchmarks",
    "attack": "measure how a fine-tuned classifier withstands attacks",
    "report": "render the paper's tables with your results beside its own",
    "doctor": "show what this machine has, and what to do about the rest",
    "estimate": "estimate memory and operations of a run, without building it",
}
"""Sub-command -> what it does; its code is the module of that name in this package."""


def overview() -> str:
    """What `megatron-alum --help` prints."""
    lines = ["usage: megatron-alum COMMAND [options]", "", "Adversarial pre-training of BERT and RoBERTa.", ""]
    lines += [f"  {name:<16} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "megatron-alum COMMAND --help lists the options of one; --version prints the version."]
    )


def run() -> None:
    """Run the sub-command given in the arguments.

    Raises: ValueError for an unknown command; whatever the command itself raises.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"megatron_alum {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"megatron-alum {name}", *rest]  # the name shown in --help and in the command's errors
        importlib.import_module(f"megatron_alum.cli.{name.replace('-', '_')}").main()
    else:
        raise ValueError(not_one_of("the command", name, COMMANDS))


def main() -> None:
    """Entry of the console script."""
    main_guard(run)
