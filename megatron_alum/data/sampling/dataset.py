"""Pre-training samples by global index: the door through which training, evaluation and the inspect tool take batches.

    datasets = open_datasets(config.data, model_type="bert", seq_length=512, train_samples=iters * batch, seed=1234)
    batch = datasets.train.batch([0, 1, 2, 3])

A sample is a function of (seed, split, global sample index) and the shards, nothing else: any rank, thread or resumed
run that asks for sample g gets the same bytes. Sample g -> shard of the blend -> epoch and row -> text -> mask.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_alum.config.data import DataConfig
from megatron_alum.data.sampling.batch import DEFAULT_TOKEN_MULTIPLE, IGNORED_LABEL, PretrainingBatch, rounded_up
from megatron_alum.data.sampling.blend import Blend, parse_data_path
from megatron_alum.data.sampling.epochs import ShardSamples
from megatron_alum.data.sampling.masking import num_to_mask
from megatron_alum.data.sampling.native import NativeBatches, choose_sampler
from megatron_alum.data.sampling.native import walk_epoch as native_walk_epoch
from megatron_alum.data.sampling.pairs import Row, WalkSettings, walk_epoch
from megatron_alum.data.sampling.placement import Sizes
from megatron_alum.data.sampling.sample import Sample, Text, build_sample, row_ranges
from megatron_alum.data.sampling.settings import SampleSettings, SpecialTokens
from megatron_alum.data.shards.corpus import SPLITS, Corpus
from megatron_alum.data.shards.files import open_shards
from megatron_alum.data.shards.statistics import without_pairs
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


class PretrainingDataset:
    """All samples of one split of a blend of shards."""

    def __init__(
        self,
        shards: Sequence[ShardSamples],
        blend: Blend,
        *,
        settings: SampleSettings,
        special: SpecialTokens,
        native: bool = False,
    ) -> None:
        """`shards` and `blend` have the same order; `settings.split` is the split the shards were cut to.

        Batches come from the C++ sampler if `native`, else from the Python reference; several threads may draw at once.
        """
        assert shards and len(shards) == len(blend.counts)
        self.shards, self.blend, self.settings, self.special = list(shards), blend, settings, special
        self.native = NativeBatches(self.shards, blend, settings=settings, special=special) if native else None

    @property
    def has_pairs(self) -> bool:
        """Whether samples are two texts with a sentence-pair label."""
        return self.settings.objective != "none"

    def batch(
        self, sample_indices: Sequence[int], *, num_adversarial: int = 0, multiple: int = DEFAULT_TOKEN_MULTIPLE
    ) -> PretrainingBatch:
        """The samples with these global indices, as one micro-batch in their order.

        The first `num_adversarial` of them are marked for the adversarial branch; T is a multiple of `multiple`.

        Raises: ValueError for an index or text that is damaged on disk.
        """
        if not self.native:
            samples = [self.sample(g) for g in sample_indices]
            return collate(samples, self, sample_indices, num_adversarial=num_adversarial, multiple=multiple)
        try:
            return self.native.batch(sample_indices, num_adversarial=num_adversarial, multiple=multiple)
        except IndexError:
            self._name_damage(sample_indices)
            raise

    def measure(self, sample_indices: Sequence[int]) -> Sizes:
        """int64 ([n], [n]): tokens (special ones included) and masked tokens of each sample, as `batch` builds it.

        Both follow from the index rows. Only where words are masked whole the text is read too: how many tokens fit
        depends on the words.
        """
        if not self.native:
            sizes = [self._measure_one(g) for g in sample_indices]
            lengths, masked = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
            return lengths, masked
        try:
            return self.native.measure(sample_indices)
        except IndexError:
            self._name_damage(sample_indices)
            raise

    def sample(self, sample_index: int) -> Sample:
        """One sample, assembled and masked by the Python reference."""
        return build_sample(
            self.texts(sample_index),
            sample_index=sample_index,
            paired=self.has_pairs,
            settings=self.settings,
            special=self.special,
        )

    def texts(self, sample_index: int) -> list[Text]:
        """The token ids of A and B, or of the stretches of text between document ends."""
        shard, row = self.row(sample_index)
        ranges = row_ranges(row, shard.sentences, paired=self.has_pairs)
        return [shard.corpus.text(begin, end, vocab_size=self.special.vocab_size) for begin, end in ranges]

    def row(self, sample_index: int) -> tuple[ShardSamples, Row]:
        """(shard, index row) of a global sample index."""
        number, local = self.blend.locate(sample_index)
        return self.shards[number], self.shards[number].row(local)

    def label(self, sample_index: int) -> int:
        """Label of the sentence-pair question; -100 where the objective has none."""
        return self.row(sample_index)[1][4] if self.has_pairs else IGNORED_LABEL

    def _measure_one(self, sample_index: int) -> tuple[int, int]:
        if self.settings.masking != "token":
            sample = self.sample(sample_index)
            return len(sample.tokens), len(sample.masked)
        _, _, a_length, b_length, _ = self.row(sample_index)[1]
        length = a_length + b_length + self.special.num_special(self.settings.objective)
        candidates = a_length + b_length if self.has_pairs else a_length
        return length, num_to_mask(length, self.settings.mask_rate(sample_index), candidates)

    def _name_damage(self, sample_indices: Sequence[int]) -> None:
        """Raise the reference's error for the first of these samples whose text has an id outside the vocabulary."""
        for sample_index in sample_indices:
            self.texts(sample_index)

    def samples_per_epoch(self) -> list[int]:
        """Samples of the first epoch of each shard; builds its index if need be."""
        for shard in self.shards:
            shard.open_through(0)
        return [len(shard.epochs[0].rows) for shard in self.shards]


