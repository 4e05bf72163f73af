"""Settings of megatron-alum finetune (what to train on, how, and which grid to search) and of megatron-alum attack.

The flags --alum-* override the method's preset. Files and columns of --task custom are read alike by both commands.
Flags have the names used in Hugging Face's example scripts, where those have them. Lists (`--seeds 1 2 3`) span a grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from megatron_alum.config.alum import AlumConfig
from megatron_alum.config.checks import (
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Share,
    ShareBelowOne,
    check_fields,
    flag_of,
)
from megatron_alum.config.places import AnyInput, InputFolder, OutputFolder
from megatron_alum.config.words import not_one_of

# What --alum-* can change in a method; r-drop has no ascent, none and freelb have no divergence.
ALUM_FLAGS_OF: dict[str, tuple[str, ...]] = {
    "none": (),
    "freelb": (),
    "r-drop": ("alpha", "perturb", "perturb_layer", "detach_targets"),
}


@dataclass(frozen=True)
class CustomTaskConfig:
    """Task custom

    A task in files of your own: .tsv with header, .csv, .jsonl, .json, .parquet; tags also one per line, spans as
    SQuAD.
    """

    kind: Literal["classification", "regression", "spans", "choice", "tags"] | None = None
    """kind of the task; by default a classification with --labels; otherwise the labels of the training file decide:
    numbers that are not all whole make it a regression, anything else a classification"""

    validation_file: AnyInput | None = None
    """validation file, the split dev"""
    test_file: AnyInput | None = None
    """test file, the split test"""
    text_column: str = "sentence"
    """text column"""
    text_pair_column: str | None = None
    """second text column"""
    label_column: str = "label"
    """label column"""
    labels: tuple[str, ...] = ()
    """class names, in the model's order; by default those of the training file, in alphabetical order"""

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown kind and for labels that no task can have."""
        check_fields(self)
        for name in self.labels:
            if self.labels.count(name) > 1:
                raise ValueError(f"--labels must name each class once, but has {name} {self.labels.count(name)} times.")
        if len(self.labels) == 1:
            raise ValueError(f"--labels must name two or more classes, but names only {self.labels[0]}.")
        if self.labels and self.kind not in (None, "classification"):
            raise ValueError(f"--labels must be left out with --kind {self.kind}, which has none, but are given.")


@dataclass(frozen=True)
class FinetuneDataConfig:
    """Task and data"""

    model: AnyInput
    """Hugging Face folder of the encoder to fine-tune (megatron-alum convert to-hf writes one)"""
    output: OutputFolder
    """folder of results.jsonl, predictions and the best model"""
    task: str | None = None
    """cola sst2 mrpc stsb qqp mnli qnli rte wnli ax snli scitail fever anli anli-all squad-v1.1 squad-v2 adv-squad swag
    hellaswag bc2gm ncbi-disease jnlpba custom; by default that of the finished folder with --evaluate-only and
    --predict-file"""
    data_dir: InputFolder = "."
    """folder of the task's official files, or the one above it"""
    tokenizer: AnyInput | None = None
    """tokenizer folder, if not the model's own"""
    max_train_samples: Count | None = None
    """number of training examples to use, the first ones after a shuffle with seed 0; all by default"""
    max_eval_samples: Count | None = None
    """number of examples of each evaluated split to use, a fixed sample with a proportional share of each file; all by
    default"""
    max_seq_length: Count | None = None
    """tokens of the longest input; 512 by default, or a finished folder's own if nothing is trained; at most what the
    model accepts"""
    doc_stride: CountOrZero = 128
    """tokens shared by neighbouring windows of a SQuAD context, at most a quarter of --max-seq-length"""
    max_query_length: Count = 64
    """tokens to which a SQuAD question is truncated"""
    n_best_size: Count = 20
    """candidate starts and ends of an answer per window"""
    max_answer_length: Count = 30
    """longest answer, in tokens"""
    null_score_diff_threshold: float = 0.0
    """margin by which "no answer" must win in SQuAD v2.0"""
    train_file: AnyInput | None = None
    """training file of --task custom"""
    evaluate_only: bool = False
    """train nothing: evaluate --model, a finished folder, on every split whose files are there"""
    predict_file: AnyInput | None = None
    """train nothing: predict the rows of this file, which need no labels, with --model, a finished folder"""
    custom: CustomTaskConfig = field(default_factory=CustomTaskConfig)

    def __post_init__(self) -> None:
        """Raise ValueError for values that no run can use."""
        check_fields(self)
        if self.evaluate_only and self.predict_file is not None:
            raise ValueError("--evaluate-only must be left out with --predict-file, but both are given.")
        if self.evaluate_only or self.predict_file is not None:
            if self.train_file is not None:
                raise ValueError(f"--train-file must be left out when nothing is trained, but is {self.train_file}.")
        elif self.task is None:
            raise ValueError("--task must be given, but is not.")
        elif self.task == "custom" and (self.custom.validation_file is None or self.train_file is None):
            raise ValueError("--train-file and --validation-file must be given with --task custom, but are not.")


