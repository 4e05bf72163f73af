"""Compare two runs by their metrics: equal, first difference, largest difference of each column.

    python tools/compare_runs.py runs/a runs/b                          exit status 0 if equal, 1 if not
    python tools/compare_runs.py a/metrics.jsonl b/metrics.jsonl --tolerance 1e-4

Speeds are left out. Rows that only one run has are reported and do not count as a difference.
"""

import sys

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.report.compare import compare_metrics, describe_comparison, read_metrics


def main() -> None:
    """Print the comparison; exit 1 when the runs differ."""
    parser = Parser(description=__doc__)
    parser.add_argument("first", help="metrics.jsonl, or the folder of a run that holds it")
    parser.add_argument("second", help="the run to compare with; relative differences are relative to it")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest relative difference that counts as equal (default: 0)"
    )
    arguments = parser.parse_args()
    comparison = compare_metrics(
        read_metrics(arguments.first), read_metrics(arguments.second), tolerance=arguments.tolerance
    )
    if not comparison.num_rows:
        raise ValueError(f"{arguments.first} and {arguments.second} must have iterations in common, but have none.")
    print("\n".join(describe_comparison(comparison, tolerance=arguments.tolerance)))
    sys.exit(0 if comparison.first is None else 1)


if __name__ == "__main__":
    main_guard(main)
