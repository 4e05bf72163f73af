"""A process of test_processes.py: train the toy classifier for three steps and save its weights from rank 0."""

import dataclasses

import torch

from megatron_alum.finetune.methods.presets import method
from megatron_alum.finetune.methods.trainer import AlumTrainer
from megatron_alum.finetune.runs.grid import exit_together
from tests.finetune.methods.test_trainer import BIG, arguments
from tests.finetune.toy import examples, tiny_model


def main(name: str, batch: str, output: str) -> None:
    """Dropout 0; ALUM's start depends on the row of the joint batch, FreeLB's is 0: the loss knows no process."""
    plan = method(name, **BIG)
    if plan.freelb is not None:
        plan = dataclasses.replace(plan, freelb=dataclasses.replace(plan.freelb, init_magnitude=0.0))
    model = tiny_model("classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings = {"per_device_train_batch_size": int(batch), "optim": "sgd", "lr_scheduler_type": "constant"}
    trainer = AlumTrainer(
        model=model, args=arguments(output, **settings), train_dataset=examples("classification"), method=plan
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({name: value.detach().clone() for name, value in model.named_parameters()}, f"{output}.pt")
    exit_together()