@dataclass(frozen=True)
class FinetuneTrainingConfig:
    """Training"""

    method: Literal["none", "alum", "alum-normalized", "smart", "freelb", "r-drop"] = "none"
    """how the label loss is regularised"""
    alum: bool = False
    """short for --method alum"""
    bregman_weight: PositiveOrZero = 0.0
    """weight of SMART's divergence from a moving average of the model; any method but freelb"""
    bregman_momentum: Share | None = None
    """decay of that moving average per optimizer step; 0.99 by default"""
    seeds: tuple[int, ...] = (42,)
    """random seeds, one run each"""
    learning_rate: tuple[Positive, ...] = (2e-5,)
    """peak learning rates to try"""
    per_device_train_batch_size: tuple[Count, ...] = (32,)
    """batch sizes to try"""
    paper_grid: bool = False
    """the paper's search: learning rates 5e-6 8e-6 1e-5 2e-5, batches 16 32 64, 10 epochs; the paper's optimizer
    is --optim radam"""
    num_train_epochs: Positive = 3.0
    """passes over the training set"""
    max_steps: Count | None = None
    """optimizer steps instead of epochs"""
    per_device_eval_batch_size: Count = 64
    """examples of an evaluation batch"""
    gradient_accumulation_steps: Count = 1
    """micro-batches per optimizer step (gradient accumulation)"""
    optim: Literal["adam", "radam"] = "adam"
    """Adam or rectified Adam, both with decoupled weight decay"""
    weight_decay: PositiveOrZero = 0.01
    """decoupled weight decay; none on biases and LayerNorm"""
    warmup_ratio: ShareBelowOne = 0.1  # the Trainer takes 1 and more as a number of steps
    """share of the steps in which the learning rate rises; it falls linearly afterwards"""
    max_grad_norm: PositiveOrZero = 1.0
    """largest global L2 norm of the gradient; 0 turns clipping off"""
    early_stopping_patience: CountOrZero = 0
    """epochs without a better result on the development set before a run stops; 0 never stops early"""
    bf16: bool = False
    """bfloat16 mixed precision"""
    fp16: bool = False
    """float16 mixed precision"""
    torch_compile: bool = False
    """compile the model"""
    group_by_length: bool = True
    """put examples of similar length into a batch; the order of the batches stays random"""
    logging_steps: Count = 50
    """optimizer steps between log lines"""
    save_model: bool = True
    """keep the best model of all runs in OUTPUT/model"""

    def __post_init__(self) -> None:
        """Raise ValueError for values that no run can use."""
        check_fields(self)
        for name in ("seeds", "learning_rate", "per_device_train_batch_size"):
            if not getattr(self, name):
                raise ValueError(f"{flag_of(type(self), name)} must have at least one value, but has none.")
        if self.alum and self.method not in ("none", "alum"):
            raise ValueError(f"--alum must not be combined with another --method, but is with {self.method}.")
        if self.bregman_weight > 0 and self.method == "freelb":
            raise ValueError(
                "--bregman-weight must be 0 with --method freelb, whose steps have no divergence, "
                f"but is {self.bregman_weight} instead."
            )
        if self.bregman_momentum is not None and self.bregman_weight == 0:
            raise ValueError("--bregman-momentum must be given with --bregman-weight above 0, but that is 0.")
        if self.bf16 and self.fp16:
            raise ValueError("--bf16 and --fp16 must not be combined, but both are given. Choose one.")


