"""Time of a fine-tuning step with each method against the plain Trainer's, in one run on one machine.

    python -m benchmarks.bench_finetune                                      BERT-base, 8 sequences of 64 tokens
    python -m benchmarks.bench_finetune --layers 6 --width 384 --batch 16    the size of the six-layer MiniLM

A step is `AlumTrainer.training_step` on random tokens, gradient clipping and fused AdamW included, in float32 with
dropout 0.1. The methods take turns, so that a busy machine disturbs all of them equally; a row is the fastest of its
steps. The column `flops` is the count of torch's FLOP counter relative to method none.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.report.machine import current_commit, processor_name

COLUMNS = ("method", "seconds", "ratio_to_none", "flops", "network", "batch", "threads", "device", "torch", "commit")


def main() -> None:
    """Time every method, then write the table."""
    arguments = parse_arguments()
    from megatron_alum.finetune.methods.presets import METHODS  # after parsing: --help needs no torch

    with TemporaryDirectory() as folder:
        steps = {name: build_step(name, arguments, folder) for name in METHODS}
        flops = {name: flops_of(step) for name, step in steps.items()}  # the first step of each: warms up
        seconds = fastest(steps, arguments.rounds)
    write(seconds, flops, arguments)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line above; `words` in place of this process's."""
    parser = Parser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="of the network (default: 12)")
    parser.add_argument("--width", type=int, default=768, help="of hidden states, 64 per head (default: 768)")
    parser.add_argument("--vocab", type=int, default=30_522, help="entries of the vocabulary (default: 30522)")
    parser.add_argument("--batch", type=int, default=8, help="sequences (default: 8)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each method (default: 5)")
    parser.add_argument("--output", help="CSV file to write")
    return parser.parse_args(words)


def build_step(method: str, arguments: argparse.Namespace, folder: str) -> Callable[[], None]:
    """A callable that runs one training step of `method`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

    from megatron_alum.finetune.methods.trainer import AlumTrainer

    config = BertConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
        intermediate_size=4 * arguments.width,
    )
    torch.manual_seed(0)
    settings = TrainingArguments(folder, report_to="none", disable_tqdm=True)
    model = BertForSequenceClassification(config).to(settings.device)
    trainer = AlumTrainer(model=model, args=settings, train_dataset=[], method=method)
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()
    tokens = torch.randint(5, arguments.vocab, (arguments.batch, arguments.length))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(len(tokens)) % 2}

    def step() -> None:
        trainer.training_step(model, dict(inputs))
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def flops_of(step: Callable[[], None]) -> int:
    """Floating-point operations of one step's matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def fastest(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest of `rounds` steps of each, taking turns."""
    import torch

    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def write(seconds: dict[str, float], flops: dict[str, int], arguments: argparse.Namespace) -> None:
    """The table, to stdout and to --output."""
    import torch

    rows = [
        {
            "method": name,
            "seconds": f"{value:.4f}",
            "ratio_to_none": f"{value / seconds['none']:.3f}",
            "flops": f"{flops[name] / flops['none']:.3f}",
            "network": f"BERT {arguments.layers} x {arguments.width}",
            "batch": f"{arguments.batch} x {arguments.length} tokens",
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
            "torch": torch.__version__,
            "commit": current_commit(),
        }
        for name, value in seconds.items()
    ]
    streams = [sys.stdout]
    if arguments.output:
        streams.append(Path(arguments.output).open("w", newline="", encoding="utf-8"))
    for stream in streams:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        stream.flush()


if __name__ == "__main__":
    main_guard(main)
