"""Settings of megatron-alum finetune: what to train on, how, and which grid to search. ALUM's own flags override the
method's.

Flags bear the names of Hugging Face's example scripts where those have them. Lists (`--seeds 1 2 3`) span a grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from megatron_alum.config.alum import AlumConfig
from megatron_alum.config.custom_task import CustomTaskConfig

# What --alum-* can change in a method; r-drop has no ascent, none and freelb have no divergence.
ALUM_FLAGS_OF: dict[str, tuple[str, ...]] = {
    "none": (),
    "freelb": (),
    "r-drop": ("alpha", "perturb", "perturb_layer", "detach_targets"),
}


@dataclass(frozen=True)
class FinetuneDataConfig:
    """Task and data"""

    model: str
    """Hugging Face folder of the encoder to fine-tune (also what convert_checkpoint.py writes)"""
    output: str
    """folder of results.jsonl, predictions and the best model"""
    task: str | None = None
    """cola sst2 mrpc stsb qqp mnli qnli rte wnli ax snli scitail fever anli anli-all squad-v1.1 squad-v2 adv-squad swag
    hellaswag bc2gm ncbi-disease jnlpba custom; a finished folder's own with --evaluate-only and --predict-file"""
    data_dir: str = "."
    """folder of the task's official files, or the one above it"""
    tokenizer: str | None = None
    """tokenizer folder, if not the model's own"""
    max_train_samples: int | None = None
    """examples of the training set to use, the first so many after a shuffle with seed 0; all by default"""
    max_eval_samples: int | None = None
    """examples of each evaluated split to use, a fixed sample with its share of each file; all by default"""
    max_seq_length: int | None = None
    """tokens of the longest input; 512 by default, a finished folder's own where nothing is trained; lowered to what
    the model takes"""
    doc_stride: int = 128
    """tokens shared by neighbouring windows of a SQuAD context, at most a quarter of --max-seq-length"""
    max_query_length: int = 64
    """tokens of a SQuAD question, which is cut after them"""
    n_best_size: int = 20
    """candidate starts and ends of an answer per window"""
    max_answer_length: int = 30
    """longest answer, in tokens"""
    null_score_diff_threshold: float = 0.0
    """margin by which "no answer" must win in SQuAD v2.0"""
    train_file: str | None = None
    """training file of --task custom"""
    evaluate_only: bool = False
    """train nothing: evaluate --model, a finished folder, on every split whose files are there"""
    predict_file: str | None = None
    """train nothing: predict the rows of this file, which need no labels, with --model, a finished folder"""
    custom: CustomTaskConfig = field(default_factory=CustomTaskConfig)

    def __post_init__(self) -> None:
        """Raise ValueError for values that no run can use."""
        if self.evaluate_only and self.predict_file is not None:
            raise ValueError("--evaluate-only must be left out with --predict-file, but both are given.")
        if self.evaluate_only or self.predict_file is not None:
            if self.train_file is not None:
                raise ValueError(f"--train-file must be left out where nothing is trained, but is {self.train_file}.")
        elif self.task is None:
            raise ValueError("--task must be given, but is not.")
        elif self.task == "custom" and (self.custom.validation_file is None or self.train_file is None):
            raise ValueError("--train-file and --validation-file must be given with --task custom, but are not.")
        for name in (
            "max_train_samples",
            "max_eval_samples",
            "max_seq_length",
            "max_query_length",
            "n_best_size",
            "max_answer_length",
        ):
            _require_positive(name, getattr(self, name))
        if self.doc_stride < 0:
            raise ValueError(f"--doc-stride must be at least 0, but is {self.doc_stride} instead.")


