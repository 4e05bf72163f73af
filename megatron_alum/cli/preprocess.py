"""Turn raw text (Wikipedia dumps, extracted Wikipedia, JSON lines, parquet, plain text) into indexed shards for
training.

    megatron-alum preprocess --input wiki/ --output-prefix data/wikipedia --vocab-file vocab.txt --workers 8

writes data/wikipedia.bin, .idx (Megatron's layout: one sequence per sentence, one document per article), .json (counts,
checksums, settings, what was skipped) and data/wikipedia-tokenizer/. An interrupted run continues with --resume. The
summary on stderr says what was read, kept and skipped, and shows two of the resulting documents.
"""

import sys

from megatron_alum.config.cli import parse_config
from megatron_alum.config.places import check_places
from megatron_alum.data.preprocessing.settings import PreprocessSettings


def main() -> None:
    """Parse the command line, run, print a summary and the counts."""
    settings = parse_config(PreprocessSettings, description=__doc__ or "")
    check_places(settings)
    from megatron_alum.data.preprocessing.pipeline import preprocess
    from megatron_alum.data.shards.statistics import summary

    manifest = preprocess(settings)
    for line in summary(settings.run.output_prefix, manifest):
        print(line, file=sys.stderr)
    print(
        f"{settings.run.output_prefix}: {manifest['num_documents']:,} documents, "
        f"{manifest['num_sentences']:,} sentences, "
        f"{manifest['num_tokens']:,} tokens ({manifest['dtype']}, vocabulary {manifest['tokenizer']['vocab_size']:,})"
    )
