"""What a grid of runs shares: the task's row, the tokenizer, and every split read, subsampled and encoded once."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from megatron_alum.config.finetune import FinetuneConfig, FinetuneDataConfig
from megatron_alum.finetune.benchmarks.features import Encoder, surviving_share
from megatron_alum.finetune.benchmarks.loading import (
    GOLD_OF,
    WHOLE,
    Example,
    find_files,
    has_split,
    load_parts,
    load_split,
    raw_labels,
    tag_names,
)
from megatron_alum.finetune.benchmarks.squad import original_of
from megatron_alum.finetune.benchmarks.tasks import Task, custom_task, task_named
from megatron_alum.finetune.methods.divergence import Kind
from megatron_alum.finetune.runs.batching import longest_first
from megatron_alum.finetune.runs.grid import Prepared, Split, is_main_process
from megatron_alum.finetune.runs.models import (
    check_vocabulary,
    checked_folder,
    head_note,
    load_tokenizer,
    longest_input,
)

SUBSET_SEED = 0  # one subset for all runs of a comparison
LEAST_SURVIVING = 0.95  # of gold answers; with any tokenizer a few percent end inside a token
LONGEST = 512  # tokens, in the paper
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
MOST_CLASSES = 100  # most classes taken from a file; a column with more values is something else


def prepare(config: FinetuneConfig) -> Prepared:
    """Read and encode the training set and every evaluation split whose files are there.

    Raises: ValueError for missing or malformed files, naming them.
    """
    data = config.data
    task = find_task(data)
    checked_folder(data.model, "--model")
    tokenizer = load_tokenizer(data.tokenizer or data.model, task.kind)
    check_vocabulary(data.model, tokenizer)
    train = subset(load_split(task, data.data_dir, "train"), data.max_train_samples)
    names = evaluated_splits(task, data.data_dir)
    splits = {name: sampled_split(task, data.data_dir, name, data.max_eval_samples) for name in names}
    if not train:
        raise ValueError(f"train of {task.name} must hold examples, but its files have none.")
    tags = tag_names([*train, *splits["dev"]]) if task.kind == "tags" else ()
    note = head_note(data.model, task, tags)
    if note is not None and is_main_process():
        print(note)
    length = longest_input(data.model, tokenizer, data.max_seq_length or LONGEST)
    stride = min(data.doc_stride, length // 4)
    encoder = Encoder(tokenizer, task.kind, length, stride, tags, max_question_tokens=data.max_query_length)
    encoder = with_whole_gold(encoder, splits["dev"])
    encoded = [Split(name, examples, longest_first(encoder.encode(examples))) for name, examples in splits.items()]
    lengths = {"max_seq_length": length, "doc_stride": stride, "max_query_length": data.max_query_length}
    lengths["repairs"] = encoder.repairs
    return Prepared(task, tokenizer, encoder.encode(train), encoded, tags, lengths)


def with_whole_gold(encoder: Encoder, examples: Sequence[Example]) -> Encoder:
    """The encoder for spans and tags, with repairs if they let more of the gold survive encoding; warns with the share
    if it is less than LEAST_SURVIVING. Encoders of other kinds are returned unchanged.
    """
    gold = [example for example in examples if example.get(GOLD_OF.get(encoder.kind, ""))]
    if not gold:
        return encoder
    probe = sample(gold, min(500, len(gold)))
    share = surviving_share(probe, encoder.encode(probe))
    if share < 1:
        repaired = replace(encoder, repairs=True)
        better = surviving_share(probe, repaired.encode(probe))
        if better > share and (share < LEAST_SURVIVING or encoder.kind == "tags"):
            encoder, share = repaired, better
    if share < LEAST_SURVIVING:
        found, reason = {
            "spans": ("gold answers can be recovered from their own tokens", "whose offsets are off"),
            "tags": ("words inside entities have a token to be found by", "which drops the others"),
        }[encoder.kind]
        warnings.warn(
            f"{share:.1%} of the {found}: no model can score higher with this tokenizer, {reason}. Use another "
            "--tokenizer.",
            stacklevel=2,
        )
    return encoder


def find_task(data: FinetuneDataConfig) -> Task:
    """The table's row, or one made from the flags of --task custom and, where they leave it open, from the labels."""
    if data.task != "custom":
        return task_named(str(data.task))
    task = custom_task(data.custom, data.train_file)
    if data.custom.labels or data.custom.kind not in (None, "classification"):
        return task
    kind, names = found_labels(raw_labels(task, data.data_dir), data.custom.kind)
    if is_main_process():
        said = f"the classes {', '.join(names)}" if names else "a score: a regression"
        print(f"{data.train_file}: {data.custom.label_column} holds {said} (--labels and --kind say otherwise)")
    return custom_task(replace(data.custom, kind=kind, labels=names), data.train_file)


