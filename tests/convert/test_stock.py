"""Checkpoints as stock Megatron-LM writes them: its own BertModel in both formats and both key layouts, exported."""

import argparse
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.stock import find_stock_checkpoint, read_stock_source
from megatron_alum.convert.to_hf import export_folder
from tests.convert.models import VOCAB_SIZE, batch, hf_outputs, tokenizer_folder
from tests.helpers.distributed import run_ranks

LOGITS_ATOL = 1e-5  # two float32 layers
NUM_LAYERS, HIDDEN, HEADS, FFN, POSITIONS, PADDED_VOCAB = 2, 20, 4, 36, 39, 256
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


def stock_model(tp):
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
        2,
        bert_layer_local_spec,
        PADDED_VOCAB,
        POSITIONS,
        share_embeddings_and_output_weights=True,
        parallel_output=False,
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


def save_stock(rank, world_size, tp, folder, file_format, te_keys):
    """Save on this layout; returns the stock network's (MLM logits of real tokens, NSP logits)."""
    from megatron.core import dist_checkpointing
    from megatron.core.transformer.enums import AttnBackend

    model = stock_model(tp)
    args = argparse.Namespace(**ARGS, attention_backend=AttnBackend.auto)
    if file_format == "torch_dist":
        if rank == 0:
            os.makedirs(folder)
        torch.distributed.barrier()
        dist_checkpointing.save({"model": model.sharded_state_dict(), "args": args, "iteration": 100}, folder)
    else:
        state = model.state_dict()
        target = Path(folder) / f"mp_rank_{rank:02d}"
        target.mkdir(parents=True)
        content = {"args": args, "iteration": 100, "model": with_te_keys(state) if te_keys else state}
        torch.save(content, target / "model_optim_rng.pt")
    tokens, types, mask = batch("megatron-bert")
    with torch.no_grad():
        mlm, nsp = model(tokens, mask.float(), types)
    return mlm[mask][:, :VOCAB_SIZE], nsp


# (format, Transformer Engine's keys, tensor-parallel size). torch_dist has one key layout: megatron-core's local spec
# maps its LayerNorm names to Transformer Engine's when it saves.
LAYOUTS = {
    "torch_dist, two ranks": ("torch_dist", False, 2),
    "torch, local keys": ("torch", False, 1),
    "torch, local keys, two ranks": ("torch", False, 2),
    "torch, Transformer Engine keys": ("torch", True, 1),
    "torch, Transformer Engine keys, two ranks": ("torch", True, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_with_the_same_predictions(layout, tmp_path):
    file_format, te_keys, tp = LAYOUTS[layout]
    folder = tmp_path / "run" / "iter_0000100"
    folder.parent.mkdir()
    (folder.parent / "latest_checkpointed_iteration.txt").write_text("100")
    mlm, nsp = run_ranks(tp, save_stock, tp, str(folder), file_format, te_keys)[0]
    found = find_stock_checkpoint(folder.parent)
    assert found == folder
    source = read_stock_source(found, tokenizer_folder(tmp_path / "tokenizer"))
    exported = export_folder(source, tmp_path / "hf")
    their_mlm, their_nsp, _ = hf_outputs(transformers.AutoModelForPreTraining.from_pretrained(exported).eval())
    torch.testing.assert_close(their_mlm, mlm, atol=LOGITS_ATOL, rtol=0)
    torch.testing.assert_close(their_nsp, nsp, atol=LOGITS_ATOL, rtol=0)
    assert json.loads((exported / "config.json").read_text())["layer_norm_eps"] == 1e-5
    assert len(transformers.AutoTokenizer.from_pretrained(exported)) == VOCAB_SIZE


@pytest.fixture(scope="module")
def rank_files(tmp_path_factory):
    """A run folder in the torch format, tensor-parallel size 1, and its tokenizer."""
    root = tmp_path_factory.mktemp("stock")
    run_ranks(1, save_stock, 1, str(root / "iter_0000100"), "torch", False)
    return root / "iter_0000100", tokenizer_folder(root / "tokenizer")


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
    "rotary positions": (lambda c: setattr(c["args"], "position_embedding_type", "rope"), "learned_absolute"),
    "no arguments": (lambda c: c.pop("args"), "Megatron-LM's arguments"),
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


def test_needs_a_tokenizer_and_no_pipeline_stages(rank_files, tmp_path):
    with pytest.raises(ValueError, match="--tokenizer must name"):
        read_stock_source(rank_files[0], None)
    (tmp_path / "mp_rank_00_000").mkdir()
    with pytest.raises(ValueError, match="without pipeline parallelism"):
        find_stock_checkpoint(tmp_path)


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
    with pytest.raises(ValueError, match=r"no whole torch\.save file"):
        read_stock_source(folder, rank_files[1])
