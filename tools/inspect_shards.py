"""Counts, documents and training samples of shards: same as `megatron-alum inspect`."""

from megatron_alum.cli.inspect import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