def found_labels(labels: Sequence[str], kind: Kind | None = None) -> tuple[Kind, tuple[str, ...]]:
    """(kind, class names) of a column: numbers that are not all whole are scores, anything else is classes.

    pandas writes whole numbers beside an empty cell as 1.0: their classes are named 1.
    Raises: ValueError for a single class, or too many values to be classes.
    """
    distinct = set(labels)
    numbers = all(NUMBER.fullmatch(label) for label in distinct)
    if kind is None and numbers and not all(float(label).is_integer() for label in distinct):
        return "regression", ()
    distinct = {label.partition(".")[0] if WHOLE.fullmatch(label) else label for label in distinct}
    if not 2 <= len(distinct) <= MOST_CLASSES:
        raise ValueError(
            f"--label-column must hold from 2 to {MOST_CLASSES} classes, but holds {len(distinct)} different values. "
            "Use --labels to name them, or --kind regression for scores."
        )
    return "classification", tuple(sorted(distinct, key=lambda name: (float(name) if numbers else 0.0, name)))


def evaluated_splits(task: Task, data_dir: str) -> list[str]:
    """dev first, then every other split whose files exist."""
    others = [name for name in task.files if name not in ("train", "dev") and has_split(task, data_dir, name)]
    return ["dev", *others]


def subset(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` examples of a fixed shuffle, or all in their order."""
    if limit is None or limit >= len(examples):
        return examples
    return random.Random(SUBSET_SEED).sample(examples, limit)


def sampled_split(task: Task, data_dir: str, name: str, limit: int | None) -> list[Example]:
    """`limit` examples of a split, in their order, or all: a proportional share from each of its files (ANLI's three
    rounds)."""
    parts = load_parts(task, data_dir, name)
    if not any(parts):
        raise ValueError(
            f"{name} of {task.name} must hold examples, but {find_files(task, data_dir, name)[0]} has none."
        )
    if name.startswith("add_") and limit is not None:
        return whole_questions([example for part in parts for example in part], limit)
    return [example for part, share in zip(parts, shares(parts, limit), strict=True) for example in sample(part, share)]


def whole_questions(examples: list[Example], limit: int) -> list[Example]:
    """A fixed random choice of Adversarial SQuAD's questions with all their variants, which count as one question:
    about `limit` examples.
    """
    sizes = Counter(original_of(example["id"]) for example in examples)
    chosen: set[str] = set()
    for original in random.Random(SUBSET_SEED).sample(list(sizes), len(sizes)):
        if not chosen or sizes[original] <= limit:
            chosen.add(original)
            limit -= sizes[original]
    return [example for example in examples if original_of(example["id"]) in chosen]


def shares(parts: Sequence[Sequence[Example]], limit: int | None) -> list[int]:
    """How many examples of each part, in proportion to its size, `limit` in total."""
    sizes = [len(part) for part in parts]
    if limit is None or limit >= sum(sizes):
        return sizes
    ends = [sum(sizes[: i + 1]) * limit // sum(sizes) for i in range(len(sizes))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def sample(examples: list[Example], count: int) -> list[Example]:
    """A fixed random choice of `count` examples, in their order."""
    chosen = random.Random(SUBSET_SEED).sample(range(len(examples)), count)
    return [examples[index] for index in sorted(chosen)]
