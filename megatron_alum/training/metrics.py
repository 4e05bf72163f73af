"""From device tensors to one row of metrics.jsonl, TensorBoard and Weights & Biases; values are fetched once per row.

metrics.jsonl holds one JSON object per row with exactly the keys of COLUMNS, null where a value does not exist (the
adversarial ones in the standard phase, those of sentence pairs without such an objective) or is not finite. Speed and
memory go to performance.jsonl, validation losses to validation.jsonl.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.checkpoint.agreement import reason
from megatron_alum.checkpoint.folder import write_durably
from megatron_alum.checkpoint.origin import ROWS_FILES, WANDB_FILE, Origin
from megatron_alum.checkpoint.rows import Rows
from megatron_alum.config.extras import require
from megatron_alum.config.run import RunConfig
from megatron_alum.objective.schedule import Phase
from megatron_alum.ops import perturbation_statistics
from megatron_alum.parallel import ProcessGroups
from megatron_alum.training.step import StepResult

COLUMNS = (
    "iteration",
    "phase",
    "lm_loss",
    "nsp_loss",
    "alum_kl",
    "alum_nsp_kl",
    "loss",
    "lr",
    "grad_norm",
    "mask_rate",
    "effective_perturbation",
    "ascent_ratio",
    "kl_gain",
    "tokens_per_second",
    "skipped",
)
METRICS_FILE, PERFORMANCE_FILE, VALIDATION_FILE = ROWS_FILES
_LOSSES = ("lm_loss", "nsp_loss", "alum_kl", "alum_nsp_kl", "kl_gain", "nonfinite")
_OF_BOTH_PHASES = ("lm_loss", "nsp_loss")
_SUMS, _NUM_SUMS = "perturbation_sums", 6
"""from which effective_perturbation and ascent_ratio are formed"""


class Interval:
    """What the iterations since the last row logged, on the device, and the counters of the whole run."""

    def __init__(self, groups: ProcessGroups, *, skipped: int = 0) -> None:
        """`skipped` is the number of skipped iterations before a resume."""
        self._groups = groups
        self.skipped = skipped
        self.consecutive_skips = 0
        self.grad_norm = float("nan")
        self._norms: list[Tensor] = []
        self._logged: list[dict[str, Tensor]] = []
        self._phases: list[Phase] = []

    def add(self, result: StepResult) -> None:
        """Add one iteration; no value is fetched."""
        self._norms.append(result.grad_norm)
        self._phases.append(result.phase)
        self._logged.append({name: value.double() for name, value in result.logged.items()})

    def count_skips(self) -> int:
        """Update `skipped`, `consecutive_skips` and `grad_norm` (of the last one) from the iterations since the last
        call; returns the longest run of skipped iterations that any of them was part of.
        """
        longest = self.consecutive_skips
        for norm in torch.stack(self._norms).tolist() if self._norms else []:
            skipped = not math.isfinite(norm)
            self.grad_norm, self.skipped = norm, self.skipped + skipped
            self.consecutive_skips = self.consecutive_skips + 1 if skipped else 0
            longest = max(longest, self.consecutive_skips)
        self._norms.clear()
        return longest

    def means(self) -> dict[str, float | None]:
        """Means over the interval's iterations and all ranks of what these logged, then reset. Collective.

        An iteration in which a value is not finite on some rank is left out of that value's mean; a mean over no
        iteration is None.
        """
        zeros = torch.zeros(_NUM_SUMS, dtype=torch.float64, device=self._groups.device)
        names = (*_LOSSES, _SUMS)
        # A rank whose micro-batches have no adversarial sequences logs no adversarial values.
        present = [any(name in logged for logged in self._logged) for name in names]
        rows = [
            torch.cat((torch.stack([logged.get(name, zeros[0]) for name in _LOSSES]), logged.get(_SUMS, zeros)))
            for logged in self._logged
        ]
        reduced = torch.cat((zeros.new_tensor(present), *rows))
        dist.all_reduce(reduced, group=self._groups.world)
        exists = dict(zip(names, (reduced[: len(names)] > 0).tolist(), strict=True))
        table = reduced[len(names) :].cpu().view(len(rows), len(_LOSSES) + _NUM_SUMS)
        means: dict[str, float | None] = {}
        for column, name in enumerate(_LOSSES):
            if exists[name]:
                values = [
                    row[column]
                    for row, phase in zip(table.tolist(), self._phases, strict=True)
                    if name in _OF_BOTH_PHASES or phase == "alum"
                ]
                kept = [value for value in values if math.isfinite(value)]
                # Tensor-parallel ranks hold equal losses, so the sum over all ranks counts each tp times; on all
                # pipeline stages but the last they are 0.
                means[name] = math.fsum(kept) / len(kept) / self._groups.tp_size if kept else None
        if exists[_SUMS]:
            # Sums over tokens are equal on tensor-parallel ranks, too, unless the tokens are split; ratios are
            # unaffected.
            sums = table[:, len(_LOSSES) :]
            statistics = perturbation_statistics(sums[sums.isfinite().all(1)].sum(0))
            for name in ("effective_perturbation", "ascent_ratio"):
                means[name] = finite(float(getattr(statistics, name)))
        self._logged, self._phases = [], []
        return means


def finite(value: float | None) -> float | None:
    """The value, or None (JSON null) for NaN and infinities, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