def collate(
    samples: Sequence[Sample],
    dataset: PretrainingDataset,
    indices: Sequence[int],
    *,
    num_adversarial: int,
    multiple: int,
) -> PretrainingBatch:
    """Lay samples back to back, with a tail up to a multiple of `multiple` tokens."""
    lengths = [len(sample.tokens) for sample in samples]
    starts = np.cumsum([0, *lengths])
    tail = rounded_up(int(starts[-1]), multiple) - int(starts[-1])

    def row(parts: Sequence[np.ndarray], filler: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([*parts, np.full(tail, filler)]).astype(np.int64))

    masked = [int(starts[b]) + place for b, sample in enumerate(samples) for place in sample.masked]
    labels = [label for sample in samples for label in sample.labels]
    return PretrainingBatch(
        tokens=row([sample.tokens for sample in samples], dataset.special.pad),
        token_types=row([sample.token_types for sample in samples], 0),
        position=row([np.arange(length) for length in lengths], 0),
        sequence=row([np.full(length, b) for b, length in enumerate(lengths)], len(samples)),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        masked_positions=torch.tensor(masked, dtype=torch.int64),
        masked_labels=torch.tensor(labels, dtype=torch.int64),
        nsp_labels=torch.tensor([dataset.label(g) for g in indices], dtype=torch.int64),
        sample_index=torch.tensor(list(indices), dtype=torch.int64),
        lengths=tuple(lengths),
        masked_counts=tuple(len(sample.masked) for sample in samples),
        pad_token=dataset.special.pad,
        num_adversarial=num_adversarial,
    )


@dataclass(frozen=True)
class Datasets:
    """The splits of a run; None where a split has too few documents or no share."""

    train: PretrainingDataset
    valid: PretrainingDataset | None
    test: PretrainingDataset | None
    tokenizer: Any
    """Hugging Face fast tokenizer that made the ids"""
    tokenizer_dir: Path
    """its folder, copied beside every checkpoint"""

    @property
    def vocab_size(self) -> int:
        """V, unpadded."""
        return self.train.special.vocab_size


