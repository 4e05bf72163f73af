"""--overlap-param-gather: the distributed optimizer's new weights are gathered while the next forward pass begins.

    step of the optimizer -> start(model)            all buckets, those that the forward pass reads first at the front
    next iteration        -> wait_for_tables         the embedding's, which are read without a call of their modules
                             hooks of the modules    each waits for its own weights
    anything else that reads weights -> wait_for_all

megatron-core's own hooks cannot be used here: they refuse frozen parameters, which the ascent has, and know nothing of
weights that are read outside of their module's call.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron.core.distributed import DistributedDataParallel
from torch import nn

from megatron_alum.models import SplitBert


def wait_in_modules(model: DistributedDataParallel, network: SplitBert) -> None:
    """Let every module of `network`, which `model` wraps, wait for its weights when it is called."""
    model.disable_forward_pre_hook(param_sync=False)
    for module in network.modules():
        read = list(module.parameters(recurse=False))
        if module is network.lm_head:
            read += network.output_layer.parameters()  # the decoder's, which is no call of a module
        if read:
            module.register_forward_pre_hook(lambda *_, read=read: _wait(model, read))


def start(model: DistributedDataParallel) -> None:
    """Begin to gather all weights, if the run does so in the background. Collective over the data-parallel group."""
    if model.ddp_config.overlap_param_gather:
        for group in reversed(model.bucket_groups):  # they are made in the order of the backward pass
            group.start_param_sync()


def wait_for_tables(model: DistributedDataParallel) -> None:
    """Wait for the weights of the embedding: to be called before a training pass."""
    if model.ddp_config.overlap_param_gather:
        _wait(model, model.module.embedding.parameters())


def wait_for_all(model: DistributedDataParallel) -> None:
    """Wait for all weights: to be called before anything but a training pass reads them."""
    if model.ddp_config.overlap_param_gather:
        _wait(model, model.module.parameters())


def _wait(model: DistributedDataParallel, parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        group = model.param_to_bucket_group[parameter]
        if group.param_gather_handle is not None:
            group.finish_param_sync(skip_next_bucket_dispatch=True)
