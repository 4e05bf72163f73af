"""Checkpoint to Hugging Face folder and back: same as `megatron-alum convert`."""

from megatron_alum.cli.convert import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
