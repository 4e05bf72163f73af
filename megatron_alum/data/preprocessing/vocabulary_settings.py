"""Settings for training a vocabulary: the options of `megatron-alum train-tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_alum.config.places import OutputFolder
from megatron_alum.data.preprocessing.settings import InputSettings
from megatron_alum.data.tokenizers.vocabulary import ROBERTA_SPECIALS


@dataclass(frozen=True)
class VocabularySettings:
    """The vocabulary to train."""

    output: OutputFolder
    """tokenizer folder to write"""
    type: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """wordpiece as in BERT, byte-level bpe as in RoBERTa, unigram as in SentencePiece"""
    vocab_size: int = 30522
    """entries, special tokens included; a small corpus may yield fewer"""
    case: Literal["lower", "keep"] | None = None
    """lower-case the text or keep it; default: lower for wordpiece and unigram, keep for bpe (which has no lower)"""
    strip_accents: bool | None = None
    """strip accents; default: from Latin and Greek letters when lower-casing (wordpiece and unigram), since the marks
    of other scripts are vowels or other letters"""
    limit_alphabet: int | None = None
    """different characters that wordpiece may keep, the most frequent ones; default: those of 99.95 % of the text, at
    least 1000 and at most half of --vocab-size"""
    min_frequency: int = 2
    """pairs of symbols seen less often are not merged (wordpiece and bpe)"""
    max_mb: int = 1000
    """MB of text to learn from, taken evenly over the input"""
    overwrite: bool = False
    """replace an existing folder"""

    def __post_init__(self) -> None:
        if self.type == "bpe" and (self.case == "lower" or self.strip_accents):
            raise ValueError(
                "--case must be keep for --type bpe (RoBERTa's tokenizer has no lower-casing), but is lower."
            )
        smallest = 256 + len(ROBERTA_SPECIALS) if self.type == "bpe" else 50
        if self.vocab_size < smallest:
            raise ValueError(
                f"--vocab-size must be at least {smallest} for {self.type}, but is {self.vocab_size} instead."
            )
        if self.limit_alphabet is not None and (self.limit_alphabet < 1 or self.type != "wordpiece"):
            raise ValueError(
                f"--limit-alphabet must be at least 1 and go with --type wordpiece (bpe has bytes, unigram keeps every "
                f"character), but is {self.limit_alphabet} with {self.type} instead."
            )
        if self.max_mb < 1:
            raise ValueError(f"--max-mb must be at least 1, but is {self.max_mb} instead.")


@dataclass(frozen=True)
class TrainTokenizerSettings:
    """One training run."""

    inputs: InputSettings
    vocabulary: VocabularySettings = field(default_factory=lambda: VocabularySettings(output=""))

    def __post_init__(self) -> None:
        if self.inputs.num_shards != 1:
            raise ValueError(
                f"--num-shards must be 1 for a vocabulary, which is learned from the whole input, but is "
                f"{self.inputs.num_shards} instead. Leave it out; --max-mb bounds the text that is read."
            )
