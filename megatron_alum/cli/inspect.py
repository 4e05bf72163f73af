"""Look into a corpus written by `megatron-alum preprocess`: counts, statistics, documents as text, training samples,
checksums.

    megatron-alum inspect data/wikipedia --document 0 17 --sample 0 1 2 --verify

CORPUS is the path without .bin. Samples are those that training draws with the same flags
(--seq-length, --objective, --seed, ...): all pre-training options that determine a sample are accepted. Exits with an
error when the parts do not belong together, or with --verify when a checksum differs.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_alum.config.checks import Count, CountOrZero, check_fields
from megatron_alum.config.cli import parse_config
from megatron_alum.config.data import DataConfig
from megatron_alum.config.model import ModelType
from megatron_alum.config.places import check_places

if TYPE_CHECKING:
    from megatron_alum.data.shards.files import Shards

MAX_SENTENCES = 20
"""Sentences shown of a document."""


@dataclass(frozen=True)
class SampleOptions:
    """Training samples

    What determines them besides the shards; give the values of the run.
    """

    data: DataConfig
    seq_length: Count = 128
    """tokens of the longest sample, special tokens included"""
    model_type: ModelType = "megatron-bert"
    """roberta has its own layout of pairs and no sentence-pair objective"""
    train_samples: Count = 1_000_000
    """samples of the whole run (iterations x global batch size), over which the mask rate rises"""
    seed: CountOrZero = 1234
    """seed of the run"""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        check_fields(self)


@dataclass(frozen=True)
class InspectConfig:
    """Inspecting shards: what is shown"""

    samples: SampleOptions
    document: tuple[CountOrZero, ...] | None = None
    """numbers of documents to show; by default the first, or none with --sample"""
    sample: tuple[CountOrZero, ...] = ()
    """global numbers of training samples to show"""
    verify: bool = False
    """read everything and compare the SHA-256 sums"""

    def __post_init__(self) -> None:
        """Refuse numbers below 0."""
        check_fields(self)


def main() -> None:
    """Parse the command line and print what was asked for."""
    config = _parsed(sys.argv[1:])
    prefix = config.samples.data.data_path[0]
    from megatron_alum.data.shards.files import CHECKED_FILES, open_shards, require_whole_manifest, shard_paths
    from megatron_alum.data.shards.statistics import describe
    from megatron_alum.data.tokenizers.tokenizer import load_tokenizer

    shards = open_shards(prefix, verify=config.verify)
    require_whole_manifest(shards.manifest, shard_paths(prefix)["json"])
    tokenizer = load_tokenizer(shards.tokenizer_dir)
    if config.verify:
        print(f"checksums of {len(CHECKED_FILES)} files: correct")
    for name, value in describe(shards, tokenizer).items():
        print(f"{name:>26}: {_readable(value)}")
    for verb in ("skipped", "repaired"):
        for reason, entry in shards.manifest[verb].items():
            print(f"{verb:>26}: {entry['count']:,} ({reason}; first: {', '.join(entry['examples'])})")
    first = () if config.sample else (0,)
    for number in first if config.document is None else config.document:
        _show_document(shards, tokenizer, number)
    if config.sample:
        _show_samples(config.samples, config.sample)


def _parsed(words: list[str]) -> InspectConfig:
    """The configuration. Raises: ValueError unless it names exactly one corpus, which exists."""
    if words and not words[0].startswith("-"):
        words = ["--data-path", *words]
    config = parse_config(
        InspectConfig,
        words,
        description=__doc__ or "",
        usage="CORPUS [options]",
        helps={"data_path": "the corpus, if it is not the first word"},
        without=("prefetch_batches",),  # training alone prepares batches ahead
    )
    corpora = config.samples.data.data_path
    if len(corpora) != 1:
        raise ValueError(f"The corpus must be one prefix, but is {' '.join(corpora)} instead. Inspect one at a time.")
    check_places(config)
    return config


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(item)}" for key, item in value.items())
    if isinstance(value, str):
        return value
    return f"{value:,.4g}" if isinstance(value, float) and value < 1 else f"{value:,.0f}"


def _show_document(shards: Shards, tokenizer: Any, number: int) -> None:
    from megatron_alum.data.shards.statistics import document_sentences

    print(f"\ndocument {number}")
    for count, sentence in enumerate(document_sentences(shards, tokenizer, number)):
        if count == MAX_SENTENCES:
            print("  ...")
            return
        print(f"  {count}: {sentence}")


def _show_samples(options: SampleOptions, numbers: tuple[int, ...]) -> None:
    from megatron_alum.data.sampling.dataset import open_datasets
    from megatron_alum.data.sampling.show import show_samples

    with tempfile.TemporaryDirectory() as cache:  # no index is left beside the shards
        data = options.data if options.data.data_cache_path else replace(options.data, data_cache_path=cache)
        datasets = open_datasets(
            data,
            model_type=options.model_type,
            seq_length=options.seq_length,
            train_samples=options.train_samples,
            seed=options.seed,
        )
        for shard in datasets.train.shards:
            shard.expect(0)  # no later epoch is built ahead: the folder is about to be deleted
        batch = datasets.train.batch(list(numbers))
        print()
        for line in show_samples(batch, datasets.tokenizer, datasets.train.settings.objective):
            print(line)
