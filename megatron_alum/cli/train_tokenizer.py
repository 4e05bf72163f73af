"""Train a vocabulary on raw text: WordPiece (BERT), byte-level BPE (RoBERTa) or unigram (SentencePiece).

    megatron-alum train-tokenizer --input wiki/ --output my-tokenizer --type wordpiece --vocab-size 30522 --case lower

writes a Hugging Face tokenizer folder for `megatron-alum preprocess --tokenizer`. Reads the same input as that command.
"""

import sys

from megatron_alum.config.cli import parse_config
from megatron_alum.config.places import check_places
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings


def main() -> None:
    """Parse the command line, train, print the result."""
    settings = parse_config(TrainTokenizerSettings, description=__doc__ or "")
    check_places(settings)
    from megatron_alum.data.preprocessing.train_tokenizer import shortfall, train_tokenizer

    tokenizer = train_tokenizer(settings)
    if (warning := shortfall(settings.vocabulary, len(tokenizer))) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{settings.vocabulary.output}: {settings.vocabulary.type} vocabulary of {len(tokenizer):,} entries")
