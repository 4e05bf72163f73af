"""Raw text into shards for training: same as `megatron-alum preprocess`."""

from megatron_alum.cli.preprocess import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
