"""Statements on the pages that could become outdated: quoted errors, figures of a stored run."""

import ast
import json
import re
import statistics

import pytest

from tests.docs.pages import DOCS, ROOT

GAP = "\0"


def messages():
    """Every text constant of the package and the tools, with placeholders replaced by GAP."""
    found = []
    for folder in ("megatron_alum", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


@pytest.fixture(scope="module")
def said():
    return messages()


def is_said(quote, said):
    return re.search(".*".join(re.escape(part.strip()) for part in quote.split("...")), said) is not None


def test_quoted_errors_are_what_the_code_says(said):
    quotes = re.findall(r'"([^"]+)"', (DOCS / "troubleshooting.md").read_text().replace("\n", " "))
    assert len(quotes) > 20
    assert not [quote for quote in quotes if not is_said(quote, said)]
    assert not is_said("must be ... as in ..., but was ... instead", said)


def test_figures_of_the_kept_run():
    lines = (ROOT / "tests" / "golden" / "training" / "wikipedia_300.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    adversarial = [row for row in rows if row["phase"] == "alum"]
    ratio, gain, divergence = (
        _short(statistics.median(row[name] for row in adversarial)) for name in ("ascent_ratio", "kl_gain", "alum_kl")
    )
    risen = sum(row["kl_gain"] > 0 for row in adversarial)
    text = " ".join((DOCS / "choosing.md").read_text().split())
    assert (
        f"median of `ascent_ratio` over the adversarial phase is {ratio}, and `kl_gain` is positive in {risen} of "
        in text
    )
    assert f"of {len(adversarial)} rows, {gain} in the median where `alum_kl` is {divergence}." in text
    figures = (DOCS / "figures.md").read_text()
    assert f"| first iteration | {rows[0]['lm_loss']:.2f} |" in figures
    assert f"| mean of the last 20 | {statistics.fmean(row['lm_loss'] for row in rows[-20:]):.2f} |" in figures


def _short(value):
    return f"{value:.1e}".replace("e-0", "e-")
