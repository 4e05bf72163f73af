"""Time of whole training steps against stock megatron-core's BertModel, in one run on one machine.

    python -m benchmarks.bench_step --data PREFIX                     4 layers of 256 on real text, rows of 128
    python -m benchmarks.bench_step --data PREFIX --seq-length 512    benchmarks/results/step_text_512.csv
    python -m benchmarks.bench_step --model-size base --seq-length 512 --micro-batch-size 64 --bf16 --only "K=1"

Every row is a forward, backward and optimizer step on one micro-batch per process, in a separate process: with --data
the first one that placement by length makes of a global batch of real text, else random tokens in full rows. Stock is
BertModel with its local layer spec, as megatron-core ships it, on the same samples as padded rows: logits on all
positions, its own attention, dropout and cross-entropy, on a GPU with its compiled fusions; wrapped and stepped like
ours. The rows take turns --rounds times, since a machine may be slow for minutes, and the fastest counts. The two rows
of data parallelism use one thread per process. Memory is the peak above that before the model was built; tflops counts
our matrix products, by the formula of megatron_alum/planning/flops.py.
"""

import argparse
import csv
import gc
import importlib.util
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import torch
from torch.distributed import TCPStore

from benchmarks.batches import one_micro_batch, padded_rows
from megatron_alum.config.cli import build_config, main_guard
from megatron_alum.config.run import RunConfig
from megatron_alum.report.machine import current_commit, processor_name

STOCK = "stock megatron-core BertModel"


@dataclass(frozen=True)
class Variant:
    """What a row runs."""

    options: dict[str, Any]
    """of the configuration; unused by stock"""
    is_stock: bool = False
    processes: int = 1
    threads: int | None = None
    """of a process; None = torch's default"""


STANDARD = {"alum_start_fraction": 1.0}
VARIANTS = {
    STOCK: Variant({}, is_stock=True),
    "standard": Variant(STANDARD),
    "alum K=1": Variant({}),
    "alum K=2": Variant({"alum_num_ascent_steps": 2}),
    "alum K=0": Variant({"alum_num_ascent_steps": 0}),
    "alum late layer": Variant({"alum_perturb": "layer", "alum_perturb_layer": "half"}),
    "alum half of the batch": Variant({"alum_batch_fraction": 0.5}),
    "alum label": Variant({"alum_ascent": "label"}),
    "alum chunked head": Variant({"alum_head_chunk_rows": 128}),
    "alum recompute full": Variant({"recompute_granularity": "full"}),
    "standard recompute full": Variant({**STANDARD, "recompute_granularity": "full"}),
    "standard, 1 process": Variant(STANDARD, threads=1),
    "standard, 2 processes": Variant(STANDARD, processes=2, threads=1),
}
COLUMNS = (
    *("step", "seconds", "samples_per_second", "tokens_per_second", "tflops", "ratio_to_standard", "ratio_to_stock"),
    *("peak_memory_mb", "estimated_memory_mb"),
    *("seq_length", "fill", "processes", "threads", "device", "torch", "commit"),
)


class Measured(NamedTuple):
    """One row's figures; the faster row compares as smaller."""

    seconds: float
    bytes: float
    threads: int
    tflops: float | None
    fill: float
    """real tokens over those of padded rows"""
    estimate: float | None = None
    """bytes, by megatron_alum/planning/memory.py; None of stock"""


def main() -> None:
    """Run every variant, then write the table."""
    arguments = parse_arguments()
    rows: dict[str, Measured] = {}
    failed: set[str] = set()
    for name in chosen(arguments.only) * arguments.rounds:
        if name in failed:
            continue
        try:
            row = run_variant(arguments, VARIANTS[name])
        except Exception as error:  # the other rows are still useful
            print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed.add(name)
            continue
        rows[name] = min(rows.get(name, row), row)
        print(f"{name:44}{row.seconds:8.3f} s {row.bytes / 1e6:8.0f} MB", flush=True)
        if arguments.output:  # after each row: a run that is stopped keeps what it has
            with open(arguments.output, "w", newline="", encoding="utf-8") as stream:
                write(rows, arguments, stream)
    write(rows, arguments, sys.stdout)
    if failed:
        sys.exit(1)


def chosen(words: list[str]) -> list[str]:
    """Stock, and the variants whose name is, or contains, one of `words`; all if there are no words."""
    one_process_only = torch.cuda.is_available()  # the rows of data parallelism need a device per process
    possible = [name for name, variant in VARIANTS.items() if variant.threads is None or not one_process_only]

    def is_meant(name: str) -> bool:
        return any(name == word if word in VARIANTS else word in name for word in words)

    return [name for name in possible if name == STOCK or not words or is_meant(name)]


