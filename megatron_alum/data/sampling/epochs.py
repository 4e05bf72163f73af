"""One shard as an endless sequence of samples: epoch after epoch, each sample exactly once per epoch, in random order.

Epochs differ in size, since the pairs are drawn anew, so the place of a sample follows from the sizes of the epochs
before it; they are opened in order (from the cache where it has them). If the run will need it, the epoch after the
newest is built by a background thread while the newest is being read, so that no step waits for an index.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_alum.data.sampling.index import Rows, Walk, epoch_rows
from megatron_alum.data.sampling.pairs import Row, WalkSettings
from megatron_alum.data.sampling.rng import MAX_EPOCHS, Permutation, Stream, domain_word
from megatron_alum.data.shards.corpus import Corpus, Sentences


@dataclass(frozen=True, eq=False)
class Epoch:
    """The samples of one pass."""

    rows: Rows
    """structured array of `pairs.ROW`, in document order"""
    order: Permutation
    """sample of the epoch -> row"""
    first_sample: int
    """samples of this shard before the epoch"""

    @property
    def end_sample(self) -> int:
        """Samples of this shard up to the end of the epoch."""
        return self.first_sample + len(self.rows)


class ShardSamples:
    """Samples of one shard's split, numbered from 0 over all epochs."""

    def __init__(
        self, corpus: Corpus, sentences: Sentences, walk: WalkSettings, *, split: int, folder: Path | None, build: Walk
    ) -> None:
        """`walk` is that of epoch 0; nothing is built before the first sample is asked for, or before `expect`."""
        self.corpus, self.sentences, self.epochs = corpus, sentences, list[Epoch]()
        self._walk, self._split, self._folder, self._build = walk, split, folder, build
        self._ahead: Future[Rows] | None = None
        self._opening = threading.Lock()
        self._expected_samples = 0

    def expect(self, num_samples: int) -> None:
        """Announce how many samples the run will take, so that epochs can be built before they are needed."""
        self._expected_samples = num_samples

    def open_through(self, sample: int) -> None:
        """Open all epochs up to the one that holds `sample`; threads may ask at once."""
        with self._opening:
            while not self.epochs or sample >= self.epochs[-1].end_sample:
                self._open_next()

    def locate(self, sample: int) -> tuple[int, int]:
        """(epoch, row) of a sample of this shard."""
        self.open_through(sample)
        number = next(i for i in reversed(range(len(self.epochs))) if sample >= self.epochs[i].first_sample)
        epoch = self.epochs[number]
        return number, int(epoch.order[sample - epoch.first_sample])

    def row(self, sample: int) -> Row:
        """The index row of a sample of this shard."""
        number, row = self.locate(sample)
        return self.epochs[number].rows[row].item()

    def text_tokens(self) -> int:
        """Text tokens of the split, special tokens not counted."""
        bounds = self.sentences.bounds
        return self.sentences.num_tokens(int(bounds[self.sentences.first]), int(bounds[self.sentences.last]))

    def _open_next(self) -> None:
        number = len(self.epochs)
        if number >= MAX_EPOCHS:
            raise ValueError(
                f"The run must pass over {self.corpus.prefix} fewer than {MAX_EPOCHS} times, but needs more. "
                "Use more text or fewer iterations."
            )
        rows = self._ahead.result() if self._ahead else self._rows(number)
        self._ahead = None
        if not len(rows):
            raise ValueError(
                f"{self.corpus.prefix} must yield at least one sample per epoch, but yields none. Use more text."
            )
        first_sample = self.epochs[-1].end_sample if self.epochs else 0
        self.epochs.append(Epoch(rows, self._order(number, len(rows)), first_sample))
        if self.epochs[-1].end_sample < self._expected_samples and number + 1 < MAX_EPOCHS:
            self._build_ahead(number + 1)

    def _build_ahead(self, number: int) -> None:
        ahead: Future[Rows] = Future()

        def build() -> None:
            try:
                ahead.set_result(self._rows(number))
            except BaseException as error:  # raised where the epoch is opened
                ahead.set_exception(error)

        # A daemon thread, since the end of a run must not wait for an index that is no longer needed.
        threading.Thread(target=build, name="epoch-index", daemon=True).start()
        self._ahead = ahead

    def _rows(self, epoch: int) -> Rows:
        walk = replace(self._walk, epoch=epoch)
        return epoch_rows(self.corpus, self.sentences, walk, folder=self._folder, build=self._build)

    def _order(self, epoch: int, size: int) -> Permutation:
        domain = domain_word(Stream.PERMUTATION, split=self._split, dataset=self._walk.dataset, epoch=epoch)
        return Permutation(size, seed=self._walk.seed, domain=domain)
