"""The C++ sampler (module megatron_alum._data): same rows and same batches as the Python reference, bit for bit.

`choose_sampler` picks between them; with `auto` the reference serves where the extension is not built, and says so
once. Nothing of torch is known to the extension: batches are written into numpy arrays, which tensors then share.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
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


class BatchBuffers:
    """Memory of one batch of B samples, written by `NativeBatches.fill`; uninitialised at first."""

    def __init__(self, num_samples: int, seq_length: int) -> None:
        """The masked ones have room for every position; what is not written takes no memory."""
        self.tokens = np.empty((num_samples, seq_length), dtype=np.int64)
        self.token_types = np.empty((num_samples, seq_length), dtype=np.int64)
        self.padding_mask = np.empty((num_samples, seq_length), dtype=np.bool_)
        self.masked_positions = np.empty(num_samples * seq_length, dtype=np.int64)
        self.masked_labels = np.empty(num_samples * seq_length, dtype=np.int64)
        self.nsp_labels = np.empty(num_samples, dtype=np.int64)


class NativeBatches:
    """Batches of one split, assembled in C++; several threads may draw at once."""

    def __init__(
        self, shards: Sequence[ShardSamples], blend: Blend, *, settings: SampleSettings, special: SpecialTokens
    ) -> None:
        """Hand shards, blend and settings over; index rows follow as epochs are opened."""
        self._shards, self._settings = shards, settings
        self._known_epochs, self._extending = [0] * len(shards), threading.Lock()
        self._sampler = _data.Sampler(
            objective=settings.objective,
            seq_length=settings.seq_length,
            mask=_mask_settings(settings),
            vocabulary=_vocabulary(special),
            blend_shard=blend.shard,
            blend_rank=blend.rank,
            blend_counts=blend.counts,
        )
        for shard in shards:
            self._sampler.add_shard(shard.corpus.tokens, _table(shard.sentences))

    def batch(self, sample_indices: Sequence[int]) -> PretrainingBatch:
        """The samples with these global indices, in new tensors."""
        samples = np.array(sample_indices, dtype=np.int64)
        out = BatchBuffers(len(samples), self._settings.seq_length)
        num_masked = self.fill(samples, out)
        return PretrainingBatch(
            tokens=torch.from_numpy(out.tokens),
            token_types=torch.from_numpy(out.token_types),
            padding_mask=torch.from_numpy(out.padding_mask),
            masked_positions=torch.from_numpy(out.masked_positions[:num_masked]),
            masked_labels=torch.from_numpy(out.masked_labels[:num_masked]),
            nsp_labels=torch.from_numpy(out.nsp_labels),
            sample_index=torch.from_numpy(samples),
        )

    def fill(self, samples: npt.NDArray[np.int64], out: BatchBuffers) -> int:
        """Write the samples over `out` and return N, how many of its masked positions and labels are meant."""
        if self._sampler.shard_to_extend(samples) >= 0:
            with self._extending:
                while (number := self._sampler.shard_to_extend(samples)) >= 0:
                    self._extend(number)
        try:
            return self._sampler.fill(
                samples,
                tokens=out.tokens,
                token_types=out.token_types,
                padding_mask=out.padding_mask,
                masked_positions=out.masked_positions,
                masked_labels=out.masked_labels,
                nsp_labels=out.nsp_labels,
            )
        except RuntimeError as error:
            raise ValueError(str(error)) from None

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
        word_start=special.word_start.astype(np.uint8) | special.word_end.astype(np.uint8) << 1,
    )
