"""The stack of layers: megatron-core's TransformerBlock with what BERT needs: running a part of the layers, packed
sequences, and a last MLP on chosen rows.

Parameters, their names and sharded checkpoints are TransformerBlock's; so is what a pipeline stage receives
(`set_input_tensor`). Full recomputation runs each layer again in the backward pass, reentrantly.
"""

import contextlib

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from megatron_alum.models.layers import HiddenDropout
from megatron_alum.models.sequences import PackedSequences
from megatron_alum.ops import draw_dropout

_COMPILED_VERSIONS = 64
"""torch.compile gives up on a function after 8 by default; sizes of 1 and dtypes multiply the combinations"""


class Encoder(TransformerBlock):
    """The layers of this pipeline stage and, in a pre-LayerNorm network's last stage, the LayerNorm after them."""

    def forward(
        self,
        hidden: Tensor | None,
        *,
        sequences: PackedSequences,
        begin: int = 0,
        end: int | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """hidden [T(/tp), 1, H] through the layers [begin, end) of this stage; None means to the last.

        `rows` (int64 [R]) makes the last layer compute these tokens only: [R, 1, H]. On a later pipeline stage `hidden`
        is None: the schedule has set what the previous stage sent.
        """
        num_layers = len(self.layers)
        end = num_layers if end is None else end
        hidden = hidden if self.pre_process else self.input_tensor
        assert hidden is not None and 0 <= begin < end <= num_layers and (rows is None or end == num_layers)
        # Under sequence parallelism every dropout of the layers is on this rank's tokens.
        with _own_stream() if self.config.sequence_parallel and self.training else contextlib.nullcontext():
            for index in range(begin, end):
                hidden = self._run(index, hidden, sequences, rows if index == num_layers - 1 else None)
        if end == num_layers and self.final_layernorm is not None:
            hidden = self.final_layernorm(hidden)
        return hidden

    def compile_layers(self, *, backend: str = "inductor") -> None:
        """Compile each layer on its first use, in place: parameter names do not change.

        All layers share the compiled code, for any number of tokens and rows: one version for each combination of
        training or not, frozen parameters or not, chosen rows or not, and gradients or not. A version is one graph,
        except on the CPU, whose attention torch.compile cannot trace: it ends a graph in each of the functions around
        the attention, four in all. Selective recomputation divides the layer around the attention, too.
        Under sequence parallelism a compiled layer keeps the gathered inputs of two products, [T, 1, H] each, for its
        backward pass; an eager one gathers them again.
        """
        from torch._dynamo import config  # takes a second to import

        config.recompile_limit = max(config.recompile_limit, _COMPILED_VERSIONS)
        for layer in self.layers:
            layer.compile(dynamic=True, backend=backend)

    def _run(self, index: int, hidden: Tensor, sequences: PackedSequences, rows: Tensor | None) -> Tensor:
        """One layer, with recomputation if configured."""

        def layer(hidden: Tensor) -> Tensor:
            drawn, stream = self._dropout(hidden, rows)
            with stream:
                output: Tensor = self.layers[index](hidden, sequences=sequences, rows=rows, drawn=drawn)
            return output

        if self.config.recompute_granularity == "full" and self.training:
            output: Tensor = tensor_parallel.checkpoint(layer, False, hidden)
            return output
        return layer(hidden)

    def _dropout(
        self, hidden: Tensor, rows: Tensor | None
    ) -> tuple[HiddenDropout, contextlib.AbstractContextManager[None]]:
        """What drops the hidden values of a layer with input [T, 1, H], and the random stream of its other draws.

        Where a rank has some of the heads but all of the tokens, it drops weights of its own heads, and hidden values
        as every rank of the group does. No compiled graph can change the generator's state between the two, so the
        latter are drawn here, before it, from the stream that the group shares.
        """
        config = self.config
        splits_heads_alone = config.tensor_model_parallel_size > 1 and not config.sequence_parallel
        if not (splits_heads_alone and self.training and config.attention_dropout > 0.0):
            return HiddenDropout(), contextlib.nullcontext()
        if config.hidden_dropout == 0.0:
            return HiddenDropout(), _own_stream()
        of_rows = hidden.shape if rows is None else torch.Size((rows.numel(), *hidden.shape[1:]))
        drawn = (draw_dropout(shape, config.hidden_dropout, hidden.device) for shape in (hidden.shape, of_rows))
        return HiddenDropout(*drawn), _own_stream()


def _own_stream() -> contextlib.AbstractContextManager[None]:
    """The random stream of this tensor-parallel rank, in place of the one that its group shares."""
    fork: contextlib.AbstractContextManager[None] = tensor_parallel.get_cuda_rng_tracker().fork()
    return fork
