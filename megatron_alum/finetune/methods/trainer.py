"""`AlumTrainer`: Hugging Face's Trainer with ALUM, SMART, FreeLB or R-Drop in the training step.

    trainer = AlumTrainer(model=model, args=TrainingArguments(...), train_dataset=..., method="alum")
    trainer.train()

Everything else is the Trainer's: data loading, mixed precision, accelerate, gradient accumulation, checkpoints. With
method "none" or alpha 0 every operation is the same as there. The clean pass is the Trainer's own `compute_loss`, or
that of another Trainer behind this one: `class Both(AlumTrainer, Mine)`. The second pass starts from its embeddings, or
from the hidden state after a layer, on the unwrapped module inside the same graph, so one backward serves both. The
regularised loss is a mean per micro-batch, divided by the number of accumulation steps; the ascent climbs each example
separately. PEFT models are supported.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from megatron_alum.alum import AlumOutput, AlumRegularizer, Kernels, Samples
from megatron_alum.config.extras import require
from megatron_alum.finetune.methods.bregman import MovingAverage
from megatron_alum.finetune.methods.divergence import (
    SEVERAL_LABELS,
    Kind,
    comparable,
    kind_of,
    row_divergence,
    samples_of,
)
from megatron_alum.finetune.methods.embeddings import (
    CleanPass,
    EmbeddingSplit,
    Inputs,
    WholeModel,
    perturbable,
    without_labels,
)
from megatron_alum.finetune.methods.fast_dropout import fast_dropout
from megatron_alum.finetune.methods.freelb import freelb_backward
from megatron_alum.finetune.methods.presets import Method
from megatron_alum.finetune.methods.presets import method as preset
from megatron_alum.ops import NoiseKey, perturb_embeddings

# Keeps float16 gradients of a divergence near 1e-6 from vanishing; divided out again in float32.
HALF_PRECISION_GRADIENT_SCALE = 2.0**12


class AlumTrainer(Trainer):
    """A Trainer whose training loss is l(f(x), y) + alpha * l(f(x), f(x + delta)).

    `method` is a preset's name (a key of METHODS) or a `Method`; `kind` is found from the model's head
    unless given. Training logs contain alum_kl (without alpha), effective_perturbation, ascent_ratio, nonfinite and,
    where there is an ascent step, inner_kl_start, inner_kl_last and kl_gain. Any method other than none trains
    float32 weights: a 16-bit model is converted in place, with a warning.
    Raises: ValueError for sharded models (FSDP, DeepSpeed), reentrant activation checkpoints, multi-label problems
    (FreeLB accepts them), and a model that cannot run from x.
    """

    def __init__(self, *args: Any, method: str | Method = "alum", kind: Kind | None = None, **kwargs: Any) -> None:
        require("accelerate")
        self.method = method if isinstance(method, Method) else preset(method)
        self.average: MovingAverage | None = None
        super().__init__(*args, **kwargs)
        if not self.method.is_plain:
            self._check_surroundings()
        if self.model_init is None and not self.is_deepspeed_enabled:  # DeepSpeed keeps master copies
            keep_in_full_precision(self.model, self.method)
        if self.method.is_plain:
            return
        assert isinstance(self.model, nn.Module)
        if self.method.freelb is None:
            self.kind = kind or kind_of(self.model)
            self.regularizer = AlumRegularizer(
                self.method.config,
                Kernels(perturb_embeddings),
                divergence=row_divergence(self.kind),
                gradient_scale=HALF_PRECISION_GRADIENT_SCALE if self.args.fp16 else 1.0,
            )
        self.split = self._split_of(self.model, kind)
        self.model_accepts_loss_kwargs = False  # losses are means per micro-batch, as the divergence is
        self.statistics: dict[str, Tensor] = {}
        self.statistics_count = 0
        self.micro_step = (-1, 0)
        self.took_part: bool | None = None  # whether a step reached this `compute_loss`; None before the first step
        if self.method.bregman_weight > 0:
            self.average = MovingAverage(self.method.bregman_momentum)
            self.add_callback(self.average)

    def _split_of(self, model: nn.Module, kind: Kind | None) -> EmbeddingSplit | WholeModel:
        """How passes start from x; methods that never move x run the whole model if it cannot."""
        freelb, level = self.method.freelb is not None, self.method.config.level
        moves = freelb or (self.method.perturbs and self.method.regularizes)
        try:
            # FreeLB's only passes are those of the label loss, and a user's loss may call the model in any way.
            return EmbeddingSplit(model, level, kind, at_table=freelb and not self._has_the_trainers_loss())
        except ValueError:
            if moves or level != "word":
                raise
            return WholeModel(model)

    def _has_the_trainers_loss(self) -> bool:
        """Whether no class but AlumTrainer overrides `compute_loss`."""
        owners = [base for base in type(self).__mro__ if "compute_loss" in vars(base)]
        return owners == [AlumTrainer, Trainer]

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The Trainer's model, in float32 if the method needs it."""
        model = super().call_model_init(trial)
        keep_in_full_precision(model, self.method)
        return model

    def _check_surroundings(self) -> None:
        """Raise for ways of training that do not work with the method's passes."""
        name, level = self.method.name, self.method.config.level
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"`method` must be none when the model is sharded by FSDP or DeepSpeed, but is {name} instead. "
                "Use data parallelism."
            )
        if self.method.freelb is not None and level != "word":
            raise ValueError(
                f"--alum-perturb must be word with --method freelb, but is {self.method.config.perturb} instead."
            )
        assert isinstance(self.model, nn.Module)
        if (self.method.ascends or isinstance(level, int)) and _recomputes_reentrantly(self.model, self.args):
            reason = "whose ascent differentiates only in x" if self.method.ascends else "which takes x from a layer"
            raise ValueError(
                f"`gradient_checkpointing_kwargs` must have use_reentrant=False with method {name}, {reason}, "
                "but has use_reentrant=True instead."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; the moving average is read from the checkpoint's own folder, wherever that is."""
        if self.average is not None:
            elsewhere = isinstance(resume_from_checkpoint, (str, Path))
            self.average.resume_folder = Path(str(resume_from_checkpoint)) if elsewhere else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer; its internal call for a checkpoint also saves the moving average beside the weights."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.average is not None and _internal_call and output_dir is not None and self.args.should_save:
            self.average.save(Path(output_dir))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The label loss plus, in training, the method's divergences.

        Raises: ValueError if the `compute_loss` behind this one returns no outputs.
        """
        if self.method.is_plain or self.method.freelb is not None or not model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        self.took_part = True
        inputs, regularizer = dict(inputs), self.regularizer
        self._check_labels(inputs)
        shared = regularizer.dropout_state if self.method.config.dropout == "shared" else None
        with self.split.clean_pass(inputs, shared) as entered:
            result = super().compute_loss(
                model, entered.inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(
                "`compute_loss` must give (loss, outputs) with return_outputs=True, "
                f"but gives a {type(result).__name__} instead."
            )
        loss, outputs = result
        clean = comparable(outputs, self.kind, perturbable(inputs))
        samples = samples_of(entered.x, clean, self.kind, inputs.get("labels"))
        share = self._share_of_step()
        if self.method.regularizes and self.method.config.alpha > 0:
            out = self._divergence(entered, clean, inputs, samples)
            loss = loss + share * self.method.config.alpha * out.loss.to(loss.dtype)
        if self.average is not None:
            bregman = self._bregman(clean, inputs, samples)
            loss = loss + share * self.method.bregman_weight * bregman.to(loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def _share_of_step(self) -> float:
        """The factor that turns a mean over this micro-batch into its share of the optimizer step.

        The Trainer divides by the micro-batches of the step, except if the label loss has already been divided.
        """
        return 1.0 / self.current_gradient_accumulation_steps if self._loss_is_share() else 1.0

    def _loss_is_share(self) -> bool:
        """Whether the label loss is divided by a count over the whole optimizer step, as the Trainer decides."""
        said = self.loss_is_scaled_for_ga
        return said if said is not None else self.compute_loss_func is not None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *options: Any, **more: Any) -> Tensor:
        """The Trainer's step; FreeLB has its own, with a backward pass per ascent step."""
        if self.method.is_plain:
            return super().training_step(model, inputs, *options, **more)
        with self._dropout():
            self.split.model = self.accelerator.unwrap_model(model)  # removes DDP, except from a compiled model
            if self.method.freelb is None:
                loss = super().training_step(model, inputs, *options, **more)
                self._warn_if_left_out()
                return loss
            model.train()
            inputs = dict(self._prepare_inputs(inputs))
            assert isinstance(self.split, EmbeddingSplit)
            num_items = more.get("num_items_in_batch", options[0] if options else None)
            return freelb_backward(self, model, inputs, num_items, self.split, self.method.freelb)

    def _warn_if_left_out(self) -> None:
        """Warn once that a subclass's `compute_loss` bypasses the method."""
        if self.took_part is None:
            self.took_part = False
            warnings.warn(
                f"method {self.method.name} has no effect: compute_loss of {type(self).__name__} does not call "
                "super().compute_loss, where the divergence is added. Let it call that, or put your Trainer behind "
                "this one: class Both(AlumTrainer, Mine).",
                stacklevel=2,
            )

    def _dropout(self) -> AbstractContextManager[object]:
        """The fast dropout on a CPU; GPUs and torch.compile have their own."""
        on_cpu = self.args.device.type == "cpu" and not self.args.torch_compile
        return fast_dropout() if on_cpu else nullcontext()

    def labels_loss(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        """The Trainer's own label loss, without any divergence, as a share of the optimizer step."""
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, Tensor)
        return loss if self._loss_is_share() else loss / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean statistics since the last training log."""
        if not self.method.is_plain and "loss" in logs and self.statistics_count:
            means = {name: (total / self.statistics_count).item() for name, total in self.statistics.items()}
            logs = {**logs, **means}
            self.statistics, self.statistics_count = {}, 0
        super().log(logs, *args, **kwargs)

    def _check_labels(self, inputs: Inputs) -> None:
        """Raise for multi-label problems: a model assumes one for floating labels if its problem_type is not set."""
        labels = inputs.get("labels")
        if self.kind == "classification" and labels is not None and labels.is_floating_point():
            raise ValueError(SEVERAL_LABELS)

    def _divergence(self, entered: CleanPass, clean: Any, inputs: Inputs, samples: Samples) -> AlumOutput:
        """The divergence of the second pass, from the perturbed x of the clean one or, for R-Drop, from the same x."""
        x, mask, regularizer = entered.x, perturbable(inputs), self.regularizer

        def forward(x: Tensor) -> Any:
            outputs = self.split.forward(x, inputs, entered.noted, regularizer.dropout_state)
            return comparable(outputs, self.kind, mask)

        if not self.method.perturbs:
            second = forward(x)
            out = AlumOutput(regularizer.divergence(clean, second, samples), {}, torch.zeros_like(x), second)
        else:
            out = regularizer(
                x,
                clean,
                forward,
                mask=mask,
                noise_key=self._noise_key(x),
                samples=samples,
                parameters=self.split.model.parameters(),
                dropout_snapshot=entered.noted.dropout_state,
            )
        self._record({"alum_kl": out.loss, **out.stats})
        return out

    def _bregman(self, clean: Any, inputs: Inputs, samples: Samples) -> Tensor:
        """SMART's proximal term: divergence from the outputs of the moving average, which gets no gradient."""
        assert self.average is not None
        with torch.no_grad(), self.average.swapped_into(self.split.model):
            past = comparable(self.split.model(**without_labels(inputs)), self.kind, perturbable(inputs))
        loss = self.regularizer.divergence(past, clean, samples)
        self._record({"bregman_kl": loss})
        return loss

    def _noise_key(self, x: Tensor) -> NoiseKey:
        """A random start determined by seed, micro-batch since the start of training, process and row: resumable."""
        (batch, positions), device = x.shape[:2], x.device
        first = self.args.process_index * batch
        return NoiseKey(
            seed=self.args.seed,
            iteration=self._next_micro_batch(),
            sample_index=torch.arange(first, first + batch, device=device).repeat_interleave(positions),
            position=torch.arange(positions, device=device).repeat(batch),
            std=self.method.config.noise_std,
        )

    def noise_seed(self) -> int:
        """A seed for FreeLB's start, of this micro-batch and process."""
        count = self._next_micro_batch() * self.args.world_size + self.args.process_index
        return (self.args.seed * 1_000_003 + count) % 2**63

    def _next_micro_batch(self) -> int:
        """Number of this micro-batch since the start of training, by the Trainer's step: resuming keeps it."""
        step, micro = self.micro_step
        self.micro_step = (step, micro + 1) if step == self.state.global_step else (self.state.global_step, 0)
        step, micro = self.micro_step
        return step * self.args.gradient_accumulation_steps + micro

    def _record(self, stats: dict[str, Tensor]) -> None:
        """Add to the running sums, on the device."""
        self.statistics_count += "alum_kl" in stats or not self.method.regularizes
        for name, value in stats.items():
            self.statistics[name] = self.statistics.get(name, 0) + value.detach().float()


def keep_in_full_precision(model: nn.Module | None, method: Method) -> None:
    """Convert a model that is to be trained to float32 weights, with one warning; with method none, only warn.

    A 16-bit weight has 3 or 4 digits: at fine-tuning's learning rates its updates are rounded away, and so
    is a perturbation of 1e-5. Frozen weights count if the method perturbs what they compute.
    """
    if model is None:
        return
    half = [parameter for parameter in model.parameters() if parameter.dtype in (torch.float16, torch.bfloat16)]
    if not any(parameter.requires_grad or not method.is_plain for parameter in half):
        return
    dtype = str(half[0].dtype).removeprefix("torch.")
    remedy = "Load it with dtype=torch.float32; for speed, use bf16=True of TrainingArguments."
    if method.is_plain or getattr(model, "is_quantized", False):
        warnings.warn(
            f"the model trains in {dtype} weights, whose updates are mostly rounded away. {remedy}", stacklevel=3
        )
        return
    model.float()
    warnings.warn(f"the model's {dtype} weights are converted to float32 to be trained. {remedy}", stacklevel=3)


def _recomputes_reentrantly(model: nn.Module, args: TrainingArguments) -> bool:
    """Whether the arguments, or `model.gradient_checkpointing_enable` before them, ask for reentrant checkpoints."""
    if args.gradient_checkpointing:  # replaces what the model had
        options = args.gradient_checkpointing_kwargs
        return isinstance(options, dict) and bool(options.get("use_reentrant"))
    functions = [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]
    return any(getattr(function, "keywords", {}).get("use_reentrant") for function in functions)
