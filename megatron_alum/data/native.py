"""The C++ sampler (module megatron_alum._data): same rows and same batches as the Python reference, bit for bit.

`choose_sampler` picks between them; with `auto` the reference serves where the extension is not built, and says so
once. Nothing of torch is known to the extension: batches are written into the memory of freshly made tensors or of
buffers that the caller keeps.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch

from megatron_alum.data.batch import PretrainingBatch
from megatron_alum.data.blend import Blend
from megatron_alum.data.epochs import ShardSamples
from megatron_alum.data.masking import KEPT_BELOW, MASKED_BELOW, ngram_thresholds
from megatron_alum.data.objective import ROW, Sentences, WalkSettings
from megatron_alum.data.rng import threshold
from megatron_alum.data.sample_settings import SampleSettings, SpecialTokens

_data: Any = None
try:
    _data = importlib.import_module("megatron_alum._data")
except ImportError as error:
    _reason = str(error)

logger = logging.getLogger(__name__)


def choose_sampler(wish: str) -> str:
    """ "cpp" or "python" for a `--sampler` value.

    Raises: ValueError when cpp is asked for and the extension is not built.
    """
    if wish == "python" or _data is not None:
        return "cpp" if wish == "auto" else wish
    if wish == "cpp":
        raise ValueError(f"--sampler must be python or auto where the extension is not built ({_reason}). Build it.")
    _warn_once()
    return "python"


@cache
def _warn_once() -> None:
    logger.warning("Samples are drawn by the Python reference, about 50 times slower: %s.", _reason)


def walk_epoch(sentences: Sentences, walk: WalkSettings, *, num_threads: int = 1) -> np.ndarray:
    """All rows of one epoch, as `objective.walk_epoch` gives them."""
    options = asdict(walk)
    options["short_threshold"] = threshold(options.pop("short_seq_prob"))
    return _data.walk_epoch(_table(sentences), **options, num_threads=num_threads).view(ROW)


def _table(sentences: Sentences) -> Any:
    return _data.SentenceTable(
        lengths=sentences.lengths,
        offsets=sentences.offsets,
        bounds=sentences.bounds,
        first=sentences.first,
        last=sentences.last,
        token_bytes=sentences.token_bytes,
    )


class NativeBatches:
    """Batches of one split, assembled in C++. Calls must not overlap, and the object does not survive a fork."""

    def __init__(
        self,
        shards: Sequence[ShardSamples],
        blend: Blend,
        *,
        settings: SampleSettings,
        special: SpecialTokens,
        num_threads: int,
    ) -> None:
        """Hand shards, blend and settings over; index rows follow as epochs are opened."""
        self._shards, self._settings = shards, settings
        self._known_epochs = [0] * len(shards)
        self._sampler = _data.Sampler(
            objective=settings.objective,
            seq_length=settings.seq_length,
            mask=_mask_settings(settings),
            vocabulary=_vocabulary(special),
            blend_shard=blend.shard,
            blend_rank=blend.rank,
            blend_counts=blend.counts,
            num_threads=num_threads,
        )
        for shard in shards:
            self._sampler.add_shard(shard.corpus.tokens, _table(shard.sentences))

    def batch(self, sample_indices: Sequence[int], buffers: PretrainingBatch | None = None) -> PretrainingBatch:
        """The samples with these global indices; into new tensors, or over `buffers` (see `empty_batch`)."""
        samples = np.array(sample_indices, dtype=np.int64)
        while (number := self._sampler.shard_to_extend(samples)) >= 0:
            self._extend(number)
        out = buffers or empty_batch(len(samples), self._settings.seq_length)
        try:
            num_masked = self._sampler.fill(
                samples,
                tokens=out.tokens.numpy(),
                token_types=out.token_types.numpy(),
                padding_mask=out.padding_mask.numpy(),
                masked_positions=out.masked_positions.numpy(),
                masked_labels=out.masked_labels.numpy(),
                nsp_labels=out.nsp_labels.numpy(),
            )
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return PretrainingBatch(
            tokens=out.tokens,
            token_types=out.token_types,
            padding_mask=out.padding_mask,
            masked_positions=out.masked_positions[:num_masked],
            masked_labels=out.masked_labels[:num_masked],
            nsp_labels=out.nsp_labels,
            sample_index=torch.from_numpy(samples),
        )

    def _extend(self, number: int) -> None:
        shard, known = self._shards[number], self._known_epochs[number]
        if known == len(shard.epochs):
            shard.open_through(shard.epochs[-1].end_sample if shard.epochs else 0)
        epoch = shard.epochs[known]
        self._sampler.add_epoch(
            number,
            epoch.rows,
            first_sample=epoch.first_sample,
            seed=self._settings.seed,
            domain=epoch.order.domain,
        )
        self._known_epochs[number] = known + 1


def empty_batch(num_samples: int, seq_length: int) -> PretrainingBatch:
    """Uninitialised tensors for `NativeBatches.batch`; the masked ones have room for every position."""
    room = num_samples * seq_length
    return PretrainingBatch(
        tokens=torch.empty((num_samples, seq_length), dtype=torch.int64),
        token_types=torch.empty((num_samples, seq_length), dtype=torch.int64),
        padding_mask=torch.empty((num_samples, seq_length), dtype=torch.bool),
        masked_positions=torch.empty(room, dtype=torch.int64),
        masked_labels=torch.empty(room, dtype=torch.int64),
        nsp_labels=torch.empty(num_samples, dtype=torch.int64),
        sample_index=torch.empty(num_samples, dtype=torch.int64),
    )


def _mask_settings(settings: SampleSettings) -> Any:
    held_out = settings.split != "train"
    return _data.MaskSettings(
        masking=settings.masking,
        ngram_thresholds=ngram_thresholds(settings.max_ngram) if settings.masking == "ngram" else [],
        rates=[settings.mask_rate(0)] if held_out else list(settings.mask_rates),
        train_samples=settings.train_samples,
        seed=settings.seed,
        split=settings.split_number,
        masked_below=MASKED_BELOW,
        kept_below=KEPT_BELOW,
    )


def _vocabulary(special: SpecialTokens) -> Any:
    return _data.Vocabulary(
        cls=special.cls,
        sep=special.sep,
        mask=special.mask,
        pad=special.pad,
        pair_separators=special.pair_separators,
        second_type=special.second_type,
        regular=special.regular,
        word_start=special.word_start.astype(np.uint8),
    )
