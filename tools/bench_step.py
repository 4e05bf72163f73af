"""Time of whole training steps beside stock megatron-core's BertModel, in one run on one machine.

    python tools/bench_step.py                                   4 layers of 256, as in benchmarks/results/step_cpu.csv
    python tools/bench_step.py --model-size base --bf16 --output benchmarks/results/step_gpu.csv

Every row is a forward, backward and optimizer step on one micro-batch of one process, with random tokens. Rows: the
stock BertModel (logits on all positions, its own attention), our standard step, ALUM with K = 1 and 2, on half of the
batch, free and label ascent, with a chunked head and with recomputation. Memory is the peak above that before the model
was built.
"""

import argparse
import csv
import gc
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_alum.config.cli import build_config, main_guard
from megatron_alum.config.run import RunConfig

STOCK = "stock megatron-core BertModel"
VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {"alum_start_fraction": 1.0},
    "alum K=1": {},
    "alum K=2": {"alum_num_ascent_steps": 2},
    "alum half of the batch": {"alum_batch_fraction": 0.5},
    "alum free": {"alum_ascent": "free"},
    "alum label": {"alum_ascent": "label"},
    "alum chunked head": {"alum_head_chunk_rows": 128},
    "alum recompute full": {"recompute_granularity": "full"},
    "standard recompute full": {"alum_start_fraction": 1.0, "recompute_granularity": "full"},
}
COLUMNS = ("step", "seconds", "ratio_to_standard", "ratio_to_stock", "peak_memory_mb", "device", "threads", "torch")


def main() -> None:
    """Run every variant in a process of its own, so that memory is its own too, and write the table."""
    arguments = _parse()
    names = [STOCK, *(name for name in VARIANTS if not arguments.only or any(word in name for word in arguments.only))]
    rows = []
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak = pool.apply(_run_variant, (arguments, name))
        rows.append((name, seconds, peak))
        print(f"{name:32}{seconds:8.3f} s {peak / 1e6:8.0f} MB", flush=True)
    _write(rows, Path(arguments.output) if arguments.output else None)


def _run_variant(arguments: argparse.Namespace, name: str) -> tuple[float, float]:
    """(seconds, bytes) of one row, on a process group of one."""
    from megatron_alum.parallel import initialize, seed_everything, shutdown

    groups = initialize(tensor_parallel_size=1, timeout_seconds=600)
    seed_everything(1234, groups)
    try:
        if name == STOCK:
            return _stock_step(arguments, groups)
        return _our_step(arguments, groups, VARIANTS[name])
    finally:
        shutdown()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", default="mini", help="preset of pretrain_bert_alum.py (default: mini)")
    parser.add_argument("--seq-length", type=int, default=128, help="tokens of a sequence (default: 128)")
    parser.add_argument("--micro-batch-size", type=int, default=16, help="sequences (default: 16)")
    parser.add_argument("--vocab-size", type=int, default=30_522, help="entries of the vocabulary (default: 30522)")
    parser.add_argument("--mask-rate", type=float, default=0.15, help="share of masked tokens (default: 0.15)")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="dropout of hidden states and attention (default: 0.1)"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the fastest counts (default: 5)")
    parser.add_argument("--only", nargs="*", default=[], help="variants whose name holds one of these words")
    parser.add_argument("--output", help="CSV file to write")
    return parser.parse_args()


def _config(arguments: argparse.Namespace, options: dict[str, Any]) -> RunConfig:
    values = {
        "data_path": ("random tokens",),
        "dry_run": True,
        "model_size": arguments.model_size,
        "seq_length": arguments.seq_length,
        "micro_batch_size": arguments.micro_batch_size,
        "global_batch_size": arguments.micro_batch_size,
        "train_iters": 10,
        "alum_start_fraction": 0.0,
        "hidden_dropout": arguments.dropout,
        "attention_dropout": arguments.dropout,
        "bf16": arguments.bf16,
    }
    return build_config(RunConfig, [{**values, **options}])


def _our_step(arguments: argparse.Namespace, groups: Any, options: dict[str, Any]) -> tuple[float, float]:
    """(seconds, bytes) of `train_step` with these options."""
    from megatron_alum.models import build_model
    from megatron_alum.training.ascents import build_objective
    from megatron_alum.training.control import Watch
    from megatron_alum.training.objective import MicroBatch
    from megatron_alum.training.optimizer import build_optimizer, wrap_data_parallel
    from megatron_alum.training.step import Trainable, train_step

    config = _config(arguments, options)

    def build() -> Callable[[], object]:
        network = build_model(
            config.model,
            vocab_size=arguments.vocab_size,
            groups=groups,
            dtype=getattr(torch, config.precision.dtype_name),
            recompute=config.compute.recompute_granularity,
        ).train()
        model = wrap_data_parallel(network, config)
        state = Trainable(config, model, build_optimizer(model, config), build_objective(network, config), Watch(0))
        micro = MicroBatch.load(_random_batch(arguments), config.alum, groups.device)
        return lambda: train_step(state, [micro], micro.counts, 2)

    return _measure(build, arguments.steps)


