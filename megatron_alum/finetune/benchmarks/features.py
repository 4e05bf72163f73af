"""From examples to the model's inputs, by task kind, and the collator that pads them.

    classification, regression, choice   one feature an example; choice stacks its candidates [n, S]
    spans      question and context in windows of `max_tokens` that overlap by `stride`; one feature a window, its
               answer at token 0 where the window does not hold it; questions are cut after 64 tokens
    tags       words in windows; the label sits on a word's first sub-word, the rest and repeated words have -100

Contexts of spans and sentences of tags are never cut, only split into windows. For decoding, a feature carries its
`example` (index) and, if it is a window, `offsets` (spans) or `words` (tags); the collator leaves those out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.squad import exact_match
from megatron_alum.finetune.methods.divergence import IGNORED_LABEL, Kind

Feature = dict[str, Any]
DECODING_KEYS = ("example", "offsets", "words")


@dataclass(frozen=True)
class Encoder:
    """How texts become tokens."""

    tokenizer: PreTrainedTokenizerBase
    """a fast tokenizer"""
    kind: Kind
    """kind of task"""
    max_tokens: int = 512
    """longest input, special tokens included"""
    stride: int = 128
    """tokens shared by neighbouring windows of spans; tags share an eighth of a window"""
    tags: tuple[str, ...] = ()
    """tag names in the order of their ids"""
    max_question_tokens: int = 64
    """questions of spans are cut after so many tokens (max_query_length of Google's BERT)"""
    repairs: bool = False
    """tokens of spans are extended to the characters before them that no token covers, see `covering`; words of tags
    that the tokenizer drops become its unknown token"""

    @cached_property
    def _tag_numbers(self) -> dict[str, int]:
        """Without the tags that training never saw: the scorer, which goes by names, counts those as missed."""
        return {name: number for number, name in enumerate(self.tags)}

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        """Features of all examples, in order."""
        encoders = {"spans": self._spans, "tags": self._tags, "choice": self._choice}
        encode = encoders.get(self.kind, self._text)
        return [feature for index, example in enumerate(examples) for feature in encode(index, example)]

    def _text(self, index: int, example: Example) -> list[Feature]:
        pair = (example["first"],) if example["second"] is None else (example["first"], example["second"])
        encoded = self.tokenizer(*pair, truncation=True, max_length=self.max_tokens)
        return [{**encoded, "labels": _label_or_placeholder(example), "example": index}]

    def _choice(self, index: int, example: Example) -> list[Feature]:
        endings = [" ".join(filter(None, (example["second"], ending))) for ending in example["endings"]]
        firsts = [example["first"]] * len(endings)
        encoded = self.tokenizer(firsts, endings, truncation="longest_first", max_length=self.max_tokens)
        return [{**encoded, "labels": _label_or_placeholder(example), "example": index}]

    def _spans(self, index: int, example: Example) -> list[Feature]:
        question, num_free = self._question(example)
        encoded = self.tokenizer(
            question,
            example["context"],
            truncation="only_second",
            max_length=self.max_tokens,
            stride=self.stride if self.stride < num_free else num_free // 2,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        features = []
        for window in range(len(encoded["input_ids"])):
            spans = encoded["offset_mapping"][window]
            in_context = [source == 1 for source in encoded.sequence_ids(window)]
            offsets = [pair if inside else None for pair, inside in zip(spans, in_context, strict=True)]
            if self.repairs:
                offsets = covering(offsets, example["context"])
            start, end = answer_tokens(offsets, example)
            features.append(
                {
                    **self._model_inputs(encoded, window),
                    "start_positions": start,
                    "end_positions": end,
                    "example": index,
                    "offsets": offsets,
                }
            )
        return features

    def _question(self, example: Example) -> tuple[str, int]:
        """(question, cut to its maximum; tokens that a window has left for the context).

        Raises: ValueError if there are none left.
        """
        text = example["question"].strip()
        ends = [end for _, end in self._offsets(text)]
        if len(ends) > self.max_question_tokens:
            text = text[: ends[self.max_question_tokens - 1]]
            ends = ends[: self.max_question_tokens]
        num_fixed = len(ends) + self.tokenizer.num_special_tokens_to_add(pair=True)
        if num_fixed >= self.max_tokens:
            raise ValueError(
                f"--max-seq-length must be at least {num_fixed + 1} tokens to hold question {example['id']} "
                f"and some of its context, but is {self.max_tokens} instead."
            )
        return text, self.max_tokens - num_fixed

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return offsets

    def _tags(self, index: int, example: Example) -> list[Feature]:
        encoded, features, seen = self._windows_of_words(self._known(example["tokens"])), [], set()
        for window in range(len(encoded["input_ids"])):
            words, labels = [], []
            for word in encoded.word_ids(window):
                first = word is not None and word not in seen
                seen.add(word)
                words.append(word if first else None)
                tag: str = example["tags"][word] if first and example["tags"] is not None else ""
                labels.append(self._tag_numbers.get(tag, IGNORED_LABEL))
            features.append({**self._model_inputs(encoded, window), "labels": labels, "example": index, "words": words})
        return features

    def _windows_of_words(self, words: Sequence[str]) -> Any:
        return self.tokenizer(
            list(words),
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_tokens,
            stride=self.max_tokens // 8,
            return_overflowing_tokens=True,
        )

    def _known(self, words: Sequence[str]) -> Sequence[str]:
        """The words, with the unknown token for those that the tokenizer drops, where there are repairs."""
        unknown = self.tokenizer.unk_token
        if not self.repairs or unknown is None:
            return words
        kept = set(self.tokenizer(list(words), is_split_into_words=True, add_special_tokens=False).word_ids())
        return [word if number in kept else unknown for number, word in enumerate(words)]

    def _model_inputs(self, encoded: Mapping[str, Any], window: int) -> Feature:
        return {name: encoded[name][window] for name in self.tokenizer.model_input_names if name in encoded}


def _label_or_placeholder(example: Example) -> int | float:
    """The label; 0 in test splits without labels (loading.py refuses others), whose loss nobody reads."""
    label: int | float | None = example["label"]
    return 0 if label is None else label


def covering(offsets: Sequence[tuple[int, int] | None], context: str) -> list[tuple[int, int] | None]:
    """Offsets of the tokens of a window such that each begins where its word does: some tokenizers' begin late.

    A token takes the characters before it, back to a blank or the token before; the first of a window one at most.
    """
    result: list[tuple[int, int] | None] = []
    end: int | None = None
    for pair in offsets:
        if pair is None or pair[1] <= pair[0]:
            result.append(pair)
            continue
        start, lowest = pair[0], max(pair[0] - 1, 0) if end is None else end
        while start > lowest and not context[start - 1].isspace():
            start -= 1
        result.append((start, pair[1]))
        end = pair[1]
    return result


def surviving_share(examples: Sequence[Example], features: Sequence[Feature]) -> float:
    """The share of gold answers that come back whole from the tokens a window marks, of those that a window holds; of
    tags, the share of the words inside entities that have a token to sit on.
    """
    held = whole = 0
    if "words" in features[0]:
        entities = {(i, word) for i, row in enumerate(examples) for word, tag in enumerate(row["tags"]) if tag != "O"}
        seen = {(feature["example"], word) for feature in features for word in feature["words"]}
        held, whole = len(entities), len(entities & seen)
        features = ()
    for feature in features:
        if feature["end_positions"] > 0:
            example = examples[feature["example"]]
            first, last = feature["offsets"][feature["start_positions"]], feature["offsets"][feature["end_positions"]]
            answer = example["answers"][0]
            held += 1
            whole += exact_match(example["context"][first[0] : last[1]], answer["text"]) > 0
    return whole / held if held else 1.0


def answer_tokens(offsets: Sequence[tuple[int, int] | None], example: Example) -> tuple[int, int]:
    """(first, last) token of the first gold answer in a window, (0, 0) when the window does not hold all of it."""
    if not example["answers"]:
        return 0, 0
    answer = example["answers"][0]
    start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    inside = [(token, pair) for token, pair in enumerate(offsets) if pair is not None and pair[1] > pair[0]]
    if not inside or inside[0][1][0] > start or inside[-1][1][1] < end:
        return 0, 0
    first = max(token for token, pair in inside if pair[0] <= start)
    last = min(token for token, pair in inside if pair[1] >= end)
    return first, last


def _candidate(row: Feature, index: int) -> Feature:
    """A candidate; past the last one a single token, which models.py takes for none."""
    return {name: values[index] if index < len(row["input_ids"]) else values[0][:1] for name, values in row.items()}


class Collator:
    """Stack features into tensors, padded on the right to the longest of the batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> None:
        self.tokenizer, self.kind = tokenizer, kind

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """{name: [B, S]}, {name: [B, n, S]} for choices; labels [B] or [B, S]."""
        rows = [{name: value for name, value in feature.items() if name not in DECODING_KEYS} for feature in features]
        labels = {
            name: [row.pop(name) for row in rows]
            for name in ("labels", "start_positions", "end_positions")
            if name in rows[0]
        }
        count = max(len(row["input_ids"]) for row in rows) if self.kind == "choice" else 1
        if self.kind == "choice":
            rows = [_candidate(row, i) for row in rows for i in range(count)]
        padded = self.tokenizer.pad(rows, return_tensors="pt", padding_side="right")
        batch = {name: value.view(len(features), count, -1) if count > 1 else value for name, value in padded.items()}
        return {**batch, **{name: self._labels(values, batch) for name, values in labels.items()}}

    def _labels(self, values: list[Any], batch: Mapping[str, Tensor]) -> Tensor:
        if self.kind == "regression":
            return torch.tensor(values, dtype=torch.float32)
        if self.kind != "tags":
            return torch.tensor(values)
        length = batch["input_ids"].shape[1]
        return torch.tensor([row + [IGNORED_LABEL] * (length - len(row)) for row in values])
