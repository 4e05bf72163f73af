"""What the ranks of the conversion tests run (module level, so that spawned workers can import it)."""

import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_alum.config.model import ModelConfig
from megatron_alum.convert import hf_vocab_size, load_hf_into_model, model_config_from_hf, model_flags_from_hf
from megatron_alum.convert.verify import without_padding
from megatron_alum.models import build_model
from megatron_alum.parallel import initialize, seed_everything
from tests.convert.models import VOCAB_SIZE, batch


def build(hf_dir, tp, *, load=True, dtype=torch.float32):
    """A network for a Hugging Face folder at tensor-parallel size `tp`, and the names of its fresh parameters."""
    groups = initialize(tensor_parallel_size=tp)
    seed_everything(1, groups)
    model = build_model(
        model_config_from_hf(hf_dir), vocab_size=hf_vocab_size(hf_dir), groups=groups, dtype=dtype, seed=9
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = load_hf_into_model(hf_dir, model) if load else []
    return model.eval(), fresh


@torch.no_grad()
def outputs(model):
    """As `models.hf_outputs`, the vocabulary gathered from the tensor-parallel group and unpadded."""
    inputs = without_padding(*batch(model.model_config.model_type), model.groups.device)
    hidden = model.encode(model.embed(inputs), inputs)
    logits, nsp = model.heads(hidden, inputs)
    parts = [torch.empty_like(logits) for _ in range(model.groups.tp_size)]
    dist.all_gather(parts, logits, group=model.groups.tp)
    return torch.cat(parts, -1)[:, : model.real_vocab_size], nsp, hidden.squeeze(1)


def outputs_after_import(rank, world_size, hf_dir, tp):
    model, fresh = build(hf_dir, tp)
    return outputs(model), fresh


def fresh_parameters(rank, world_size, hf_dir):
    """(parameters reported as fresh, parameters that the import changed, texts of the warnings)."""
    model, _ = build(hf_dir, 1, load=False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fresh = load_hf_into_model(hf_dir, model)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    return fresh, moved, [str(warning.message) for warning in caught]


def save_from_hf(rank, world_size, hf_dir, tp, root, run, tokenizer):
    """Write a checkpoint of the imported network as training does, on this layout; returns the network's outputs."""
    from megatron_alum.checkpoint.folder import FORMAT_VERSION
    from megatron_alum.checkpoint.load import model_sharded_state
    from megatron_alum.checkpoint.save import CheckpointContent, CheckpointSaver

    model, _ = build(hf_dir, tp)
    config = {
        "format_version": FORMAT_VERSION,
        "iteration": 7,
        "vocab_size": model.real_vocab_size,
        "padded_vocab_size": model.vocab_size,
        "model": asdict(model.model_config),
        "run": {**asdict(model.model_config), **run},
    }
    saver = CheckpointSaver(root, keep_last=1, in_background=False)
    saver.prepare()
    saver.save(
        7,
        CheckpointContent(
            sharded={"model": model_sharded_state(model)},
            rng={},
            config=config,
            tokenizer=None if tokenizer is None else Path(tokenizer),
        ),
    )
    saver.close()
    return outputs(model)


def outputs_of_checkpoint(rank, world_size, hf_dir, tp, checkpoint):
    """Outputs of a network loaded by megatron-core from a checkpoint folder."""
    from megatron_alum.checkpoint.load import load_model_weights

    model, _ = build(hf_dir, tp, load=False)
    load_model_weights(checkpoint, model)
    return outputs(model)


def outputs_after_start(rank, world_size, start, tokenizer, tp):
    """Outputs of a network started as --init-from starts one: its shape from the folder, then its weights."""
    groups = initialize(tensor_parallel_size=tp)
    seed_everything(1, groups)
    config = ModelConfig(**model_flags_from_hf(start), seq_length=24)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_hf_into_model(start, model, tokenizer_dir=tokenizer)
    return outputs(model.eval())
