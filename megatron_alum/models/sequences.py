"""Where the sequences of a micro-batch lie in its row of T tokens, in the form that megatron-core passes to attention.

Sequences are stored back to back from the first token on. After them comes the tail, tokens that nothing reads, so that
T is a multiple that the ranks can share. Kernels for packed sequences need every token to belong to one, so for them
the tail counts as further sequences, none longer than the longest real one.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from megatron.core.packed_seq_params import PackedSeqParams


class PackedSequences(PackedSeqParams):
    """megatron-core's parameters of the `thd` layout, with what the host knows about the sequences."""

    def __init__(self, lengths: Sequence[int], num_tokens: int, device: torch.device) -> None:
        """`lengths` of the B sequences in their order, each at least 1, and T = `num_tokens` in all.

        Raises ValueError when they do not fit.
        """
        if not lengths or min(lengths) < 1 or sum(lengths) > num_tokens:
            raise ValueError(
                f"`lengths` must be positive and add up to at most {num_tokens} tokens, but is {tuple(lengths)} "
                "instead."
            )
        self.lengths, self.num_tokens = tuple(lengths), num_tokens
        longest = max(lengths)
        tail = num_tokens - sum(lengths)
        pieces = [*lengths, *[longest] * (tail // longest), *([tail % longest] if tail % longest else [])]
        self.shortest = min(pieces)
        boundaries = torch.tensor([0, *accumulate(pieces)], dtype=torch.int32).to(device, non_blocking=True)
        super().__init__(
            qkv_format="thd",
            cu_seqlens_q=boundaries,
            cu_seqlens_kv=boundaries,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )

    @property
    def starts(self) -> list[int]:
        """First token of each real sequence."""
        return [0, *accumulate(self.lengths[:-1])]
