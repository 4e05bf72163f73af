"""Checkpoints as stock Megatron-LM writes them: its own BertModel in both formats and both key layouts, exported."""

import argparse
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.stock import read_stock_source
from megatron_alum.convert.stock_folder import find_stock_checkpoint
from megatron_alum.convert.to_hf import export_folder
from tests.convert.models import VOCAB_SIZE, batch, hf_outputs, tokenizer_folder
from tests.helpers.distributed import run_ranks

LOGITS_ATOL = 1e-5  # four float32 layers
NUM_LAYERS, HIDDEN, HEADS, FFN, POSITIONS, PADDED_VOCAB = 4, 20, 4, 36, 39, 256
ARGS = {
    "num_layers": NUM_LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": FFN,
    "max_position_embeddings": POSITIONS,
    "norm_epsilon": 1e-5,
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "bias_gelu_fusion": False,
    "params_dtype": torch.float32,
    "exit_signal": signal.SIGTERM,
    "data_path": [Path("corpus")],
}


def stock_model(tp, *, pair_head=True):
    """megatron-core's BertModel with its local spec, as Megatron-LM's pretrain_bert.py builds it."""
    from megatron_alum.parallel import initialize, seed_everything

    seed_everything(3, initialize(tensor_parallel_size=tp))
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        num_layers=NUM_LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        ffn_hidden_size=FFN,
        tensor_model_parallel_size=tp,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
    )
    model = BertModel(
        config,
        2 if pair_head else 0,
        bert_layer_local_spec,
        PADDED_VOCAB,
        POSITIONS,
        share_embeddings_and_output_weights=True,
        parallel_output=False,
        add_binary_head=pair_head,
    )
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if not getattr(parameter, "tensor_model_parallel", False):
                generator = torch.Generator().manual_seed(len(name))  # replicated parameters stay equal on all ranks
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(4.0)
    return model.eval()


def with_te_keys(state):
    """The names that the Transformer Engine spec gives: LayerNorms belong to the linear that follows."""
    names = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    for old, new in names.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return state


def part_of(state, layers, *, first, last):
    """What one (virtual) pipeline stage holds of a state dict: its layers counted from 0, embeddings, heads."""
    part = {}
    for name, value in state.items():
        match = re.match(r"encoder\.layers\.(\d+)\.(.*)", name)
        if match and int(match[1]) in layers:
            part[f"encoder.layers.{layers.index(int(match[1]))}.{match[2]}"] = value
        elif not match and (first if name.startswith("embedding.") else last):
            part[name] = value
    if last and not first:
        part["output_layer.weight"] = state["embedding.word_embeddings.weight"].clone()
    return {**part, "encoder.layers.0.mlp.linear_fc1._extra_state": None}


def stages_of(state, pipeline):
    """[content of each stage's file]: `model`, or `model0`, `model1` where `pipeline` has virtual stages."""
    last = max(layer for stage in pipeline for part in stage for layer in part)
    parts = [[part_of(state, part, first=0 in part, last=last in part) for part in stage] for stage in pipeline]
    return [
        {"model": stage[0]} if len(stage) == 1 else {f"model{i}": p for i, p in enumerate(stage)} for stage in parts
    ]


INSIDE = "torch_dist, arguments among the tensors"


