"""The two steps that bench_step.py compares, ours and stock megatron-core's, and how their time and memory are
measured."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.batches import padded_rows
from megatron_alum.config.run import RunConfig


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


def stock_step(arguments: argparse.Namespace, config: RunConfig, groups: Any, batches: Any) -> Callable[[], object]:
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

    def __enter__(self) -> _PeakMemory:
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
