"""Pre-train BERT or RoBERTa, standard or with adversarial regularisation (ALUM).

    torchrun --nproc-per-node 2 -m megatron_alum.pretrain --data-path OUT --save DIR --model-size small \\
        --seq-length 128 --train-iters 1000 --global-batch-size 32 --tensor-model-parallel-size 2

Recipes: `--config examples/from_scratch.yaml` and the other files of that folder.
"""

from collections.abc import Mapping
from typing import Any

from megatron_alum.config.cli import parse_config
from megatron_alum.config.places import about, check_places
from megatron_alum.config.run import RunConfig


def options_of_start(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that --load's run was trained with, or the network that --init-from starts from; the `given`
    flags and YAML take precedence. Raises: ValueError for a --load that does not exist.
    """
    if given.get("load") is not None:
        from megatron_alum.training.resume import origin_of  # imports torch, which --help does not need

        stored = origin_of(given["load"]).options(given)
        if stored is not None:  # the folder that the run started from may be gone
            return stored
    if given.get("init_from") is None:
        return {}
    from megatron_alum.convert import model_flags_from_hf

    with about("--init-from"):
        return model_flags_from_hf(given["init_from"])


def main() -> None:
    """Parse the command line into a RunConfig, then train."""
    config = parse_config(RunConfig, description=__doc__ or "", infer=options_of_start)
    check_places(config)
    # After parsing: --help and refused options need neither torch nor megatron-core.
    from torch.distributed.elastic.multiprocessing.errors import record

    from megatron_alum.training.dry_run import dry_run
    from megatron_alum.training.loop import train

    record(dry_run if config.dry_run else train)(config)  # torchrun shows the first traceback of all ranks
