"""Merge corpora that `megatron-alum preprocess` wrote with the same tokenizer into one corpus.

    megatron-alum merge --input 'data/part-*.json' --output-prefix data/wikipedia

Checksums of the parts are compared first. Shards of one input (--num-shards) must all be given, in order.
"""

from dataclasses import dataclass

from megatron_alum.config.cli import parse_config
from megatron_alum.config.places import AnyInput, OutputPrefix, check_places


@dataclass(frozen=True)
class MergeConfig:
    """Merging shards"""

    input: tuple[AnyInput, ...]
    """prefixes of the corpora in order, or globs of their .json files"""
    output_prefix: OutputPrefix
    """prefix of the merged corpus"""
    no_verify: bool = False
    """do not compare the checksums of the parts"""


def main() -> None:
    """Parse the command line, merge, print the counts."""
    config = parse_config(MergeConfig, description=__doc__ or "")
    check_places(config)
    from megatron_alum.data.preprocessing.merge import find_parts, merge_shards

    parts = find_parts(config.input)
    manifest = merge_shards(parts, config.output_prefix, verify=not config.no_verify)
    print(
        f"{config.output_prefix}: {len(parts)} corpora, {manifest['num_documents']:,} documents, "
        f"{manifest['num_sentences']:,} sentences, {manifest['num_tokens']:,} tokens"
    )
