"""The C++ sampler (module megatron_alum._data): same rows and same batches as the Python reference, bit for bit.

`choose_sampler` picks between them; with `auto` the reference is used if the extension is not built, which is logged
once. The extension does not depend on torch: batches are written into numpy arrays, which tensors then share.
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

from megatron_alum.data.sampling.batch import DEFAULT_TOKEN_MULTIPLE, PretrainingBatch, rounded_up
from megatron_alum.data.sampling.blend import Blend
from megatron_alum.data.sampling.epochs import ShardSamples
from megatron_alum.data.sampling.masking import KEPT_BELOW, MASKED_BELOW, ngram_thresholds
from megatron_alum.data.sampling.pairs import ROW, WalkSettings
from megatron_alum.data.sampling.placement import Sizes
from megatron_alum.data.sampling.rng import threshold
from megatron_alum.data.sampling.settings import SampleSettings, SpecialTokens
from megatron_alum.data.shards.corpus import Sentences

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
        raise ValueError(f"--sampler must be python or auto when the extension is not built ({_reason}). Build it.")
    _warn_once()
    return "python"


@cache
def _warn_once() -> None:
    logger.warning("Samples are drawn by the Python reference, hundreds of times slower: %s.", _reason)


def walk_epoch(sentences: Sentences, walk: WalkSettings, *, num_threads: int = 1) -> np.ndarray:
    """All rows of one epoch, as `pairs.walk_epoch` gives them."""
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

    def __init__(self, num_samples: int, seq_length: int, *, multiple: int = DEFAULT_TOKEN_MULTIPLE) -> None:
        """Token rows have room for B full samples and their tail; pages that are not written take no memory."""
        room = num_samples * seq_length
        self.tokens, self.token_types, self.position, self.sequence = (
            np.empty(rounded_up(room, multiple), dtype=np.int64) for _ in range(4)
        )
        self.cu_seqlens = np.empty(num_samples + 1, dtype=np.int32)
        self.masked_positions, self.masked_labels = (np.empty(room, dtype=np.int64) for _ in range(2))
        self.masked_counts, self.nsp_labels = (np.empty(num_samples, dtype=np.int64) for _ in range(2))


class NativeBatches:
    """Batches of one split, assembled in C++; several threads may draw at once."""

    def __init__(
        self, shards: Sequence[ShardSamples], blend: Blend, *, settings: SampleSettings, special: SpecialTokens
    ) -> None:
        """Pass in shards, blend and settings; index rows follow as epochs are opened."""
        self._shards, self._settings, self._pad_token = shards, settings, special.pad
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

    def batch(self, sample_indices: Sequence[int], *, num_adversarial: int, multiple: int) -> PretrainingBatch:
        """The samples with these global indices, in new tensors.

        Raises: IndexError for a token id outside the vocabulary, ValueError for a damaged index row.
        """
        samples = np.array(sample_indices, dtype=np.int64)
        out = BatchBuffers(len(samples), self._settings.seq_length, multiple=multiple)
        num_tokens, num_masked = self.fill(samples, out, multiple=multiple)
        return PretrainingBatch(
            tokens=torch.from_numpy(out.tokens[:num_tokens]),
            token_types=torch.from_numpy(out.token_types[:num_tokens]),
            position=torch.from_numpy(out.position[:num_tokens]),
            sequence=torch.from_numpy(out.sequence[:num_tokens]),
            cu_seqlens=torch.from_numpy(out.cu_seqlens),
            masked_positions=torch.from_numpy(out.masked_positions[:num_masked]),
            masked_labels=torch.from_numpy(out.masked_labels[:num_masked]),
            nsp_labels=torch.from_numpy(out.nsp_labels),
            sample_index=torch.from_numpy(samples),
            lengths=tuple(np.diff(out.cu_seqlens).tolist()),
            masked_counts=tuple(out.masked_counts.tolist()),
            pad_token=self._pad_token,
            num_adversarial=num_adversarial,
        )

    def measure(self, sample_indices: Sequence[int]) -> Sizes:
        """int64 ([n], [n]): tokens and masked tokens of each sample; raises as `batch` does."""
        samples = np.array(sample_indices, dtype=np.int64)
        self._reach(samples)
        try:
            return self._sampler.measure(samples)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def fill(
        self, samples: npt.NDArray[np.int64], out: BatchBuffers, *, multiple: int = DEFAULT_TOKEN_MULTIPLE
    ) -> tuple[int, int]:
        """Write the samples into `out` and return (T, N): the used lengths of its rows and of its masked positions."""
        self._reach(samples)
        try:
            return self._sampler.fill(samples, multiple=multiple, **vars(out))
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def _reach(self, samples: npt.NDArray[np.int64]) -> None:
        """Open the epochs that the samples lie in."""
        if self._sampler.shard_to_extend(samples) >= 0:
            with self._extending:
                while (number := self._sampler.shard_to_extend(samples)) >= 0:
                    self._extend(number)

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
