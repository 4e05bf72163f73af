"""A training sample as a person reads it: the text of the row, what is masked, and the sentence-pair label."""

from collections.abc import Iterator
from typing import Any

from megatron_alum.data.batch import IGNORED_LABEL, PretrainingBatch

_LABELS = {
    "nsp": {0: "B follows A", 1: "B is random"},
    "sop": {0: "in order", 1: "swapped"},
    "none": {IGNORED_LABEL: "no question"},
}


def show_samples(batch: PretrainingBatch, tokenizer: Any, objective: str) -> Iterator[str]:
    """Lines for each row of a CPU batch: a heading, then each segment's tokens.

    A masked position is written {shown = original}, so that the three fates of 80/10/10 can be told apart.
    """
    seq_length = batch.tokens.shape[1]
    labels = dict(zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True))
    for b in range(len(batch.tokens)):
        length = int(batch.padding_mask[b].sum())
        shown = tokenizer.convert_ids_to_tokens(batch.tokens[b, :length].tolist())
        masked = {p - b * seq_length: label for p, label in labels.items() if p // seq_length == b}
        for position, label in masked.items():
            shown[position] = f"{{{shown[position]} = {tokenizer.convert_ids_to_tokens(label)}}}"
        yield (
            f"sample {int(batch.sample_index[b])}: {_LABELS[objective][int(batch.nsp_labels[b])]}, {length} of "
            f"{seq_length} positions, {len(masked)} masked"
        )
        yield from (f"  {segment}" for segment in _segments(shown, batch.token_types[b, :length].tolist()))


def _segments(tokens: list[str], types: list[int]) -> list[str]:
    """The tokens of each token type on a line of its own."""
    cut = types.index(1) if 1 in types else len(types)
    return [" ".join(part) for part in (tokens[:cut], tokens[cut:]) if part]
