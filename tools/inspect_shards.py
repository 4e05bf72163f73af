"""Look into a corpus written by tools/preprocess_data.py: counts, statistics, documents as text, checksums.

    python tools/inspect_shards.py data/wiki --document 0 17 --verify

Exits with an error when the parts do not belong together, or with --verify when a checksum differs.
"""

import argparse
from typing import Any

from megatron_alum.config.cli import main_guard
from megatron_alum.data.shards import Shards, open_shards
from megatron_alum.data.statistics import describe, document_sentences
from megatron_alum.data.tokenizers import load_tokenizer

MAX_SENTENCES = 20
"""Sentences shown of a document."""


def main() -> None:
    """Parse the command line and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", help="output prefix of the corpus: path without .bin")
    parser.add_argument(
        "--document", type=int, nargs="*", default=[0], help="numbers of documents to show (default: 0)"
    )
    parser.add_argument("--verify", action="store_true", help="read everything and compare the SHA-256 sums")
    arguments = parser.parse_args()
    shards = open_shards(arguments.prefix, verify=arguments.verify)
    tokenizer = load_tokenizer(shards.tokenizer_dir)
    if arguments.verify:
        print(f"checksums of {len(shards.manifest['files'])} files: correct")
    for name, value in describe(shards, tokenizer).items():
        print(f"{name:>26}: {_readable(value)}")
    for verb in ("skipped", "repaired"):
        for reason, entry in shards.manifest[verb].items():
            print(f"{verb:>26}: {entry['count']:,} ({reason}; first: {', '.join(entry['examples'])})")
    for number in arguments.document:
        _show(shards, tokenizer, number)


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(item)}" for key, item in value.items())
    return (
        f"{value:,.4g}" if isinstance(value, float) and value < 1 else f"{value:,.0f}" if value != str(value) else value
    )


def _show(shards: Shards, tokenizer: Any, number: int) -> None:
    print(f"\ndocument {number}")
    for count, sentence in enumerate(document_sentences(shards, tokenizer, number)):
        if count == MAX_SENTENCES:
            print("  ...")
            return
        print(f"  {count}: {sentence}")


if __name__ == "__main__":
    main_guard(main)
