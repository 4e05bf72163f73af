"""Training a vocabulary on a corpus: WordPiece, byte-level BPE or SentencePiece unigram, streamed through `tokenizers`.

The text goes through the readers and the cleaning of preprocessing. Memory holds the counts of different words (not the
text), and an even sample of about `max_mb` of text keeps that bounded on any corpus. The result is a Hugging Face
folder whose tokenizer loads with AutoTokenizer and can be given to megatron-alum preprocess --tokenizer. Two trainings
on the same text may number equally frequent entries differently: the library breaks such ties by the order of a hash
table.
"""

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_alum.data.preprocessing.cleaning import clean_lines
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.progress import Progress
from megatron_alum.data.preprocessing.readers.base import Document
from megatron_alum.data.preprocessing.readers.streams import COMPRESSED
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings, VocabularySettings
from megatron_alum.data.tokenizers.accents import latin_strip
from megatron_alum.data.tokenizers.tokenizer import (
    roberta_tokenizer,
    save_tokenizer,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from megatron_alum.data.tokenizers.vocabulary import BERT_SPECIALS, ROBERTA_SPECIALS

COMPRESSION_RATIO = 3.5
"""Bytes of text per stored byte of a compressed file, for the size of the sample (bz2 and xz of English: 3 to 4)."""

COVERAGE, MIN_ALPHABET, ALPHABET_MB = 0.9995, 1000, 20
"""Share of the text that the alphabet of a WordPiece vocabulary covers, its least size (BERT's own has about 1,000
characters), MB of text to count characters in."""
SHRINKING = 0.5
"""Share of the pieces that each round of unigram training keeps. The library's 0.75 takes twice the time (minutes
on text without spaces, where words are very long) without a better segmentation."""


def train_tokenizer(settings: TrainTokenizerSettings, *, show_progress: bool = True) -> Any:
    """Train and save; returns the tokenizer. ValueError for an input without text or an output that exists."""
    folder = Path(settings.vocabulary.output)
    if folder.exists() and not settings.vocabulary.overwrite:
        raise ValueError(f"`--output` must be a new folder, but {folder} exists. Choose another, or give --overwrite.")
    plan = InputPlan(settings.inputs)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # one process: the library may use all cores
    vocabulary = settings.vocabulary
    if vocabulary.type == "wordpiece" and vocabulary.limit_alphabet is None:
        vocabulary = replace(vocabulary, limit_alphabet=_alphabet(plan, vocabulary))
    tokenizer = _train(sample_lines(plan, vocabulary.max_mb, show_progress), vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    return tokenizer


def shortfall(settings: VocabularySettings, entries: int) -> str | None:
    """Why a vocabulary of `entries` is smaller than was asked for, and what to do; None if it is not."""
    if entries >= settings.vocab_size:
        return None
    reason = "the text has too few different words"
    if settings.type != "unigram":
        reason = f"all pairs of symbols that occur {settings.min_frequency} times are merged (--min-frequency)"
    return (
        f"--vocab-size {settings.vocab_size:,} was asked for, but there are {entries:,} entries: {reason}. The "
        "vocabulary is complete and can be used; more text gives a larger one."
    )


def _alphabet(plan: InputPlan, settings: VocabularySettings) -> int:
    """How many of the most frequent characters make up COVERAGE of a small sample of the text, within bounds.

    A fixed number suits only one script: 1,000 would lose every twentieth word of Japanese, 6,000 would fill an English
    vocabulary with Chinese characters that each occur a few times.
    """
    counts: Counter[str] = Counter()
    for line in sample_lines(plan, min(settings.max_mb, ALPHABET_MB)):
        counts.update(line)
    covered = itertools.accumulate(count for _character, count in counts.most_common())
    number = 1 + sum(1 for _ in itertools.takewhile(lambda sofar: sofar < COVERAGE * counts.total(), covered))
    return max(MIN_ALPHABET, min(number, settings.vocab_size // 2))


def sample_lines(plan: InputPlan, max_mb: int, show_progress: bool = False) -> Iterator[str]:
    """Cleaned lines of an even sample of the input's chunks, about `max_mb` MB; ValueError when there is no text."""
    stored = sum(
        size * (COMPRESSION_RATIO if path.suffix.lower() in COMPRESSED else 1)
        for path, size in zip(plan.files, plan.sizes, strict=True)
    )
    share = min(1.0, max_mb * 1e6 / stored)
    found = False
    with Progress(sum(plan.sizes), show=show_progress, what="read") as progress:
        for number, (reader, chunk) in enumerate(plan.reading()):
            if math.floor((number + 1) * share) == math.floor(number * share) and number:
                continue
            texts = [item.text for item in reader.documents(chunk) if isinstance(item, Document)]
            for text in texts:
                lines = clean_lines(text)
                found = found or bool(lines)
                yield from lines
            progress.advance(plan.position(chunk), documents=len(texts), text_bytes=sum(map(len, texts)))
    if not found:
        raise ValueError("`--input` must hold at least one document with text, but holds none. Check --format.")


def _train(lines: Iterator[str], settings: VocabularySettings) -> Any:
    lower = settings.case != "keep"
    if settings.type == "wordpiece":
        return _train_wordpiece(lines, settings, lower)
    if settings.type == "bpe":
        return _train_byte_level(lines, settings)
    return _train_unigram(lines, settings, lower)


def _train_wordpiece(lines: Iterator[str], settings: VocabularySettings, lower: bool) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if lower and settings.strip_accents is None:
        steps = [normalizers.BertNormalizer(lowercase=True, strip_accents=False), *latin_strip()]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=settings.strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=list(BERT_SPECIALS),
        limit_alphabet=settings.limit_alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return wordpiece_tokenizer(tokenizer.get_vocab(), lower=lower, accents=settings.strip_accents)


def _train_byte_level(lines: Iterator[str], settings: VocabularySettings) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=list(ROBERTA_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return roberta_tokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]])


def _train_unigram(lines: Iterator[str], settings: VocabularySettings, lower: bool) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    steps: list[Any] = [normalizers.NFKC()]
    if settings.strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents()]
    elif lower and settings.strip_accents is None:
        steps += latin_strip()
    if lower:
        steps.append(normalizers.Lowercase())
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(BERT_SPECIALS),
        unk_token="[UNK]",
        shrinking_factor=SHRINKING,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return unigram_tokenizer(tokenizer)
