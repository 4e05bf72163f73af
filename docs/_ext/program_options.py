"""Directives that print a program's options from the program itself: `program-options` and `program-help`.

`program-options tools/finetune.py` reads the configuration dataclass behind the program, as --help does: one section
per dataclass, one entry per field, with its type, default and docstring. Other pages link to an entry by
{option}`--flag`. `program-help tools/compare_runs.py` prints what the program prints for --help.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from megatron_alum.config.fields import Option, options_of, section_of

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "pretrain_bert_alum.py": "megatron_alum.config.run:RunConfig",
    "tools/preprocess_data.py": "megatron_alum.data.preprocessing.settings:PreprocessSettings",
    "tools/train_tokenizer.py": "megatron_alum.data.preprocessing.train_tokenizer:TrainTokenizerSettings",
    "tools/finetune.py": "megatron_alum.config.finetune:FinetuneConfig",
    "tools/attack.py": "megatron_alum.config.finetune:AttackConfig",
    "tools/make_report.py": "megatron_alum.cli.report:ReportConfig",
    "tools/convert_checkpoint.py to-hf": "megatron_alum.cli.convert:ToHfConfig",
    "tools/convert_checkpoint.py from-hf": "megatron_alum.cli.convert:FromHfConfig",
    "tools/merge_shards.py": "megatron_alum.cli.merge:MergeConfig",
    "tools/inspect_shards.py": "megatron_alum.cli.inspect:InspectConfig",
    "tools/estimate_memory.py": "megatron_alum.cli.estimate:EstimateConfig",
}
"""program, with its sub-command if it has some -> the dataclass that is its command line"""


def configuration_of(program: str) -> type:
    """The dataclass behind a program of PROGRAMS."""
    module, _, name = PROGRAMS[program].partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def help_of(program: str, *words: str) -> str:
    """What `python PROGRAM WORDS --help` prints, run in this process."""
    printed = io.StringIO()
    with (
        patch.object(sys, "argv", [program, *words, "--help"]),
        patch.dict("os.environ", {"COLUMNS": "88"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(str(ROOT / program), run_name="__main__")
    return printed.getvalue()


def option_lines(option: Option) -> Iterator[str]:
    """MyST lines of one option."""
    values = f"{option.metavar} [{option.metavar} ...]" if option.is_list else option.metavar
    yield f"::::{{option}} {option.flag} {f'[{values}]' if option.is_bool else values}"
    yield ""
    yield _markdown(option.help)
    yield "::::"
    yield ""


def _markdown(text: str) -> str:
    """Plain help text as Markdown: flags as code, no other character markup."""

    def of_part(part: str) -> str:
        if part.startswith("--"):
            return f"`{part}`"
        return part if part.startswith("`") else re.sub(r"([\\<>\[\]*_$~])", r"\\\1", part)

    return "".join(map(of_part, re.split(r"(`[^`]+`|--[a-z][a-z0-9-]*)", text)))


class ProgramOptions(SphinxDirective):
    """Options of one program of PROGRAMS; arguments: the program, then a sub-command if it has some.

    With `:beyond: OTHER` those that the program OTHER has as well are left out.
    """

    required_arguments = 1
    optional_arguments = 1
    option_spec = {"beyond": str}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Sections of option entries."""
        program, other = " ".join(self.arguments), self.options.get("beyond")
        self.env.note_dependency(str(ROOT / self.arguments[0]))
        lines, owner = [f":::{{program}} {program}", ":::", ""], None
        elsewhere = {option.name for option in options_of(configuration_of(other))} if other else set()
        for option in options_of(configuration_of(program)):
            if option.name in elsewhere:
                continue
            if option.owner is not owner:
                owner = option.owner
                title, text = section_of(owner)
                lines += [f"## {_markdown(title)}", "", _markdown(text), ""]
            lines += option_lines(option)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class ProgramHelp(SphinxDirective):
    """What a program prints for --help."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A block of text."""
        text = help_of(self.arguments[0])
        if "usage:" not in text:
            raise self.error(f"{self.arguments[0]} --help printed no help but {text!r}.")
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("program-options", ProgramOptions)
    app.add_directive("program-help", ProgramHelp)
    return {"parallel_read_safe": True}
