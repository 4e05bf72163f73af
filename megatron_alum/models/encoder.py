"""The stack of layers: megatron-core's TransformerBlock with what BERT needs: running a part of the layers, packed
sequences, and a last MLP on chosen rows.

Parameters, their names and sharded checkpoints are TransformerBlock's; so is what a pipeline stage receives
(`set_input_tensor`). Full recomputation runs each layer again in the backward pass, reentrantly.
"""

import contextlib

from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from megatron_alum.models.sequences import PackedSequences

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
        forks = self.config.sequence_parallel and self.training
        with tensor_parallel.get_cuda_rng_tracker().fork() if forks else contextlib.nullcontext():
            for index in range(begin, end):
                hidden = self._run(index, hidden, sequences, rows if index == num_layers - 1 else None)
        if end == num_layers and self.final_layernorm is not None:
            hidden = self.final_layernorm(hidden)
        return hidden

    def compile_layers(self, *, backend: str = "inductor") -> None:
        """Compile each layer on its first use, in place: parameter names do not change.

        All layers share the compiled code, for any number of tokens and rows: one version for each combination of
        training or not, frozen parameters or not, chosen rows or not, and gradients or not. A version is one graph,
        except where torch.compile cannot trace the attention (on the CPU, and with its dropout under tensor parallelism
        without sequence parallelism): there it ends a graph in each of the functions around the attention, five in all.
        In the latter case a layer draws from two streams: the attention's dropout from the rank's own, that of the
        hidden values, which every rank of the group must drop alike, from the one they share. The change between them
        replaces the generator's state, which no graph can hold. Sequence parallelism needs the rank's own stream alone,
        which `forward` selects before the first layer.
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
            output: Tensor = self.layers[index](hidden, packed_seq_params=sequences, rows=rows)[0]
            return output

        if self.config.recompute_granularity == "full" and self.training:
            output: Tensor = tensor_parallel.checkpoint(layer, False, hidden)
            return output
        return layer(hidden)
