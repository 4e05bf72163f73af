"""Runs a Hugging Face folder and the Megatron network side by side on one batch and compares what they predict.

The batch consists of random tokens but is otherwise like a real one: pairs of segments, rows of different length,
padding. Both models compute in float32 on this rank; predictions are compared on real tokens only, the KL in float64.
On the Megatron side the weights do not pass through the converter: megatron-core loads the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_alum.convert.hf_folder import HfFolder

if TYPE_CHECKING:
    from megatron_alum.config.model import ModelConfig
    from megatron_alum.models.bert import SplitBert
    from megatron_alum.models.inputs import ModelInputs

MAX_LOGIT_DIFFERENCE = 1e-4
"""Float32 rounding over twenty layers stays well below this; a wrong tensor layout is orders of magnitude above."""
BATCH_SIZE, MAX_LENGTH = 4, 64


@dataclass(frozen=True)
class Comparison:
    """Differences of two models on one batch; None if they do not both have the head."""

    hidden: float
    """Largest absolute difference of the encoder's last hidden states."""
    mlm: float | None
    """Largest absolute difference of MLM logits."""
    nsp: float | None
    """Largest absolute difference of NSP logits."""
    kl: float | None
    """Mean KL divergence of the MLM predictions, Hugging Face to Megatron, in nats per token."""

    def __str__(self) -> str:
        """One line for the terminal."""
        named = (("hidden states", self.hidden), ("MLM logits", self.mlm), ("NSP logits", self.nsp), ("KL", self.kl))
        return "largest difference of " + ", ".join(f"{name} {value:.2e}" for name, value in named if value is not None)

    def check(self) -> None:
        """Raises: ValueError when the two are not the same model in float32."""
        worst = max(value for value in (self.hidden, self.mlm, self.nsp) if value is not None)
        if not worst <= MAX_LOGIT_DIFFERENCE:
            raise ValueError(
                f"The two models must agree within {MAX_LOGIT_DIFFERENCE}, but differ by {worst:.2e} ({self}). "
                "Nothing was written."
            )


@dataclass(frozen=True)
class Batch:
    """tokens, types int64 [B, S]; mask bool [B, S], True = real token."""

    tokens: Tensor
    types: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return Batch(self.tokens.to(device), self.types.to(device), self.mask.to(device))


def probe_batch(config: ModelConfig, vocab_size: int, pad_token_id: int) -> Batch:
    """A batch of random pairs with the lengths S, S, S/2 and 3 (with less padding a wrong mask might go unnoticed)."""
    generator = torch.Generator().manual_seed(0)
    length = min(MAX_LENGTH, config.max_position_embeddings)
    tokens = torch.randint(0, vocab_size - 1, (BATCH_SIZE, length), generator=generator)
    tokens += tokens >= pad_token_id  # every token but the padding
    lengths = torch.tensor([length, length, max(3, length // 2), 3])
    mask = torch.arange(length) < lengths[:, None]
    types = (torch.arange(length) >= lengths[:, None] // 2) & mask
    types = types.long() if config.num_token_types > 1 else torch.zeros_like(tokens)
    return Batch(tokens.where(mask, pad_token_id), types, mask)


def without_padding(tokens: Tensor, types: Tensor, mask: Tensor, device: torch.device) -> ModelInputs:
    """Rows [B, S] on the CPU padded on the right, mask True = real token, in the form that the Megatron network reads
    on `device`: real tokens back to back, each of them predicted.
    """
    from megatron_alum.models import ModelInputs

    return ModelInputs.of(
        tokens=tokens[mask],
        token_types=types[mask],
        position=torch.arange(tokens.size(1)).expand(mask.shape)[mask],
        lengths=mask.sum(dim=1).tolist(),
        masked_positions=torch.arange(int(mask.sum())),
        device=device,
    )


@torch.no_grad()
def compare(hf_dir: Path, model: SplitBert) -> Comparison:
    """Run the folder and `model` (tensor-parallel size 1, float32) on a probe batch, on the device of `model`, which is
    left in eval mode.
    """
    import transformers

    hf_class = getattr(transformers, HfFolder(hf_dir).class_name)
    config = hf_class.config_class.from_pretrained(hf_dir)
    if config.pad_token_id is None:  # RoBERTa's positions begin after it
        config.pad_token_id = hf_class.config_class().pad_token_id
    device = next(model.parameters()).device
    hf = hf_class.from_pretrained(hf_dir, config=config, dtype=torch.float32, local_files_only=True).eval().to(device)
    batch = probe_batch(model.model_config, model.real_vocab_size, config.pad_token_id)
    inputs = without_padding(batch.tokens, batch.types, batch.mask, device)
    batch = batch.to(device)
    theirs = hf(
        input_ids=batch.tokens, attention_mask=batch.mask, token_type_ids=batch.types, output_hidden_states=True
    )
    model.eval()
    hidden = model.encode(model.embed(inputs), inputs)
    ours = model.heads(hidden, inputs)
    their_mlm = getattr(theirs, "prediction_logits", getattr(theirs, "logits", None))
    their_nsp = getattr(theirs, "seq_relationship_logits", None)
    last_hidden = getattr(theirs, "last_hidden_state", theirs.hidden_states[-1])
    return _differences(
        last_hidden[batch.mask],
        hidden.squeeze(1),
        None if their_mlm is None else (their_mlm[batch.mask], ours.mlm_logits[:, : model.real_vocab_size]),
        None if their_nsp is None or ours.nsp_logits is None else (their_nsp, ours.nsp_logits),
    )


def _differences(
    theirs: Tensor, ours: Tensor, mlm: tuple[Tensor, Tensor] | None, nsp: tuple[Tensor, Tensor] | None
) -> Comparison:
    """hidden [N, H] twice; (theirs, ours) MLM logits [N, V] and NSP logits [B, 2]."""
    kl = None
    if mlm is not None:
        p, q = (logits.double().log_softmax(-1) for logits in mlm)
        kl = float((p.exp() * (p - q)).sum(-1).mean())
    largest = [None if pair is None else float((pair[0] - pair[1]).abs().max()) for pair in (mlm, nsp)]
    return Comparison(float((theirs - ours).abs().max()), largest[0], largest[1], kl)


@contextmanager
def single_rank_model(config: ModelConfig, vocab_size: int) -> Iterator[SplitBert]:
    """A float32 network in a process group of one process, which is destroyed at the end."""
    from megatron_alum.models import build_model
    from megatron_alum.parallel.groups import initialize, seed_everything, shutdown

    groups = initialize(tensor_parallel_size=1)
    try:
        seed_everything(0, groups)
        yield build_model(config, vocab_size=vocab_size, groups=groups)
    finally:
        shutdown()