@dataclass(frozen=True)
class AlumOverrides:
    """ALUM

    Options left out keep the values of --method's preset.
    """

    FLAG_PREFIX: ClassVar[str] = "alum_"

    alpha: float | None = None
    """weight of the divergence"""
    epsilon: float | None = None
    """radius of the ball around the embeddings onto which a step projects; unused with normalize"""
    step_size: float | None = None
    """size of an ascent step"""
    noise_std: float | None = None
    """standard deviation of the random start"""
    num_ascent_steps: int | None = None
    """ascent steps K; 0 perturbs at random only"""
    projection: Literal["clamp", "normalize", "normalized_gradient"] | None = None
    """how an ascent step ends: clamp to the ball (the paper); normalize, division by the token's largest value
    (released code); normalized_gradient, a step along the gradient divided in this way, then clamp (VAT, SMART)"""
    perturb: Literal["word", "encoder_input", "layer"] | None = None
    """word: the word embeddings; encoder_input: the output of the embedding module; layer: the hidden state after
    --alum-perturb-layer, for encoders that have a list of layers; the layers below run once"""
    perturb_layer: int | None = None
    """layer after which --alum-perturb layer perturbs, counted from 1 and below the number of layers"""
    dropout: Literal["independent", "shared"] | None = None
    """independent: each pass draws its own masks; shared: the adversarial passes reuse the clean pass's masks"""
    inner_divergence: Literal["kl", "symmetric"] | None = None
    """what the ascent climbs: KL(clean || adversarial), or that plus its reverse"""
    inner_reduction: Literal["sample", "batch"] | None = None
    """what is climbed: sample, each example's own divergence; batch, the mean over the batch, whose gradient falls as
    the batch grows"""
    detach_targets: bool | None = None
    """treat the target of each one-way divergence as a constant"""

    def __post_init__(self) -> None:
        """Raise ValueError for a value outside its range."""
        AlumConfig.finetuning(**self.given())

    def given(self) -> dict[str, Any]:
        """{field: value} of those that are set."""
        return _given(self)


@dataclass(frozen=True)
class FreeLbOverrides:
    """FreeLB"""

    FLAG_PREFIX: ClassVar[str] = "freelb_"

    num_steps: Count | None = None
    """forward and backward passes K of a batch; 3 by default"""
    step_size: PositiveOrZero | None = None
    """length of an ascent step in the L2 norm of a sequence; 0.1 by default"""
    init_magnitude: PositiveOrZero | None = None
    """scale of the uniform start before division by sqrt(tokens * hidden size); 0.1 by default"""
    max_norm: PositiveOrZero | None = None
    """radius of the L2 ball of a sequence; 0, the default, does not project"""

    def __post_init__(self) -> None:
        """Raise ValueError for a value outside its range."""
        check_fields(self)

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


@dataclass(frozen=True)
class AttackConfig:
    """This attack"""

    model: tuple[AnyInput, ...]
    """fine-tuned Hugging Face folders to compare, such as OUTPUT/model of megatron-alum finetune"""
    output: OutputFolder
    """folder of attack.jsonl and attack.png"""
    task: str | None = None
    """classification or multiple-choice task of the table, or custom; by default the first model's own"""
    data_dir: InputFolder = "."
    """folder of the task's official files, or the one above it"""
    split: str = "dev"
    """split to attack"""
    radii: tuple[PositiveOrZero, ...] = (0.0, 0.01, 0.02, 0.05, 0.1)
    """L-infinity radii around the word embeddings; 0 is the clean accuracy"""
    num_steps: Count = 10
    """gradient steps of each attack"""
    max_eval_samples: Count = 500
    """examples to attack, a fixed sample of the split"""
    max_seq_length: Count | None = None
    """tokens of the longest input; by default as in each model's training"""
    per_device_eval_batch_size: Count = 32
    """examples per batch"""
    seed: int = 0
    """seed of the random start"""
    word_attack: Literal["textfooler", "bae", "pwws", "deepwordbug"] | None = None
    """also replace words, by this recipe of the TextAttack library, which must be installed"""
    custom: CustomTaskConfig = field(default_factory=CustomTaskConfig)

    def __post_init__(self) -> None:
        """Raise ValueError for values that no attack can use."""
        check_fields(self)
        if self.task == "custom":
            self._check_own_file()
        if not self.model or not self.radii:
            raise ValueError("--model and --radii must have at least one value each, but one has none.")

    def _check_own_file(self) -> None:
        """Refuse --task custom without the file of the split that is attacked."""
        files = {
            "dev": ("--validation-file", self.custom.validation_file),
            "test": ("--test-file", self.custom.test_file),
        }
        if self.split not in files:
            raise ValueError(not_one_of("--split of --task custom", self.split, files))
        flag, path = files[self.split]
        if path is None:
            raise ValueError(
                f"{flag} must be given to attack --split {self.split} of --task custom, but is not. Name the file, or "
                "choose the other split by --split."
            )


def _given(overrides: Any) -> dict[str, Any]:
    """{field: value} of a dataclass's fields that are not None."""
    return {f.name: value for f in fields(overrides) if (value := getattr(overrides, f.name)) is not None}
