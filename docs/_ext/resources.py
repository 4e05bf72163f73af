"""The `resources` directive: what shipped recipes take, by the estimator's formulas, as a table.

Each line of its body is `RECIPE PROCESSES VOCABULARY [FLAG VALUE ...]`, a YAML file of examples/ and the flags that
differ. Formulas: megatron_alum/planning/memory.py and flops.py.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from list_table import list_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.planning.flops import TextSize, iteration_flops, run_iterations
from megatron_alum.planning.memory import checkpoint_bytes, estimate_memory, num_parameters

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEADINGS = ("recipe", "phase", "state, GB", "activations, GB", "head, GB", "in all, GB", "TFLOP", "device-days")


def rows_of(words: list[str], *, tokens: float | None, effective_tflops: float) -> list[tuple[str, ...]]:
    """Cells of one recipe, a row a phase."""
    recipe, processes, vocabulary, *flags = words
    config = parse_config(RunConfig, ["--config", f"{EXAMPLES}/{recipe}", "--save", "run", *flags])
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


def sizes_of(recipe: str, vocab_size: int) -> tuple[str, ...]:
    """Cells of one recipe: its network, a checkpoint, what is exported."""
    config = parse_config(RunConfig, ["--config", f"{EXAMPLES}/{recipe}", "--save", "run"])
    divisor = config.model.make_vocab_size_divisible_by
    parameters = num_parameters(config, padded_vocab_size=-(-vocab_size // divisor) * divisor)
    stored = checkpoint_bytes(config, vocab_size=vocab_size)
    return recipe, f"{parameters / 1e6:,.0f} million", f"{stored / 1e9:,.1f}", f"{2 * parameters / 1e9:,.1f}"


class Resources(SphinxDirective):
    """A table of recipes."""

    has_content = True
    option_spec = {"tokens": float, "effective-tflops": float}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        speed = self.options["effective-tflops"]
        rows = [HEADINGS]
        for line in self.content:
            rows += rows_of(line.split(), tokens=self.options.get("tokens"), effective_tflops=speed)
        return self.parse_text_to_nodes(list_table(rows))


class Checkpoints(SphinxDirective):
    """Sizes of networks and of what a run writes; a line is `RECIPE VOCABULARY`."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The table, by way of a list table."""
        rows: list[tuple[str, ...]] = [("recipe", "parameters", "checkpoint, GB", "exported folder, GB, 16 bits")]
        for line in self.content:
            recipe, vocabulary = line.split()
            rows.append(sizes_of(recipe, int(vocabulary)))
        return self.parse_text_to_nodes(list_table(rows))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("resources", Resources)
    app.add_directive("checkpoint-sizes", Checkpoints)
    return {"parallel_read_safe": True}
