"""How a fine-tuned classifier withstands attacks: same as `megatron-alum attack`."""

from megatron_alum.cli.attack import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
