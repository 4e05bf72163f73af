"""The entry of pre-training for torchrun where the package is installed and no script is at hand:

torchrun --nproc-per-node 8 -m megatron_alum.pretrain --data-path OUT --save DIR ...
"""

from megatron_alum.cli.pretrain import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
