"""The paper's tables with one's own results beside them: same as `megatron-alum report`."""

from megatron_alum.cli.report import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
