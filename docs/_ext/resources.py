"""The `resources` directive: what shipped recipes take, by the estimator's formulas, as a table.

Each line of its body is `RECIPE PROCESSES VOCABULARY [FLAG VALUE ...]`, a YAML file of examples/ and the flags that
differ. Formulas: megatron_alum/training/memory.py and flops.py.
"""

from __future__ import annotations

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.training.flops import TextSize, iteration_flops, run_iterations
from megatron_alum.training.memory import estimate_memory, num_parameters

HEADINGS = ("recipe", "phase", "state, GB", "activations, GB", "head, GB", "in all, GB", "TFLOP", "device-days")
BYTES_OF_CHECKPOINT = 14
"""a parameter: its weight in 16 bits; master weight and two moments in float32"""


def rows_of(words: list[str], *, tokens: float | None, effective_tflops: float) -> list[tuple[str, ...]]:
    """Cells of one recipe, a row a phase."""
    recipe, processes, vocabulary, *flags = words
    config = parse_config(RunConfig, ["--config", f"examples/{recipe}", "--save", "run", *flags])
    world, vocab_size = int(processes), int(vocabulary)
    config.data_parallel_size(world)
    text = TextSize.full(config, tokens_per_sequence=tokens)
    rows = []
    for phase, iterations in run_iterations(config).items():
        if not iterations:
            continue
        memory = estimate_memory(config, phase, vocab_size=vocab_size, world_size=world, on_gpu=True, text=text)
        state = memory.weights + memory.gradients + memory.optimizer
        flops = iteration_flops(config, phase, text, vocab_size=vocab_size)
        gigabytes = (f"{part / 1e9:,.1f}" for part in (state, memory.activations, memory.head, memory.total))
        days = iterations * flops / (effective_tflops * 1e12) / 86_400
        name = f"{recipe} on {world}{' with ' if flags else ''}{' '.join(flags)}"
        rows.append((name, phase, *gigabytes, f"{flops / 1e12:,.0f}", f"{days:,.1f}" if days < 10 else f"{days:,.0f}"))
    return rows


def parameters_of(recipe: str, vocab_size: int) -> int:
    """Parameters of a recipe's network."""
    config = parse_config(RunConfig, ["--config", f"examples/{recipe}", "--save", "run"])
    divisor = config.model.make_vocab_size_divisible_by
    return num_parameters(config, padded_vocab_size=-(-vocab_size // divisor) * divisor)


class Resources(SphinxDirective):
    """A table of recipes."""

    has_content = True
    option_spec = {"tokens": float, "effective-tflops": float, "class": directives.class_option}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        lines = ["::::{list-table}", ":header-rows: 1", ""]
        speed = self.options["effective-tflops"]
        rows = [HEADINGS]
        for line in self.content:
            rows += rows_of(line.split(), tokens=self.options.get("tokens"), effective_tflops=speed)
        for row in rows:
            lines += [f"{'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(row)]
        return self.parse_text_to_nodes("\n".join([*lines, "::::"]))


class Checkpoints(SphinxDirective):
    """Sizes of networks and of what a run writes; a line is `RECIPE VOCABULARY`."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        lines = ["::::{list-table}", ":header-rows: 1", ""]
        rows: list[tuple[str, ...]] = [("recipe", "parameters", "one checkpoint", "exported folder, 16 bits")]
        for line in self.content:
            recipe, vocabulary = line.split()
            count = parameters_of(recipe, int(vocabulary))
            sizes = (f"{count * each / 1e9:,.1f} GB" for each in (BYTES_OF_CHECKPOINT, 2))
            rows.append((recipe, f"{count / 1e6:,.0f} million", *sizes))
        for row in rows:
            lines += [f"{'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(row)]
        return self.parse_text_to_nodes("\n".join([*lines, "::::"]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("resources", Resources)
    app.add_directive("checkpoint-sizes", Checkpoints)
    return {"parallel_read_safe": True}
