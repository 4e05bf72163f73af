"""Between the two sets of tensors: shapes, the check that nothing is missing or left over, and the rewrite in both
directions.

`hf_tensors` and `megatron_tensor` read the same rows of `keys.py`; a mapping on the Megatron side holds whole tensors
(no tensor-parallel pieces) under the names of the local layer spec, its vocabulary padded or not. Mappings may be
lazy: a tensor is read when its row is translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_alum.convert.keys import QKV_LETTER, VOCAB_LETTER, Row
from megatron_alum.convert.tensors import merge_qkv, split_qkv, strip_vocabulary

Shape = tuple[int, ...]
MAX_LISTED = 12
"""Number of names listed in an error; a wrong model would otherwise fill the screen."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that the letters of the key tables stand for in one model."""

    vocab_size: int
    """V, unpadded."""
    positions: int
    """P, rows of the position table."""
    token_types: int
    """Y."""
    hidden: int
    """H."""
    ffn: int
    """F."""
    num_layers: int
    """Repetitions of the rows with a layer."""
    num_heads: int
    """Attention heads, needed to merge query, key and value."""

    def shape(self, row: Row) -> Shape:
        """The unpadded, global Megatron shape of a row."""
        sizes = {
            VOCAB_LETTER: self.vocab_size,
            "P": self.positions,
            "Y": self.token_types,
            "H": self.hidden,
            "F": self.ffn,
            QKV_LETTER: 3 * self.hidden,
            "2": 2,
        }
        return tuple(sizes[letter] for letter in row.shape)

    def hf_shape(self, row: Row) -> Shape:
        """The shape of each Hugging Face tensor of a row."""
        shape = self.shape(row)
        return (shape[0] // 3, *shape[1:]) if row.is_qkv else shape


def list_names(names: Iterable[str]) -> str:
    """Names for an error message, at most the first `MAX_LISTED`."""
    names = list(names)
    rest = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + rest


def check_shapes(source: str, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare names and shapes; `expected` lists exactly the tensors that must be present.

    Raises: one ValueError that lists every missing, unknown and misshapen tensor of `source`.
    """
    missing = sorted(set(expected) - set(given))
    unknown = sorted(set(given) - set(expected))
    shared = sorted(set(given) & set(expected))
    wrong = [f"{n} {given[n]} instead of {expected[n]}" for n in shared if given[n] != expected[n]]
    problems = [
        f"{len(names)} {what} ({list_names(names)})"
        for what, names in (("missing", missing), ("unknown", unknown), ("misshapen", wrong))
        if names
    ]
    if problems:
        raise ValueError(
            f"the tensors of {source} must be those of its configuration, but there are {'; '.join(problems)} instead. "
            "Check that weights and config.json belong together."
        )


def hf_tensors(megatron: Mapping[str, Tensor], rows: Sequence[Row], sizes: Sizes) -> dict[str, Tensor]:
    """{Hugging Face name without prefix: tensor} of the given rows; padded vocabulary rows are dropped."""
    found: dict[str, Tensor] = {}
    for row in rows:
        tensor = megatron[row.megatron]
        if row.is_qkv:
            found.update(zip(row.hf, split_qkv(tensor, num_heads=sizes.num_heads), strict=True))
        else:
            found[row.hf[0]] = strip_vocabulary(tensor, sizes.vocab_size) if row.is_vocabulary else tensor
    return found


def megatron_tensor(hf: Mapping[str, Tensor], row: Row, sizes: Sizes) -> Tensor:
    """The whole, unpadded Megatron tensor of one row from Hugging Face tensors without prefix."""
    if row.is_qkv:
        query, key, value = (hf[name] for name in row.hf)
        return merge_qkv(query, key, value, num_heads=sizes.num_heads)
    return hf[row.hf[0]]
