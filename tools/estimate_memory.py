"""Memory and operations of a run, without building it: same as `megatron-alum estimate`."""

from megatron_alum.cli.estimate import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
