"""What this machine has, and what to do about the rest: same as `megatron-alum doctor`."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None:  # nothing is installed yet: the package cannot be imported
    sys.exit("torch  absent\n       -> pip install torch==2.13.0, then pip install --no-build-isolation -e .")

from megatron_alum.cli.doctor import main
from megatron_alum.config.cli import main_guard

if __name__ == "__main__":
    main_guard(main)
