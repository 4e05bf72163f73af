"""Small checks on a GPU, one per process: python -m benchmarks.gpu.probes sync|graphs|attention|compile [--device D].

    sync        a training step of each phase never waits for the GPU once warmed up
    graphs      the ops captured into a CUDA graph give the same results as without, also for new inputs
    attention   the attention backends agree; with dropout their means and spreads do
    compile     a compiled layer is one graph, with the real kernel of the attention in it

On the CPU the same code runs without what a CPU lacks: the errors on waiting, and the capture.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from megatron_alum import ops

STEP = "--model-size mini --seq-length 128 --micro-batch-size 8 --vocab-size 30522".split()
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}
"""of attention in float32, and in bfloat16, whose numbers are known to 2^-9 and added in other orders"""
DRAWS = 400
"""of dropout"""


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """In the body whatever makes the host wait for the GPU raises a RuntimeError that names it."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sync(device: torch.device, words: list[str] | None = None) -> str:
    """Three ordinary steps of each phase, then one in which waiting is an error."""
    from benchmarks import bench_step
    from benchmarks.batches import one_micro_batch
    from megatron_alum.parallel import initialize, seed_everything, shutdown

    arguments = bench_step.parse_arguments(words or [*STEP, *(["--bf16"] if device.type == "cuda" else [])])
    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    seed_everything(1234, groups)
    assert groups.device.type == device.type, f"the run's device is {groups.device}, not {device}"
    try:
        for name in ("standard", "alum K=1", "alum late layer"):
            config = bench_step.configuration(arguments, bench_step.VARIANTS[name])
            step = bench_step.our_step(arguments, config, groups, one_micro_batch(arguments, config))
            for _ in range(3):
                step()
            with waiting_is_an_error(device):
                step()
            print(f"{name}: no wait", flush=True)
    finally:
        shutdown()
    return "three kinds of steps, none of which waits"


def compiled(device: torch.device, words: list[str] | None = None) -> str:
    """Two adversarial steps with --torch-compile."""
    from torch._dynamo.utils import counters

    from benchmarks import bench_step
    from benchmarks.batches import one_micro_batch
    from megatron_alum.parallel import initialize, seed_everything, shutdown

    arguments = bench_step.parse_arguments(words or [*STEP, *(["--bf16"] if device.type == "cuda" else [])])
    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    seed_everything(1234, groups)
    counters.clear()
    try:
        config = bench_step.configuration(arguments, bench_step.Variant({"torch_compile": True}))
        step = bench_step.our_step(arguments, config, groups, one_micro_batch(arguments, config))
        step(), step()
    finally:
        shutdown()
    breaks, graphs = dict(counters["graph_break"]), counters["stats"]["unique_graphs"]
    allowed = "PackedAttention.forward" if device.type == "cpu" else "none"
    assert all(allowed in where for where in breaks), f"a layer is divided: {breaks}"
    assert 1 <= graphs <= (20 if breaks else 4), f"{graphs} graphs for the layers of one step"
    return f"compile: {graphs} graphs for all layers, {len(breaks)} places that divide one"


def captured(function: Callable[[], list[Tensor]], device: torch.device) -> Callable[[], list[Tensor]]:
    """The function as a CUDA graph, which reads its inputs at their addresses at capture; on the CPU the function
    itself."""
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch's notes on graphs require: one-time set-up must not be captured
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()

    def replay() -> list[Tensor]:
        graph.replay()
        return results

    return replay


def graphs(device: torch.device) -> str:
    """Every fused op, forward and backward, in one graph; the inputs are overwritten before it is replayed."""
    count = 0
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        logits = [torch.randn(16, 3000, device=device).to(dtype).requires_grad_() for _ in range(2)]
        tokens = [torch.randn(16, 64, device=device) for _ in range(3)]
        labels, weight = torch.arange(16, device=device), torch.full((16,), 0.5, device=device)
        all_ops = partial(_all_ops, logits, tokens, labels, weight)
        play = captured(all_ops, device)
        with torch.no_grad():
            for tensor in (*logits, *tokens):
                tensor.copy_(torch.randn_like(tensor))
        for mine, plain in zip([tensor.clone() for tensor in play()], all_ops(), strict=True):
            assert torch.equal(mine, plain), f"{dtype}: a graph gives other results"
            count += 1
    return f"{count} results are the same from a graph"


