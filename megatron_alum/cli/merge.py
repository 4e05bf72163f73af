"""Join corpora written by `megatron-alum preprocess` with one tokenizer into one corpus.

    megatron-alum merge --input 'data/part-*.json' --output-prefix data/wiki

Checksums of the parts are compared first. Shards of one input (--num-shards) must all be given, in order.
"""

import argparse


def main() -> None:
    """Parse the command line, merge, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="prefixes of the corpora in order, or globs of .json")
    parser.add_argument("--output-prefix", required=True, help="prefix of the joined corpus")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the checksums of the parts")
    arguments = parser.parse_args()
    from megatron_alum.data.preprocessing.merge import find_parts, merge_shards

    parts = find_parts(arguments.input)
    manifest = merge_shards(parts, arguments.output_prefix, verify=not arguments.no_verify)
    print(
        f"{arguments.output_prefix}: {len(parts)} corpora, {manifest['num_documents']:,} documents, "
        f"{manifest['num_sentences']:,} sentences, {manifest['num_tokens']:,} tokens"
    )
