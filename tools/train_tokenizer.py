"""A vocabulary from raw text: same as `megatron-alum train-tokenizer`."""

from megatron_alum.cli.train_tokenizer import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