def run_variant(arguments: argparse.Namespace, variant: Variant) -> Measured:
    """One row, measured by the first of its processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on a port that the system chooses
    meeting_point = {}
    if variant.processes > 1:
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        meeting_point["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the processes join this store, none opens its own
    jobs = [(arguments, variant, rank, meeting_point) for rank in range(variant.processes)]
    with multiprocessing.get_context("spawn").Pool(variant.processes) as pool:
        return pool.starmap(_rank_of_variant, jobs, chunksize=1)[0]


def _rank_of_variant(
    arguments: argparse.Namespace, variant: Variant, rank: int, meeting_point: dict[str, str]
) -> Measured:
    """One process of a row."""
    size = str(variant.processes)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({**place, **meeting_point})
    if variant.threads is not None:
        torch.set_num_threads(variant.threads)
    from megatron_alum.objective.schedule import phase_of
    from megatron_alum.parallel import initialize, seed_everything, shutdown
    from megatron_alum.planning.flops import TextSize, iteration_flops
    from megatron_alum.planning.memory import estimate_memory

    groups = initialize(tensor_parallel_size=1, timeout_seconds=600)
    seed_everything(1234, groups)
    config = configuration(arguments, variant)
    batches = one_micro_batch(arguments, config)
    build = _stock_step if variant.is_stock else our_step
    try:
        seconds, peak = measure(lambda: build(arguments, config, groups, batches), arguments.steps)
    finally:
        shutdown()
    text = TextSize.of(batches.counts, sequences=batches.micro_batches[0].num_sequences)
    flops = iteration_flops(config, phase_of(2, config), text, vocab_size=arguments.vocab_size)
    tflops = None if variant.is_stock else flops / seconds / 1e12
    fill = text.tokens / (text.sequences * arguments.seq_length)
    estimate = None
    if not variant.is_stock:
        place = {"world_size": variant.processes, "on_gpu": groups.device.type == "cuda"}
        whole = text.scaled(variant.processes)  # of the global batch
        memory = estimate_memory(config, phase_of(2, config), vocab_size=arguments.vocab_size, text=whole, **place)
        estimate = memory.total
    return Measured(seconds, peak, torch.get_num_threads(), tflops, fill, estimate)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line above; `words` in place of this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="prefix of preprocessed shards (default: random tokens, full rows)")
    parser.add_argument("--model-size", default="mini", help="preset of pretrain_bert_alum.py (default: mini)")
    parser.add_argument("--seq-length", type=int, default=128, help="tokens of a sequence (default: 128)")
    parser.add_argument("--micro-batch-size", type=int, default=16, help="sequences (default: 16)")
    parser.add_argument("--vocab-size", type=int, default=30_522, help="entries of the vocabulary (default: 30522)")
    parser.add_argument("--mask-rate", type=float, default=0.15, help="share of masked tokens (default: 0.15)")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="dropout of hidden states and attention (default: 0.1)"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default: 5); see `measure`")
    parser.add_argument("--rounds", type=int, default=2, help="passes over all rows, the fastest counts (default: 2)")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="stock, and the variants whose name is, or contains, one of these words",
    )
    parser.add_argument("--output", help="CSV file to write")
    return parser.parse_args(words)


def configuration(arguments: argparse.Namespace, variant: Variant) -> RunConfig:
    """The configuration of the run whose step is measured."""
    values = {
        "data_path": (arguments.data or "random tokens",),
        "dry_run": True,
        "model_size": arguments.model_size,
        "seq_length": arguments.seq_length,
        "micro_batch_size": arguments.micro_batch_size,
        "global_batch_size": arguments.micro_batch_size * variant.processes,
        "train_iters": 10,
        "alum_start_fraction": 0.0,
        "hidden_dropout": arguments.dropout,
        "attention_dropout": arguments.dropout,
        "mask_rate_start": arguments.mask_rate,
        "mask_rate_end": arguments.mask_rate,
        "bf16": arguments.bf16,
    }
    options = dict(variant.options)
    if options.get("alum_perturb_layer") == "half":
        options["alum_perturb_layer"] = build_config(RunConfig, [values]).model.num_layers // 2
    return build_config(RunConfig, [{**values, **options}])


def our_step(arguments: argparse.Namespace, config: RunConfig, groups: Any, batches: Any) -> Callable[[], object]:
    """`train_step` on the micro-batch."""
    from megatron_alum.models import build_model
    from megatron_alum.objective.losses import Objective
    from megatron_alum.objective.micro_batch import load_all
    from megatron_alum.training.control import Watch
    from megatron_alum.training.optimizer import build_optimizer, wrap_data_parallel
    from megatron_alum.training.step import Trainable, train_step

    network = build_model(
        config.model,
        vocab_size=arguments.vocab_size,
        groups=groups,
        dtype=getattr(torch, config.precision.dtype_name),
        recompute=config.compute.recompute_granularity,
        torch_compile=config.compute.torch_compile,
    ).train()
    model = wrap_data_parallel(network, config)
    state = Trainable(config, model, build_optimizer(model, config), Objective(network, config), Watch(0))
    micro_batches = load_all(batches.micro_batches, config, groups.device, is_adversarial=True)
    return lambda: train_step(state, micro_batches, batches.counts, 2)


def _stock_step(arguments: argparse.Namespace, config: RunConfig, groups: Any, batches: Any) -> Callable[[], object]:
    """megatron-core's own BertModel with its local layer spec on padded rows, wrapper and optimizer as ours."""
    from megatron.core.distributed.finalize_model_grads import finalize_model_grads
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel

    from megatron_alum.models.build import padded_vocab_size, transformer_config
    from megatron_alum.training.optimizer import apply_gradients, build_optimizer, wrap_data_parallel

    dtype = getattr(torch, config.precision.dtype_name)
    stock_config = transformer_config(config.model, groups=groups, dtype=dtype)
    if groups.device.type == "cuda":  # as in Megatron-LM's own scripts; the softmax kernel is a separate package
        stock_config.bias_activation_fusion = stock_config.bias_dropout_fusion = True
        stock_config.masked_softmax_fusion = importlib.util.find_spec("scaled_masked_softmax_cuda") is not None
    network = BertModel(
        config=stock_config,
        num_tokentypes=2,
        transformer_layer_spec=bert_layer_local_spec,
        vocab_size=padded_vocab_size(arguments.vocab_size, 128, 1),
        max_sequence_length=arguments.seq_length,
    ).to(groups.device, dtype)
    _draw_weights(network)
    model = wrap_data_parallel(network.train(), config)
    optimizer = build_optimizer(model, config)
    batch = batches.micro_batches[0].to(groups.device)
    tokens, types, is_real, labels = padded_rows(batch, arguments.seq_length)
    weights = (labels >= 0).float() / batch.num_masked_tokens

    def step() -> None:
        model.zero_grad_buffer()
        losses, binary = network(tokens, is_real, tokentype_ids=types, lm_labels=labels.clamp(min=0))
        nsp = torch.nn.functional.cross_entropy(binary.float(), batch.nsp_labels)
        ((losses.float() * weights).sum() + nsp).backward()
        finalize_model_grads([model])
        apply_gradients(optimizer, clip_grad=1.0)

    return step