def open_datasets(config: DataConfig, *, model_type: str, seq_length: int, train_samples: int, seed: int) -> Datasets:
    """Open the shards of `config.data_path` and cut them into training, validation and test samples.

    Args:
        config: data options.
        model_type: decides `objective = auto` and the layout of pairs (`roberta` or not).
        seq_length: S, special tokens included.
        train_samples: iterations x global batch size of the whole run, over which the mask rate rises.
        seed: the run's seed.

    Raises: ValueError for missing or damaged shards, shards of different tokenizers, and a training split that cannot
        serve the objective (NSP needs another document to draw from).
    """
    prefixes, weights = parse_data_path(config.data_path)
    shards = [open_shards(prefix) for prefix in prefixes]
    tokenizers = [load_tokenizer(shard.tokenizer_dir) for shard in shards]
    for prefix, tokenizer in zip(prefixes, tokenizers, strict=True):
        if tokenizer.get_vocab() != tokenizers[0].get_vocab():
            raise ValueError(
                f"--data-path must name shards of one tokenizer, but the vocabulary of {prefix} is not that of "
                f"{prefixes[0]}. Preprocess all of them with one tokenizer folder."
            )
    settings = SampleSettings(
        objective=config.objective_for(model_type),  # type: ignore[arg-type]
        seq_length=seq_length,
        seed=seed,
        train_samples=train_samples,
        mask_rates=config.mask_rates,
        masking=config.masking,
        max_ngram=config.max_ngram,
        short_seq_prob=config.short_seq_prob,
    )
    corpora = [Corpus.open(prefix, shard.index) for prefix, shard in zip(prefixes, shards, strict=True)]
    if settings.objective != "none":
        for corpus in corpora:
            if warning := without_pairs(corpus.index, corpus.prefix):
                logger.warning("%s", warning)
    special = SpecialTokens.from_tokenizer(tokenizers[0], roberta=model_type == "roberta", masking=config.masking)
    splits = {}
    for split in SPLITS:
        own = replace(settings, split=split)  # type: ignore[arg-type]
        splits[split] = open_split(corpora, config, settings=own, special=special, weights=weights)
    if splits["train"] is None:
        raise ValueError("--split must leave documents for training, but leaves none. Raise its first number.")
    return Datasets(splits["train"], splits["valid"], splits["test"], tokenizers[0], shards[0].tokenizer_dir)


def open_split(
    corpora: Sequence[Corpus],
    config: DataConfig,
    *,
    settings: SampleSettings,
    special: SpecialTokens,
    weights: Sequence[float] | None,
) -> PretrainingDataset | None:
    """The samples of `settings.split`, or None when no shard has documents for it."""
    folder = Path(config.data_cache_path) if config.data_cache_path else None
    native = choose_sampler(config.sampler) == "cpp"
    walk_all = partial(native_walk_epoch, num_threads=config.sampler_threads) if native else walk_epoch
    members = []
    for number, corpus in enumerate(corpora):
        sentences = corpus.split(config.split_shares, settings.split)
        if not _can_serve(corpus, sentences.num_documents, settings):
            continue
        walk = WalkSettings(
            objective=settings.objective,
            max_tokens=settings.seq_length - special.num_special(settings.objective),
            short_seq_prob=settings.short_seq_prob,
            seed=settings.seed,
            dataset=number,
        )
        shard = ShardSamples(corpus, sentences, walk, split=settings.split_number, folder=folder, build=walk_all)
        members.append((shard, weights[number] if weights else float(shard.text_tokens())))
    if not members:
        return None
    blend = Blend.of([weight for _, weight in members])
    if settings.split == "train":
        for (shard, _), count in zip(members, blend.counts.tolist(), strict=True):
            shard.expect(-(-settings.train_samples * count // len(blend.shard)))
    return PretrainingDataset([shard for shard, _ in members], blend, settings=settings, special=special, native=native)


def _can_serve(corpus: Corpus, num_documents: int, settings: SampleSettings) -> bool:
    """Whether a split has documents enough; a training split with one document cannot have NSP and is refused."""
    if num_documents == 0:
        return False
    if settings.objective != "nsp" or num_documents > 1:
        return True
    if settings.split == "train":
        raise ValueError(
            f"{corpus.prefix} must have at least 2 documents in its training split for next-sentence prediction, but "
            "has 1 instead. Preprocess more documents, change --split, or use --objective sop or none."
        )
    logger.warning("%s: no %s samples, since its split has 1 document and NSP needs 2.", corpus.prefix, settings.split)
    return False
