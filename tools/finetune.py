"""Fine-tuning and evaluation of an encoder: same as `megatron-alum finetune`."""

from megatron_alum.cli.finetune import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