def save_torch_dist(model, beside, folder, *, inside=False):
    """As the megatron-core installed does; `inside` as it does from 0.19 on, whichever is installed."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject

    rank = torch.distributed.get_rank()
    entry = {"common_state": ShardedObject("common_state", beside, (1,), (0,), replica_id=rank)} if inside else {}
    dist_checkpointing.save({"model": model, **beside, **entry}, folder)
    if inside and rank == 0:
        (Path(folder) / "common.pt").unlink(missing_ok=True)


def save_stock(rank, world_size, tp, folder, file_format, te_keys, pipeline=None):
    """Save on this layout; returns the stock network's (MLM logits of real tokens, NSP logits)."""
    from megatron.core.transformer.enums import AttnBackend

    model = stock_model(tp)
    args = argparse.Namespace(**ARGS, attention_backend=AttnBackend.auto)
    if file_format in ("torch_dist", INSIDE):
        if rank == 0:
            os.makedirs(folder)
        torch.distributed.barrier()
        beside = {"args": args, "iteration": 100}
        save_torch_dist(model.sharded_state_dict(), beside, folder, inside=file_format == INSIDE)
    else:
        state = with_te_keys(model.state_dict()) if te_keys else model.state_dict()
        stages = [{"model": state}] if pipeline is None else stages_of(state, pipeline)
        for stage, content in enumerate(stages):
            target = Path(folder) / (f"mp_rank_{rank:02d}" + ("" if pipeline is None else f"_{stage:03d}"))
            target.mkdir(parents=True)
            torch.save({"args": args, "iteration": 100, **content}, target / "model_optim_rng.pt")
    tokens, types, mask = batch("megatron-bert")
    with torch.no_grad():
        mlm, nsp = model(tokens, mask.float(), types)
    return mlm[mask][:, :VOCAB_SIZE], nsp


# The layers that each pipeline stage holds, in one part or in several virtual stages.
TWO_STAGES = [[[0, 1]], [[2, 3]]]
UNEVEN = [[[0]], [[1, 2]], [[3]]]
VIRTUAL = [[[0], [2]], [[1], [3]]]
# (format, Transformer Engine's keys, tensor-parallel size, pipeline stages). torch_dist has one key layout:
# megatron-core's local spec maps its LayerNorm names to Transformer Engine's when it saves.
LAYOUTS = {
    "torch_dist, two ranks": ("torch_dist", False, 2, None),
    f"{INSIDE}, two ranks": (INSIDE, False, 2, None),
    "torch, local keys": ("torch", False, 1, None),
    "torch, local keys, two ranks": ("torch", False, 2, None),
    "torch, Transformer Engine keys": ("torch", True, 1, None),
    "torch, Transformer Engine keys, two ranks": ("torch", True, 2, None),
    "torch, local keys, two stages": ("torch", False, 1, TWO_STAGES),
    "torch, Transformer Engine keys, two ranks, three stages": ("torch", True, 2, UNEVEN),
    "torch, local keys, two ranks, two stages of two virtual ones": ("torch", False, 2, VIRTUAL),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_with_the_same_predictions(layout, tmp_path):
    file_format, te_keys, tp, pipeline = LAYOUTS[layout]
    folder = tmp_path / "run" / "iter_0000100"
    folder.parent.mkdir()
    (folder.parent / "latest_checkpointed_iteration.txt").write_text("100")
    mlm, nsp = run_ranks(tp, save_stock, tp, str(folder), file_format, te_keys, pipeline)[0]
    found = find_stock_checkpoint(folder.parent)
    assert found == folder
    source = read_stock_source(found, tokenizer_folder(tmp_path / "tokenizer"))
    exported = export_folder(source, tmp_path / "hf")
    their_mlm, their_nsp, _ = hf_outputs(transformers.AutoModelForPreTraining.from_pretrained(exported).eval())
    torch.testing.assert_close(their_mlm, mlm, atol=LOGITS_ATOL, rtol=0)
    torch.testing.assert_close(their_nsp, nsp, atol=LOGITS_ATOL, rtol=0)
    assert json.loads((exported / "config.json").read_text())["layer_norm_eps"] == 1e-5
    assert len(transformers.AutoTokenizer.from_pretrained(exported)) == VOCAB_SIZE


def edited(rank_files, tmp_path, edit):
    """A copy of the checkpoint whose content went through `edit`."""
    folder = tmp_path / "iter_0000100"
    shutil.copytree(rank_files[0], folder)
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, path)
    return folder


