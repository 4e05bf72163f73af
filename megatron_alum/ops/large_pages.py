"""Large new CPU tensors in pages of 2 MB: touching them for the first time takes a fraction of the time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_alum.ops import dispatch


def empty_in_large_pages(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised, with the dtype and device of `like`; in ordinary pages where the extension is not built, where
    malloc has memory at hand (below 32 MB), and on other devices.
    """
    out = like.new_empty(shape)
    if dispatch.load_extension() is None:
        torch.ops.megatron_alum.prefer_large_pages(out)
    return out
