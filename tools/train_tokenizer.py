"""Train a vocabulary on raw text: WordPiece (BERT), byte-level BPE (RoBERTa) or unigram (SentencePiece).

    python tools/train_tokenizer.py --input wiki/ --output my-tokenizer --type wordpiece --vocab-size 30522 --case lower

writes a Hugging Face tokenizer folder for tools/preprocess_data.py --tokenizer. Reads everything that tool reads.
"""

from megatron_alum.config.cli import main_guard, parse_config
from megatron_alum.data.train_tokenizer import TrainTokenizerSettings, train_tokenizer


def main() -> None:
    """Parse the command line, train, say what came out."""
    settings = parse_config(TrainTokenizerSettings, description=__doc__ or "")
    tokenizer = train_tokenizer(settings)
    print(f"{settings.vocabulary.output}: {settings.vocabulary.type} vocabulary of {len(tokenizer):,} entries")


if __name__ == "__main__":
    main_guard(main)
