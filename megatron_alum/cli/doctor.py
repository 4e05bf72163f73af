"""Prints what this machine offers to megatron_alum, and how to add what is missing.

    megatron-alum doctor

Exits with 1 when something required is missing or the network does not run one step, else with 0.
"""

import sys

from megatron_alum.config.parser import Parser


def main() -> None:
    """Report, self-test, exit code."""
    Parser(description=__doc__).parse_args()
    from megatron_alum.cli.findings import all_findings

    findings = all_findings()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.name:<{width}}  {finding.found}")
        if finding.advice:
            print(f"{'':<{width}}  -> {finding.advice}")
    sys.exit(1 if any(finding.required and finding.advice for finding in findings) else 0)