@torch.no_grad()
def _draw_weights(network: torch.nn.Module) -> None:
    """The configuration leaves drawing to `build_model`, which did not build this network."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def measure(build: Callable[[], Callable[[], object]], steps: int) -> tuple[float, float]:
    """(seconds of a step, peak memory above that before `build`).

    Seconds are the fastest of `steps` on a CPU, where other load only slows a step down; on a GPU `steps` are
    queued after each other, as training does, and their mean is the fastest of three such series. Two steps warm up.
    """
    gc.collect()
    has_gpu = torch.cuda.is_available()
    rounds, length = (3, steps) if has_gpu else (steps, 1)
    with _PeakMemory() as memory:
        step = build()
        seconds = [_series(step, count) for count in (1, 1, *[length] * rounds)]
    return min(seconds[2:]), memory.bytes


def _series(step: Callable[[], object], count: int) -> float:
    """Seconds of one of `count` steps."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


class _PeakMemory:
    """Largest memory above that at the start: allocated on the GPU, or resident, sampled every 5 ms."""

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


def write(rows: dict[str, Measured], arguments: argparse.Namespace, stream: TextIO) -> None:
    """The table with ratios to our standard step and to the stock step of this run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    table = []
    for name, row in rows.items():
        variant = VARIANTS[name]
        samples = arguments.micro_batch_size * variant.processes / row.seconds
        alike = variant.threads is None  # the others have fewer threads than the two they would be compared with
        table.append(
            {
                "step": name,
                "seconds": f"{row.seconds:.4f}",
                "samples_per_second": f"{samples:.1f}",
                "tokens_per_second": f"{samples * row.fill * arguments.seq_length:.0f}",
                "tflops": "" if row.tflops is None else f"{row.tflops * variant.processes:.3g}",
                "ratio_to_standard": _ratio(row, rows.get("standard")) if alike else "",
                "ratio_to_stock": _ratio(row, rows.get(STOCK)) if alike else "",
                "peak_memory_mb": f"{row.bytes / 1e6:.0f}",
                "estimated_memory_mb": "" if row.estimate is None else f"{row.estimate / 1e6:.0f}",
                "seq_length": arguments.seq_length,
                "fill": f"{row.fill:.2f}",
                "processes": variant.processes,
                "threads": row.threads,
                "device": device,
                "torch": torch.__version__,
                "commit": current_commit(),
            }
        )
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    stream.flush()


def _ratio(row: Measured, base: Measured | None) -> str:
    return "" if base is None else f"{row.seconds / base.seconds:.3f}"


if __name__ == "__main__":
    main_guard(main)
