"""Small pre-training runs for the tests: a corpus of real prose, and `launch`, which trains on several gloo ranks."""

import contextlib
import io
import json
import pydoc_data.topics
import random
import resource
from collections.abc import Callable
from pathlib import Path

from megatron_alum.cli.pretrain import options_of_start
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from tests.data.preprocessing.corpora import prepare, write_jsonl
from tests.helpers.distributed import run_ranks

NUM_DOCUMENTS = 40
"""articles of the test corpus: documentation text that every CPython ships"""
TINY = {
    "num-layers": 2,
    "hidden-size": 32,
    "num-attention-heads": 4,
    "seq-length": 48,
    "micro-batch-size": 2,
    "global-batch-size": 8,
    "train-iters": 20,
    "lr": 1e-3,
    "save-interval": 0,
    "eval-interval": 0,
    "progress-bar": "false",
    "prefetch-batches": 2,
}
"""a network that takes milliseconds per step"""
EXACT = {"hidden-dropout": 0.0, "attention-dropout": 0.0, "alum-epsilon": 0.05, "alum-noise-std": 0.05}
"""for comparing layouts: at the paper's 1e-5 rounding alone changes the divergence by 1 %"""
ASCENT = {"alum_step_size": 0.5, "alum_epsilon": 0.1, "alum_noise_std": 0.05}
"""an ascent that moves delta as far as its random start"""


def build_corpus(folder: Path) -> str:
    """Shards of NUM_DOCUMENTS articles with a spelling vocabulary of about 120 entries; returns the prefix."""
    texts = [topic for topic in pydoc_data.topics.topics.values() if len(topic) > 400][:NUM_DOCUMENTS]
    source = write_jsonl(folder / "topics.jsonl", [text[:3000] for text in texts])
    prepare(folder, source, output_prefix=str(folder / "topics"))
    return str(folder / "topics")


def build_synthetic_corpus(folder: Path) -> str:
    """Shards of 60 articles from a fixed random grammar: the same text in every Python version, for golden curves."""
    rng = random.Random(7)
    nouns, verbs = ("cat", "dog", "mat", "it", "he", "she"), ("sat", "ran", "was", "and then ran")
    sentence = lambda: f"the {rng.choice(nouns)} {rng.choice(verbs)} on the {rng.choice(nouns)} {rng.randint(1, 99)}."  # noqa: E731
    articles = [" ".join(sentence() for _ in range(rng.randint(5, 40))) for _ in range(60)]
    prepare(folder, write_jsonl(folder / "synthetic.jsonl", articles), output_prefix=str(folder / "synthetic"))
    return str(folder / "synthetic")


def arguments(prefix: str, save: Path | str | None, **options: object) -> list[str]:
    """A command line: TINY and the given options, underscores for dashes."""
    given = {**TINY, **{name.replace("_", "-"): value for name, value in options.items()}}
    given = {"data-path": prefix, **({"save": save} if save is not None else {}), **given}
    return [
        word
        for name, value in given.items()
        for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


def launch(world_size: int, prefix: str, save: Path, **options: object) -> list[dict]:
    """Train on `world_size` gloo ranks and return the rows of metrics.jsonl."""
    return launch_prepared(world_size, prefix, save, train_quietly, **options)


def launch_prepared(world_size: int, prefix: str, save: Path, fn: Callable, **options: object) -> list[dict]:
    """`launch` with another function per rank. Raises: the error that rank 0 raised."""
    refusals = run_ranks(world_size, fn, arguments(prefix, save, **options))
    if refusals[0] is not None:
        raise refusals[0]
    assert not any(refusals), refusals
    return read_rows(save)


def train_quietly(rank: int, world_size: int, argv: list[str]) -> Exception | None:
    """One rank of a run; returns its error, so that the pool of workers survives."""
    from megatron_alum.parallel import shutdown
    from megatron_alum.training.loop import train

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train(parse_config(RunConfig, argv, infer=options_of_start))
    except (ValueError, OSError) as error:
        shutdown()  # a failed run leaves its groups to the end of its process, which here continues
        return type(error)(str(error))
    return None


def dry_run_output(rank: int, world_size: int, argv: list[str]) -> str:
    """What one rank of a dry run prints."""
    from megatron_alum.training.dry_run import dry_run

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        dry_run(parse_config(RunConfig, argv))
    return output.getvalue()


def train_with_small_files(rank, world_size, argv):
    """A rank that cannot write files beyond 20 kB: the kernel refuses as on a full disk or over quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def adversarial_setup(argv: list[str]):
    """(config, state, a micro-batch of the run's first 8 samples, their counts), with weights four times as large as
    fresh ones, with which every divergence would drown in rounding."""
    import torch

    from megatron_alum.data.sampling.loader import draw
    from megatron_alum.objective.micro_batch import batch_plan, load_all
    from megatron_alum.parallel import initialize
    from megatron_alum.training.state import build_state

    config = parse_config(RunConfig, [*argv, "--micro-batch-size", "8", "--global-batch-size", "8"])
    tp, split = config.parallel.tensor_model_parallel_size, config.parallel.sequence_parallel
    groups = initialize(tensor_parallel_size=tp, sequence_parallel=split, timeout_seconds=60)
    state = build_state(config, groups)
    drawn = draw(state.datasets.train, batch_plan(config, groups), 0)
    with torch.no_grad():
        for parameter in state.network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    (micro,) = load_all(drawn.micro_batches, config, groups.device, is_adversarial=True)
    return config, state, micro, drawn.counts


def train_and_keep_stderr(rank: int, world_size: int, argv: list[str]) -> Exception | None:
    """One rank of a run whose stderr goes to the file stderr-RANK beside the run."""
    path = Path(argv[argv.index("--save") + 1] + f"-stderr-{rank}")
    with path.open("w") as stream, contextlib.redirect_stderr(stream):
        return train_quietly(rank, world_size, argv)


def read_rows(save: Path, name: str = "metrics.jsonl") -> list[dict]:
    """The rows of one of the run's files."""
    return [json.loads(line) for line in (Path(save) / name).read_text().splitlines()]


def without_timing(rows: list[dict]) -> list[dict]:
    """The rows without values that depend on a clock."""
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def largest_difference(rows: list[dict], expected: list[dict], names: tuple[str, ...]) -> dict[str, float]:
    """{name: largest relative difference}; both None is equal, one None infinite."""
    worst = dict.fromkeys(names, 0.0)
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in names:
            a, b = row[name], other[name]
            if (a is None) != (b is None):
                worst[name] = float("inf")
            elif a is not None:
                worst[name] = max(worst[name], abs(a - b) / max(abs(b), 1e-30))
    return worst