class RunsCode:
    """What an attacker would put beside the weights."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_the_pickle_is_refused_and_not_run(rank_files, tmp_path):
    trap = tmp_path / "trapped"
    folder = edited(rank_files, tmp_path, lambda content: content.update(extra=RunsCode(str(trap))))
    with pytest.raises(ValueError, match=r"names (posix|nt)\.mkdir"):
        read_stock_source(folder, rank_files[1])
    assert not trap.exists()


EDITS = {
    "another depth": (lambda c: setattr(c["args"], "num_layers", 3), "must have 3 layers"),
    "another width": (lambda c: setattr(c["args"], "hidden_size", 24), "misshapen"),
    "no arguments": (lambda c: c.pop("args"), "--num-attention-heads must say how many heads"),
    "arguments that are none": (lambda c: c.update(args={"num_layers": 4}), "must be Megatron-LM's arguments"),
    "a size that is no number": (lambda c: setattr(c["args"], "num_layers", "4"), "`num_layers` .* positive number"),
    "no model": (lambda c: c.pop("model"), "under `model`"),
    "a GPT": (lambda c: c["model"].pop("lm_head.dense.weight"), r"1 missing \(lm_head.dense.weight\)"),
}


@pytest.mark.parametrize("name", EDITS)
def test_another_model_is_refused_with_nothing_written(rank_files, tmp_path, name):
    edit, complaint = EDITS[name]
    folder = edited(rank_files, tmp_path, edit)
    with pytest.raises(ValueError, match=complaint):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=rank_files[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000100"]


def test_needs_a_tokenizer(rank_files):
    with pytest.raises(ValueError, match="--tokenizer must name"):
        read_stock_source(rank_files[0], None)


@pytest.fixture(scope="module")
def stage_files(tmp_path_factory):
    """Two tensor-parallel ranks of two pipeline stages, and the tokenizer."""
    root = tmp_path_factory.mktemp("staged")
    run_ranks(2, save_stock, 2, str(root / "iter_0000100"), "torch", False, TWO_STAGES)
    return root / "iter_0000100", tokenizer_folder(root / "tokenizer")


def test_missing_ranks_and_stages_are_named(stage_files, tmp_path):
    folder = shutil.copytree(stage_files[0], tmp_path / "iter_0000100")
    assert sorted(path.name for path in folder.iterdir()) == [f"mp_rank_0{r}_00{s}" for r in (0, 1) for s in (0, 1)]
    shutil.rmtree(folder / "mp_rank_01_000")
    with pytest.raises(ValueError, match="2 tensor-parallel ranks and 2 pipeline stages, but lacks rank 1 stage 0"):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=stage_files[1])
    shutil.rmtree(folder / "mp_rank_01_001")
    shutil.rmtree(folder / "mp_rank_00_001")  # now it looks like a run without pipeline stages, but half a network
    with pytest.raises(ValueError, match="must have 4 layers as its configuration says, but has 2"):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=stage_files[1])
    assert not (tmp_path / "hf").exists()


def test_untied_output_weights_are_refused(stage_files, tmp_path):
    folder = shutil.copytree(stage_files[0], tmp_path / "iter_0000100")
    path = folder / "mp_rank_01_001" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    content["model"]["output_layer.weight"] += 1.0
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"`output_layer.weight` .* must equal `embedding.word_embeddings.weight`"):
        read_stock_source(folder, stage_files[1])


def test_the_fused_gelu_is_named_in_a_warning(rank_files, tmp_path):
    folder = edited(rank_files, tmp_path, lambda content: setattr(content["args"], "bias_gelu_fusion", True))
    with pytest.warns(UserWarning, match="tanh form of GELU"):
        read_stock_source(folder, rank_files[1])


def test_a_truncated_file_is_refused(rank_files, tmp_path):
    folder = tmp_path / "iter_0000100"
    shutil.copytree(rank_files[0], folder)
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_stock_source(folder, rank_files[1])
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ValueError, match=r"not a complete torch\.save file"):
        read_stock_source(folder, rank_files[1])
