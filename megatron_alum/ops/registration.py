"""What torch must know about the compiled ops besides their kernels: shapes without data (fake kernels) and
derivatives.

Runs as soon as dispatch has loaded the library; with it the ops trace under torch.compile and pass opcheck.
"""

from typing import Any

import torch
from torch import Tensor

from megatron_alum.ops import dispatch, row_autograd
from megatron_alum.reference import rows as reference
from megatron_alum.reference.rows import STATISTICS
from megatron_alum.reference.tokens import SUMS


def register() -> None:
    """Attaches fake kernels and autograd formulas; called once per process."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"megatron_alum::{name}", fake)
    torch.library.impl("megatron_alum::row_losses", ("cpu", "cuda"), _row_losses_of_records)
    torch.library.register_autograd(
        "megatron_alum::row_losses", _row_losses_backward, setup_context=row_autograd.setup_context
    )
    torch.library.register_autograd("megatron_alum::row_gradients", row_autograd.refuse_double_backward)


def _row_losses_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*row_autograd.backward(ctx, *grads), *[None] * 7)


def _row_statistics(clean: Tensor, adv: Tensor | None, labels: Tensor | None, *_: int) -> Tensor:
    return clean.new_empty(clean.shape[0], STATISTICS + (labels is not None), dtype=torch.float32)


def _merge_statistics(records: Tensor, one_sided: bool) -> Tensor:
    return records.new_empty(records.shape[1:])


def _row_losses_of_records(
    clean: Tensor, adv: Tensor | None, records: Tensor, labels: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    return reference.row_losses(records, labels)


def _row_losses(clean: Tensor, adv: Tensor | None, records: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return records.new_empty(records.shape[0]), records.new_empty(records.shape[0])


def _row_gradients(
    clean: Tensor, adv: Tensor | None, records: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_clean, need_adv = rest[-2:]
    grads = [clean.new_empty(clean.shape if need else [0]) for need in (need_clean, need_adv and adv is not None)]
    return _row_gradients_(clean, adv, records, *rest), grads[0], grads[1]


def _row_gradients_(
    clean: Tensor, adv: Tensor | None, records: Tensor | None, labels: Tensor | None, *_: Any
) -> Tensor:
    return _row_statistics(clean, adv, labels) if records is None else clean.new_empty(0, dtype=torch.float32)


def _scale_(values: Tensor, factor: Tensor) -> None:
    return None


def _perturb(
    x: Tensor | None, delta: Tensor | None, sample_index: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    model = next(tensor for tensor in (x, delta, sample_index) if tensor is not None)
    shape = (model.shape[0], rest[4]) if model is sample_index else model.shape
    moved, sums = (model.new_empty(size, dtype=torch.float32) for size in (shape, [SUMS]))
    return model.new_empty([0] if x is None else shape, dtype=rest[-1]), moved, sums


def _dropout(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    return x.new_empty(x.shape)


_FAKES: dict[str, Any] = {
    "row_statistics": _row_statistics,
    "merge_statistics": _merge_statistics,
    "row_losses": _row_losses,
    "row_gradients": _row_gradients,
    "row_gradients_": _row_gradients_,
    "scale_": _scale_,
    "perturb": _perturb,
    "dropout": _dropout,
}


dispatch.after_loading(register)