def metrics_row(
    iteration: int, result: StepResult, means: dict[str, float | None], *, alpha: float, **others: Any
) -> dict[str, Any]:
    """One row in the order of COLUMNS; `others` are grad_norm, mask_rate, tokens_per_second and skipped."""
    weights = {"lm_loss": 1.0, "nsp_loss": 1.0, "alum_kl": alpha, "alum_nsp_kl": alpha}
    terms = [
        None if (mean := means[name]) is None else weight * mean for name, weight in weights.items() if name in means
    ]
    loss = None if None in terms else sum(term for term in terms if term is not None)
    values = {
        **means,
        "iteration": iteration,
        "phase": result.phase,
        "loss": loss,
        "lr": result.learning_rate,
        **others,
    }
    return {name: values.get(name) for name in COLUMNS}


class JsonLines:
    """One .jsonl file, appended to and flushed row by row; a resume drops the rows after its iteration."""

    def __init__(self, path: Path, *, resumed_iteration: int) -> None:
        """Keep the rows up to `resumed_iteration` (none for 0) and open for appending; lines that are no rows are
        reported."""
        self._path = path
        with self._naming_the_file():
            found = Rows.read(path)
            if (complaint := found.complaint(path)) is not None:
                print(complaint, file=sys.stderr, flush=True)
            kept = found.up_to(resumed_iteration)  # those of iteration 0 are of no run
            write_durably(path, "".join(kept.lines if resumed_iteration else ()))
            self.last_kept = max((row["iteration"] for row in kept.values), default=0)
            self._stream = path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row. Raises: OSError naming the file."""
        data = json.dumps(row).encode() + b"\n"
        with self._naming_the_file():
            while data:  # a nearly full disk accepts only a part
                data = data[self._stream.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._path} could not be written: {reason(error)}. Continue from the last checkpoint with --load; "
                "rows past it are dropped then."
            ) from None


def _tell_gap(config: RunConfig, last_kept: int, resumed_iteration: int) -> None:
    """Say which iterations have no rows where a run goes on in its own folder; a branch of it begins with none."""
    logging, checkpoint = config.logging, config.checkpoint
    expected = resumed_iteration // logging.log_interval * logging.log_interval
    if checkpoint.load is None or checkpoint.save is None or last_kept >= expected:
        return
    if Origin.of(checkpoint.load).is_folder(checkpoint.save):
        print(
            f"WARNING: {Path(checkpoint.save) / METRICS_FILE} has no rows of the iterations {last_kept + 1} to "
            f"{resumed_iteration}, after which this run goes on: its curves lack them.",
            file=sys.stderr,
            flush=True,
        )


class Writers:
    """All outputs of rank 0; on other ranks every call does nothing."""

    def __init__(self, config: RunConfig, *, rank: int, resumed_iteration: int) -> None:
        """Open the files below --save and, if configured, TensorBoard and Weights & Biases."""
        self._files: dict[str, JsonLines] = {}
        self._tensorboard: Any = None
        self._wandb: Any = None
        if rank != 0 or config.checkpoint.save is None:
            return
        root = Path(config.checkpoint.save)
        for name in (METRICS_FILE, PERFORMANCE_FILE, VALIDATION_FILE):
            self._files[name] = JsonLines(root / name, resumed_iteration=resumed_iteration)
        _tell_gap(config, self._files[METRICS_FILE].last_kept, resumed_iteration)
        if config.logging.tensorboard_dir is not None:
            require("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(config.logging.tensorboard_dir, purge_step=resumed_iteration + 1)
        if config.logging.wandb_project is not None:
            self._wandb = _start_wandb(config, root, is_resumed=resumed_iteration > 0)

    def write(self, file: str, row: dict[str, Any]) -> None:
        """Append `row` to one of the files and show its numbers in the dashboards under the file's name."""
        if file not in self._files:
            return
        self._files[file].write(row)
        group = file.removesuffix(".jsonl")
        numbers = {f"{group}/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "iteration"}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, row["iteration"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["iteration"])

    def close(self) -> None:
        """Flush and close everything."""
        for file in self._files.values():
            file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config: RunConfig, root: Path, *, is_resumed: bool) -> Any:
    """The Weights & Biases run of this folder, continued on a resume.

    Raises: ValueError without the package, or where it refuses (not logged in).
    """
    from megatron_alum.config.cli import config_to_dict

    require("wandb")
    import wandb

    note = root / WANDB_FILE
    known = note.read_text(encoding="utf-8").strip() if is_resumed and note.is_file() else None
    options: dict[str, Any] = {
        "project": config.logging.wandb_project,
        "config": config_to_dict(config),
        "dir": str(root),
    }
    try:
        run = wandb.init(id=known, resume="allow" if known is not None else None, **options)
    except wandb.errors.Error as error:  # not logged in, no network, no such project
        said = " ".join(str(error).split())
        raise ValueError(
            f"--wandb-project {config.logging.wandb_project} could not be opened; Weights & Biases says: {said} Run "
            "`wandb login` or set WANDB_API_KEY, set WANDB_MODE=offline to keep the curves here, or leave the option "
            "out."
        ) from None
    write_durably(note, f"{run.id}\n")
    return run