def _all_ops(logits: list[Tensor], tokens: list[Tensor], labels: Tensor, weight: Tensor) -> list[Tensor]:
    moved = ops.perturb_embeddings(*tokens, step_size=0.1, epsilon=0.05)
    losses = ops.row_losses(*logits, labels, mlm_weight=weight, kl_weight=weight)
    rows = ops.row_losses(*logits, labels, detach_targets=False)
    total = 3.0 * (losses.mlm + losses.kl) + rows.kl.sum()
    return [*moved, total.detach(), *torch.autograd.grad(total, logits)]


def attention(device: torch.device, draws: int = DRAWS) -> str:
    """Without dropout: equal up to rounding. With it: the mean over many draws is the result without dropout, within
    five standard errors, and the spread is the same for all."""
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_alum.config.model import ModelConfig
    from megatron_alum.models.attention import PackedAttention
    from megatron_alum.models.build import transformer_config
    from megatron_alum.models.sequences import PackedSequences
    from megatron_alum.parallel import initialize, seed_everything, shutdown

    names = ["native", "jagged"] + (["flash"] if device.type == "cuda" and has_flash() else [])
    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    seed_everything(1234, groups)
    dtype, probability = torch.bfloat16 if device.type == "cuda" else torch.float32, 0.1
    sequences = PackedSequences((50, 7, 128, 33), 256, device)
    torch.manual_seed(0)
    query, key, value = (torch.randn(256, 4, 64, device=device, dtype=dtype) for _ in range(3))
    found: dict[str, Tensor] = {}
    try:
        for name in names:
            model = ModelConfig(num_layers=1, hidden_size=256, num_attention_heads=4, attention_dropout=probability)
            config = transformer_config(model, groups=groups, dtype=dtype)
            layer = PackedAttention(config, attn_mask_type=AttnMaskType.padding, backend=name)  # type: ignore[arg-type]
            call = lambda layer=layer: layer(query, key, value, None, packed_seq_params=sequences)[:218].float()  # noqa: E731
            with torch.no_grad():
                layer.eval()
                exact = call()
                layer.train()
                drawn = torch.stack([call() for _ in range(draws)])
            first = found.setdefault("exact", exact)
            assert (exact - first).abs().max() <= TOLERANCE[device.type] * first.abs().max(), name
            error = (drawn.mean(0) - exact) / (drawn.std(0) / draws**0.5 + TOLERANCE[device.type])
            assert error.square().mean() <= 1.5, (
                f"{name}: the mean with dropout is off by {error.abs().max():.1f} errors"
            )
            spread = drawn.std(0).mean()
            reference = found.setdefault("spread", spread)
            assert abs(spread / reference - 1) <= 0.05, f"{name}: spread {spread:.4f}, {names[0]} {reference:.4f}"
            print(f"{name}: spread with dropout {spread:.4f}", flush=True)
    finally:
        shutdown()
    return f"{', '.join(names)} agree"


def has_flash() -> bool:
    """Whether the flash-attn package is installed."""
    return importlib.util.find_spec("flash_attn") is not None


PROBES: dict[str, Callable[[torch.device], str]] = {
    "sync": sync,
    "graphs": graphs,
    "attention": attention,
    "compile": compiled,
}


def main(words: list[str] | None = None) -> None:
    """Run one check and print its result; a failed check raises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probe", choices=sorted(PROBES), help="the question")
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    arguments = parser.parse_args(words)
    print(PROBES[arguments.probe](torch.device(arguments.device)))


if __name__ == "__main__":
    sys.exit(main())
