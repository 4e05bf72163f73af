"""How well two sentence splitters agree on a text: shared sentence ends, and the places where they differ.

    python -m benchmarks.compare_splitters --input wiki/ --punkt-dir nltk_data --max-mb 5 --show 20

Line ends, which both treat as sentence ends, are not counted: only cuts inside lines.
"""

import itertools
from collections.abc import Iterator

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.data.preprocessing.cleaning import clean_lines
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.punkt import PunktSplitter
from megatron_alum.data.preprocessing.sentences import RuleSplitter
from megatron_alum.data.preprocessing.settings import InputSettings

CONTEXT_CHARS = 40


def cuts(spans: list[tuple[int, int]]) -> set[int]:
    """Ends of all sentences of a line but the last."""
    return {stop for _start, stop in spans[:-1]}


def compare(lines: Iterator[str], punkt: PunktSplitter) -> tuple[dict[str, int], Iterator[str]]:
    """({both, rule only, punkt only}: cuts, the differing places in words)."""
    rule = RuleSplitter()
    counts = {"both": 0, "rule only": 0, "punkt only": 0}
    places: list[str] = []
    for line in lines:
        ours, theirs = cuts(rule.spans(line)), cuts(punkt.spans(line))
        counts["both"] += len(ours & theirs)
        for name, alone in (("rule only", ours - theirs), ("punkt only", theirs - ours)):
            counts[name] += len(alone)
            for cut in sorted(alone):
                before, after = line[max(0, cut - CONTEXT_CHARS) : cut], line[cut : cut + CONTEXT_CHARS]
                places.append(f"{name:>10}: {before} |{after}")
    return counts, iter(places)


def main() -> None:
    """Parse the command line, compare, print."""
    parser = Parser(description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="text in any format the preprocessor reads")
    parser.add_argument("--format", default="auto", help="format of the input (default: auto)")
    parser.add_argument("--punkt-dir", required=True, help="folder of Punkt parameters (punkt_tab layout)")
    parser.add_argument("--max-mb", type=float, default=5.0, help="MB of text to compare on (default: 5)")
    parser.add_argument("--show", type=int, default=0, help="differing places to print (default: 0)")
    arguments = parser.parse_args()
    plan = InputPlan(InputSettings(tuple(arguments.input), format=arguments.format))
    lines = (line for text in plan.texts(int(arguments.max_mb * 1e6)) for line in clean_lines(text))
    counts, places = compare(lines, PunktSplitter(arguments.punkt_dir))
    both, ours, theirs = counts["both"], counts["rule only"], counts["punkt only"]
    if both + ours + theirs == 0:
        raise ValueError("--input must hold lines of several sentences, but holds none.")
    print(f"sentence ends inside lines: {both:,} of both, {ours:,} of the rules only, {theirs:,} of Punkt only")
    print(
        f"of the rules' ends Punkt has {both / max(1, both + ours):.2%}, "
        f"of Punkt's ends the rules have {both / max(1, both + theirs):.2%}, "
        f"agreement (F1) {2 * both / (2 * both + ours + theirs):.2%}"
    )
    for place in itertools.islice(places, arguments.show):
        print(place)


if __name__ == "__main__":
    main_guard(main)
