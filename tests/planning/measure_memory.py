"""Measures a step's peak memory and its estimate: python -m tests.planning.measure_memory ARGUMENTS (of the run).

Prints {phase: [measured bytes, estimated bytes]} as JSON. Must be started with MALLOC_MMAP_THRESHOLD_=65536: glibc's
allocator otherwise keeps up to a quarter more in fragments, which no formula can predict.
"""

import gc
import json
import sys
import threading
import time
from functools import partial

import psutil

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.loader import draw
from megatron_alum.objective.micro_batch import batch_plan, load_all
from megatron_alum.parallel import initialize
from megatron_alum.planning.flops import TextSize
from megatron_alum.planning.memory import estimate_memory
from megatron_alum.training.state import build_state
from megatron_alum.training.step import train_step

SMALL = "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --micro-batch-size 2".split()  # same global batch


def steps_of(config, groups):
    """{phase: a function that takes one step}, on the last samples of the run, where most tokens are masked."""
    state = build_state(config, groups)
    last = config.training.train_iters
    first_sample = (last - 1) * config.training.global_batch_size
    drawn = draw(state.datasets.train, batch_plan(config, groups), first_sample)
    steps = {}
    for phase, iteration in (("standard", 1), ("alum", last)):
        micro_batches = load_all(drawn.micro_batches, config, groups.device, is_adversarial=phase == "alum")
        steps[phase] = partial(train_step, state, micro_batches, drawn.counts, iteration)
    return steps, state, TextSize.of(drawn.counts, sequences=config.training.global_batch_size)


def peak_of(process, action):
    """Largest resident memory while `action` runs."""
    peak, done = [0], threading.Event()

    def poll():
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=poll)
    thread.start()
    action()
    done.set()
    thread.join()
    return peak[0]


def main():
    """Load every library with a small network first, so that the difference is due to the network alone."""
    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    steps, state, _ = steps_of(parse_config(RunConfig, [*sys.argv[1:], *SMALL]), groups)
    for step in steps.values():
        step()
    del steps, state
    gc.collect()
    time.sleep(0.1)
    process = psutil.Process()
    before = process.memory_info().rss
    config = parse_config(RunConfig, sys.argv[1:])
    steps, state, text = steps_of(config, groups)
    found = {}
    for phase, step in steps.items():
        step()
        vocab = state.network.real_vocab_size
        estimate = estimate_memory(config, phase, vocab_size=vocab, world_size=1, on_gpu=False, text=text)
        found[phase] = [peak_of(process, step) - before, estimate.total]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
