"""A training sample as a person reads it: the text of the row, what is masked, and the sentence-pair label."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from megatron_alum.data.sampling.batch import IGNORED_LABEL, PretrainingBatch

_LABELS = {
    "nsp": {0: "B follows A", 1: "B is random"},
    "sop": {0: "in order", 1: "swapped"},
    "none": {IGNORED_LABEL: "no question"},
}


def show_samples(batch: PretrainingBatch, tokenizer: Any, objective: str) -> Iterator[str]:
    """Lines for each sequence of a CPU batch: a heading, then each segment's tokens.

    A masked position is written {shown = original}, so that the three fates of 80/10/10 can be told apart.
    """
    shown = tokenizer.convert_ids_to_tokens(batch.tokens.tolist())
    originals = tokenizer.convert_ids_to_tokens(batch.masked_labels.tolist())
    for place, original in zip(batch.masked_positions.tolist(), originals, strict=True):
        shown[place] = f"{{{shown[place]} = {original}}}"
    for b, (begin, end) in enumerate(pairwise(batch.cu_seqlens.tolist())):
        yield (
            f"sample {int(batch.sample_index[b])}: {_LABELS[objective][int(batch.nsp_labels[b])]}, {end - begin} "
            f"tokens, {batch.masked_counts[b]} masked"
        )
        yield from (f"  {segment}" for segment in _segments(shown[begin:end], batch.token_types[begin:end].tolist()))


def _segments(tokens: list[str], types: list[int]) -> list[str]:
    """The tokens of each token type on a line of its own."""
    cut = types.index(1) if 1 in types else len(types)
    return [" ".join(part) for part in (tokens[:cut], tokens[cut:]) if part]
