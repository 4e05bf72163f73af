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
from megatron_alum.data.batch import IGNORED_LABEL, PretrainingBatch
from megatron_alum.data.blend import Blend, parse_data_path
from megatron_alum.data.corpus import Corpus
from megatron_alum.data.epochs import ShardSamples
from megatron_alum.data.native import NativeBatches, choose_sampler
from megatron_alum.data.native import walk_epoch as native_walk_epoch
from megatron_alum.data.objective import WalkSettings, walk_epoch
from megatron_alum.data.sample import Sample, build_sample, row_texts
from megatron_alum.data.sample_settings import SPLITS, SampleSettings, SpecialTokens
from megatron_alum.data.shards import open_shards
from megatron_alum.data.tokenizers import load_tokenizer

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

    def batch(self, sample_indices: Sequence[int]) -> PretrainingBatch:
        """The samples with these global indices, as one micro-batch in their order."""
        if self.native:
            return self.native.batch(sample_indices)
        return collate([self.sample(g) for g in sample_indices], self, sample_indices)

    def sample(self, sample_index: int) -> Sample:
        """One sample, assembled and masked by the Python reference."""
        shard, row = self.row(sample_index)
        paired = self.settings.objective != "none"
        texts = row_texts(row, shard.corpus.tokens, shard.sentences, paired=paired)
        return build_sample(
            texts, sample_index=sample_index, paired=paired, settings=self.settings, special=self.special
        )

    def row(self, sample_index: int) -> tuple[ShardSamples, tuple[int, int, int, int, int]]:
        """(shard, index row) of a global sample index."""
        number, local = self.blend.locate(sample_index)
        return self.shards[number], self.shards[number].row(local)

    def label(self, sample_index: int) -> int:
        """Label of the sentence-pair question; -100 where the objective has none."""
        return IGNORED_LABEL if self.settings.objective == "none" else self.row(sample_index)[1][4]

    def samples_per_epoch(self) -> list[int]:
        """Samples of the first epoch of each shard; builds its index if need be."""
        for shard in self.shards:
            shard.open_through(0)
        return [len(shard.epochs[0].rows) for shard in self.shards]


def collate(samples: Sequence[Sample], dataset: PretrainingDataset, indices: Sequence[int]) -> PretrainingBatch:
    """Pad samples to [B, S] and flatten their masked positions."""
    size, length = len(samples), dataset.settings.seq_length
    tokens = np.full((size, length), dataset.special.pad, dtype=np.int64)
    types = np.zeros((size, length), dtype=np.int64)
    real = np.zeros((size, length), dtype=np.bool_)
    for b, sample in enumerate(samples):
        tokens[b, : len(sample.tokens)] = sample.tokens
        types[b, : len(sample.tokens)] = sample.token_types
        real[b, : len(sample.tokens)] = True
    masked = [b * length + s for b, sample in enumerate(samples) for s in sample.masked]
    labels = [label for sample in samples for label in sample.labels]
    return PretrainingBatch(
        tokens=torch.from_numpy(tokens),
        token_types=torch.from_numpy(types),
        padding_mask=torch.from_numpy(real),
        masked_positions=torch.tensor(masked, dtype=torch.int64),
        masked_labels=torch.tensor(labels, dtype=torch.int64),
        nsp_labels=torch.tensor([dataset.label(g) for g in indices], dtype=torch.int64),
        sample_index=torch.tensor(list(indices), dtype=torch.int64),
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
