"""Shards written apart into one corpus: same as `megatron-alum merge`."""

from megatron_alum.cli.merge import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