@dataclass(frozen=True)
class FinetuneTrainingConfig:
    """Training"""

    method: Literal["none", "alum", "smart", "freelb", "r-drop"] = "none"
    """how the labels' loss is regularised"""
    alum: bool = False
    """short for --method alum"""
    bregman_weight: float = 0.0
    """weight of SMART's divergence from a moving average of the model; any method but freelb"""
    bregman_momentum: float | None = None
    """decay of that moving average per optimizer step; 0.99 by default"""
    seeds: tuple[int, ...] = (42,)
    """one run each"""
    learning_rate: tuple[float, ...] = (2e-5,)
    """peak learning rates to try"""
    per_device_train_batch_size: tuple[int, ...] = (32,)
    """batch sizes to try"""
    paper_grid: bool = False
    """the paper's search: learning rates 5e-6 8e-6 1e-5 2e-5, batches 16 32 64, 10 epochs"""
    num_train_epochs: float = 3.0
    """passes over the training set"""
    max_steps: int | None = None
    """optimizer steps instead of epochs"""
    per_device_eval_batch_size: int = 64
    """examples of an evaluation batch"""
    gradient_accumulation_steps: int = 1
    """micro-batches of an optimizer step"""
    optim: Literal["adam", "radam"] = "adam"
    """Adam or rectified Adam, both with decoupled weight decay"""
    weight_decay: float = 0.01
    """decoupled, none on biases and LayerNorm"""
    warmup_ratio: float = 0.1
    """share of the steps in which the learning rate rises; it falls linearly afterwards"""
    max_grad_norm: float = 1.0
    """clipping norm"""
    early_stopping_patience: int = 0
    """epochs without a better result on the development set before a run stops; 0 never stops early"""
    bf16: bool = False
    """bfloat16 mixed precision"""
    fp16: bool = False
    """float16 mixed precision"""
    torch_compile: bool = False
    """compile the model"""
    group_by_length: bool = True
    """put examples of similar length into a batch; their order stays random, see finetune/runs/batching.py"""
    logging_steps: int = 50
    """optimizer steps between log lines"""
    save_model: bool = True
    """keep the best model of all runs in OUTPUT/model"""

    def __post_init__(self) -> None:
        """Raise ValueError for values that no run can use."""
        for name in ("per_device_eval_batch_size", "gradient_accumulation_steps", "max_steps", "logging_steps"):
            _require_positive(name, getattr(self, name))
        for name in ("seeds", "learning_rate", "per_device_train_batch_size"):
            if not getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} must have at least one value, but has none.")
        if self.num_train_epochs <= 0:
            raise ValueError(f"--num-train-epochs must be above 0, but is {self.num_train_epochs} instead.")
        if self.early_stopping_patience < 0:
            raise ValueError(f"--early-stopping-patience must be at least 0, but is {self.early_stopping_patience}.")
        if not 0 <= self.warmup_ratio < 1:  # the Trainer takes 1 and more as a number of steps
            raise ValueError(f"--warmup-ratio must be at least 0 and below 1, but is {self.warmup_ratio} instead.")
        if self.alum and self.method not in ("none", "alum"):
            raise ValueError(f"--alum must not be combined with another --method, but is with {self.method}.")
        if self.bregman_weight < 0:
            raise ValueError(f"--bregman-weight must be at least 0, but is {self.bregman_weight} instead.")
        if self.bregman_weight > 0 and self.method == "freelb":
            raise ValueError(
                "--bregman-weight must be 0 with --method freelb, whose steps have no divergence, "
                f"but is {self.bregman_weight} instead."
            )
        if self.bregman_momentum is not None and self.bregman_weight == 0:
            raise ValueError("--bregman-momentum must come with --bregman-weight above 0, but that is 0.")
        if self.bregman_momentum is not None and not 0 <= self.bregman_momentum <= 1:
            raise ValueError(f"--bregman-momentum must be from 0 to 1, but is {self.bregman_momentum} instead.")
        if self.bf16 and self.fp16:
            raise ValueError("--bf16 and --fp16 must not be combined, but both are given. Choose one.")