def _stock_step(arguments: argparse.Namespace, groups: Any) -> tuple[float, float]:
    """(seconds, bytes) of megatron-core's own BertModel: local layer spec, loss on all positions, same optimizer."""
    from megatron.core.distributed.finalize_model_grads import finalize_model_grads
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel

    from megatron_alum.models.build import padded_vocab_size, transformer_config
    from megatron_alum.training.optimizer import apply_gradients, build_optimizer, wrap_data_parallel

    config = _config(arguments, {})
    dtype = getattr(torch, config.precision.dtype_name)

    def build() -> Callable[[], object]:
        network = BertModel(
            config=transformer_config(config.model, groups=groups, dtype=dtype),
            num_tokentypes=2,
            transformer_layer_spec=bert_layer_local_spec,
            vocab_size=padded_vocab_size(arguments.vocab_size, 128, 1),
            max_sequence_length=arguments.seq_length,
        ).to(groups.device, dtype)
        model = wrap_data_parallel(network.train(), config)  # type: ignore[arg-type]
        optimizer = build_optimizer(model, config)
        batch = _random_batch(arguments).to(groups.device)
        labels, weights = batch.tokens.clone(), torch.zeros_like(batch.tokens, dtype=torch.float32)
        labels.view(-1)[batch.masked_positions] = batch.masked_labels
        weights.view(-1)[batch.masked_positions] = 1.0 / batch.num_masked_tokens

        def step() -> None:
            model.zero_grad_buffer()
            losses, binary = network(
                batch.tokens, batch.padding_mask.long(), tokentype_ids=batch.token_types, lm_labels=labels
            )
            nsp = torch.nn.functional.cross_entropy(binary.float(), batch.nsp_labels)
            ((losses.float() * weights).sum() + nsp).backward()
            finalize_model_grads([model])
            apply_gradients(optimizer, clip_grad=1.0)

        return step

    return _measure(build, arguments.steps)


def _random_batch(arguments: argparse.Namespace) -> Any:
    """Random tokens without padding."""
    from megatron_alum.data.batch import PretrainingBatch

    generator = torch.Generator().manual_seed(0)
    shape = (arguments.micro_batch_size, arguments.seq_length)
    num_tokens = shape[0] * shape[1]
    masked = torch.randperm(num_tokens, generator=generator)[: int(arguments.mask_rate * num_tokens)].sort().values
    draw = lambda *size: torch.randint(5, arguments.vocab_size, size, generator=generator)  # noqa: E731
    return PretrainingBatch(
        tokens=draw(*shape),
        token_types=(torch.arange(shape[1]) > shape[1] // 2).long().expand(shape).contiguous(),
        padding_mask=torch.ones(shape, dtype=torch.bool),
        masked_positions=masked,
        masked_labels=draw(len(masked)),
        nsp_labels=torch.arange(shape[0]) % 2,
        sample_index=torch.arange(shape[0]),
    )


def _measure(build: Callable[[], Callable[[], object]], steps: int) -> tuple[float, float]:
    """Fastest of `steps` after one to warm up, and the peak memory above that before `build`."""
    gc.collect()
    with _PeakMemory() as memory:
        step = build()
        seconds = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:]), memory.bytes


class _PeakMemory:
    """Largest memory above that at the start: allocated on the GPU, or resident, asked every 5 ms."""

    def __enter__(self) -> "_PeakMemory":
        self.bytes, self._done = 0.0, threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        import psutil

        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            self.bytes = float(torch.cuda.max_memory_allocated() - self._before)
            return
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, float(self._process.memory_info().rss - self._before))


def _write(rows: list[tuple[str, float, float]], output: Path | None) -> None:
    """Ratios to our standard step and to the stock step, to stdout and to `output`."""
    seconds = {name: value for name, value, _ in rows}
    stock, standard = seconds[STOCK], seconds.get("standard")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    table = [
        {
            "step": name,
            "seconds": f"{value:.4f}",
            "ratio_to_standard": f"{value / standard:.2f}" if standard else "",
            "ratio_to_stock": f"{value / stock:.2f}",
            "peak_memory_mb": f"{peak / 1e6:.0f}",
            "device": where,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        for name, value, peak in rows
    ]
    if output is not None:
        with output.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)


if __name__ == "__main__":
    main_guard(main)