@dataclass(frozen=True)
class AlumOverrides:
    """Settings of the method, where they differ from its preset"""

    FLAG_PREFIX: ClassVar[str] = "alum_"

    alpha: float | None = None
    """weight of the divergence"""
    epsilon: float | None = None
    """radius of the ball around the embeddings, which a step projects onto; normalize has none"""
    step_size: float | None = None
    """size of an ascent step"""
    noise_std: float | None = None
    """standard deviation of the random start"""
    num_ascent_steps: int | None = None
    """ascent steps K; 0 perturbs at random only"""
    projection: Literal["clamp", "normalize", "normalized_gradient"] | None = None
    """as in pre-training"""
    perturb: Literal["word", "encoder_input", "layer"] | None = None
    """word: the word embeddings; encoder_input: the output of the embedding module; layer: the hidden state after
    --alum-perturb-layer, of encoders that have a list of layers; those below run once"""
    perturb_layer: int | None = None
    """layer after which --alum-perturb layer perturbs, counted from 1 and below the number of layers"""
    dropout: Literal["independent", "shared"] | None = None
    """as in pre-training"""
    inner_divergence: Literal["kl", "symmetric"] | None = None
    """as in pre-training"""
    inner_reduction: Literal["sample", "batch"] | None = None
    """what is climbed: sample, each example's own divergence; batch, the mean over the batch, whose gradient falls as
    the batch grows"""
    detach_targets: bool | None = None
    """as in pre-training"""

    def __post_init__(self) -> None:
        """Raise ValueError for a value outside its range."""
        AlumConfig.finetuning(**self.given())

    def given(self) -> dict[str, Any]:
        """{field: value} of those that are set."""
        return _given(self)


@dataclass(frozen=True)
class FreeLbOverrides:
    """Settings of --method freelb, where they differ from its preset"""

    FLAG_PREFIX: ClassVar[str] = "freelb_"

    num_steps: int | None = None
    """forward and backward passes K of a batch; 3 by default"""
    step_size: float | None = None
    """length of an ascent step in the L2 norm of a sequence; 0.1 by default"""
    init_magnitude: float | None = None
    """scale of the uniform start before division by sqrt(tokens * hidden size); 0.1 by default"""
    max_norm: float | None = None
    """radius of the L2 ball of a sequence; 0, the default, does not project"""

    def __post_init__(self) -> None:
        """Raise ValueError for a value outside its range."""
        for name, value in self.given().items():
            least = 1 if name == "num_steps" else 0
            if not least <= value < math.inf:
                flag = f"--freelb-{name.replace('_', '-')}"
                raise ValueError(f"{flag} must be at least {least} and finite, but is {value} instead.")

    def given(self) -> dict[str, Any]:
        """{field: value} of those that are set."""
        return _given(self)


@dataclass(frozen=True)
class FinetuneConfig:
    """This run"""

    data: FinetuneDataConfig
    training: FinetuneTrainingConfig = field(default_factory=FinetuneTrainingConfig)
    alum: AlumOverrides = field(default_factory=AlumOverrides)
    freelb: FreeLbOverrides = field(default_factory=FreeLbOverrides)

    def __post_init__(self) -> None:
        """Raise ValueError for a flag that the method does not use."""
        method = "alum" if self.training.alum else self.training.method
        used = ALUM_FLAGS_OF.get(method)
        if used is not None and self.training.bregman_weight > 0:
            used = (*used, "detach_targets")  # of the divergence from the moving average
        unused = [f"alum_{name}" for name in self.alum.given() if used is not None and name not in used]
        if method != "freelb":
            unused += [f"freelb_{name}" for name in self.freelb.given()]
        if unused:
            flag = unused[0].replace("_", "-")
            raise ValueError(f"--{flag} must be left out where it has no effect, but is given with --method {method}.")


def _given(overrides: Any) -> dict[str, Any]:
    """{field: value} of a dataclass's fields that are not None."""
    return {f.name: value for f in fields(overrides) if (value := getattr(overrides, f.name)) is not None}


def _require_positive(name: str, value: int | None) -> None:
    """Raise unless `value` is None or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"--{name.replace('_', '-')} must be at least 1, but is {value} instead.")
