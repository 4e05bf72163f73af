"""Megatron-LM's checkpoints whose arguments or tensors show that they compute something else, or only seem to."""

import argparse
import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.stock import read_stock_source
from tests.convert.models import VOCAB_SIZE, batch, hf_outputs, tokenizer_folder
from tests.convert.test_stock import (
    ARGS,
    HEADS,
    HIDDEN,
    LOGITS_ATOL,
    NUM_LAYERS,
    PADDED_VOCAB,
    edited,
    stock_model,
)
from tests.helpers.distributed import run_ranks

# argument: a value that changes the function of the network, whatever the tensors
CHANGES_THE_FUNCTION = {
    "position_embedding_type": "rope",
    "use_rotary_position_embeddings": True,
    "add_position_embedding": False,
    "normalization": "RMSNorm",
    "apply_layernorm_1p": True,
    "apply_residual_connection_post_layernorm": True,
    "qk_layernorm": True,
    "openai_gelu": True,
    "squared_relu": True,
    "swiglu": True,
    "quick_geglu": True,
    "activation_func": torch.nn.functional.relu,
    "num_experts": 8,
    "multi_latent_attention": True,
    "window_size": (128, 0),
    "softmax_type": "off-by-one",
    "kv_channels": 7,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "spec": ["someones.layers", "spec"],
    "hybrid_override_pattern": "M*M*",
    "enable_mhc_connections": True,
    "use_mup": True,
}
# and values under which it is the one that we compute
CHANGES_NOTHING = {
    "onnx_safe": True,
    "apply_query_key_layer_scaling": True,
    "activation_func": torch.nn.functional.gelu,
    "num_experts": [1],
    "kv_channels": HIDDEN // HEADS,
    "spec": ["local"],
    "squared_relu": False,
    "group_query_attention": False,
    "num_query_groups": 1,
    "fp32_residual_connection": True,
}


@pytest.mark.parametrize("name", CHANGES_THE_FUNCTION)
def test_an_argument_that_changes_the_function_is_refused_by_name(rank_files, tmp_path, name):
    folder = edited(rank_files, tmp_path, lambda c: setattr(c["args"], name, CHANGES_THE_FUNCTION[name]))
    with pytest.raises(ValueError, match=f"`{name}` of .* must be .*, but is "):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=rank_files[1])
    assert not (tmp_path / "hf").exists()


def test_heads_that_share_keys_are_refused(rank_files, tmp_path):
    def edit(content):
        content["args"].group_query_attention, content["args"].num_query_groups = True, 2

    with pytest.raises(ValueError, match=r"`num_query_groups` of .* must be 4, but is 2 instead"):
        read_stock_source(edited(rank_files, tmp_path, edit), rank_files[1])


def test_arguments_that_change_nothing_are_taken(rank_files, tmp_path):
    folder = edited(rank_files, tmp_path, lambda c: vars(c["args"]).update(CHANGES_NOTHING))
    assert read_stock_source(folder, rank_files[1]).model.num_layers == NUM_LAYERS


UNKNOWN_TENSORS = (
    "encoder.layers.0.self_attention.q_layernorm.weight",
    "encoder.layers.3.mlp.router.weight",
    "rotary_pos_emb.inv_freq",
    "embedding.word_embeddings_projection.weight",
    "classifier.weight",
)


@pytest.mark.parametrize("name", UNKNOWN_TENSORS)
def test_a_tensor_without_a_row_is_refused_by_name(rank_files, tmp_path, name):
    folder = edited(rank_files, tmp_path, lambda c: c["model"].update({name: torch.ones(3)}))
    with pytest.raises(ValueError, match=f"but there are also {re.escape(name)}: "):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=rank_files[1])


def test_scaling_statistics_and_the_tied_copy_are_not_refused(rank_files, tmp_path):
    def edit(content):
        model = content["model"]
        model["encoder.layers.0.mlp.linear_fc1._extra_state"] = torch.zeros(4, dtype=torch.uint8)
        model["output_layer.weight"] = model["embedding.word_embeddings.weight"].clone()

    assert read_stock_source(edited(rank_files, tmp_path, edit), rank_files[1]).vocab_size == VOCAB_SIZE


def test_untied_output_weights_of_torch_dist_are_refused(tmp_path):
    folder = tmp_path / "iter_0000100"
    run_ranks(1, save_untied, str(folder))
    with pytest.raises(ValueError, match=r"`output_layer.weight` .* must equal `embedding.word_embeddings.weight`"):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=tokenizer_folder(tmp_path / "tokenizer"))


def save_untied(rank, world_size, folder):
    """torch_dist, with an output layer of its own, optimizer tensors beside it, and arguments that do not say so."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    state = stock_model(1).sharded_state_dict()
    state["output_layer.weight"] = ShardedTensor.from_rank_offsets(
        "output_layer.weight", torch.randn(PADDED_VOCAB, HIDDEN)
    )
    state["optimizer"] = ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.output_layer.weight", torch.ones(3))
    os.makedirs(folder)
    dist_checkpointing.save({"model": state, "args": argparse.Namespace(**ARGS), "iteration": 1}, folder)


@pytest.mark.parametrize("file_format", ["torch", "torch_dist"])
def test_a_model_without_a_sentence_pair_head_is_taken(file_format, tmp_path):
    folder = tmp_path / "run" / "iter_0000100"
    folder.parent.mkdir()
    mlm = run_ranks(1, save_without_pair_head, str(folder), file_format)[0]
    exported = tmp_path / "hf"
    commands.to_hf(str(folder), exported, tokenizer=tokenizer_folder(tmp_path / "tokenizer"), verify=True)
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["MegatronBertForMaskedLM"]
    their_mlm, _, _ = hf_outputs(transformers.AutoModelForMaskedLM.from_pretrained(exported).eval())
    torch.testing.assert_close(their_mlm, mlm, atol=LOGITS_ATOL, rtol=0)


def save_without_pair_head(rank, world_size, folder, file_format):
    """As --bert-no-binary-head trains: no token types, no pooler; returns the MLM logits of real tokens."""
    from megatron.core import dist_checkpointing

    model = stock_model(1, pair_head=False)
    args = argparse.Namespace(**ARGS, bert_binary_head=False)
    if file_format == "torch_dist":
        os.makedirs(folder)
        dist_checkpointing.save({"model": model.sharded_state_dict(), "args": args, "iteration": 100}, folder)
    else:
        target = Path(folder) / "mp_rank_00"
        target.mkdir(parents=True)
        torch.save({"args": args, "iteration": 100, "model": model.state_dict()}, target / "model_optim_rng.pt")
    tokens, _, mask = batch("megatron-bert")
    with torch.no_grad():
        mlm, _ = model(tokens, mask.float(), None)
    return mlm[mask][:, :VOCAB_SIZE]


@pytest.mark.parametrize(
    ("divisible_by", "parallel", "added", "fits"),
    [(128, 1, 0, True), (128, 2, 0, True), (64, 1, 0, False), (64, 2, 0, True), (64, 1, 61, True), (64, 1, 59, False)],
)
def test_the_tokenizer_must_pad_to_the_stored_rows(rank_files, tmp_path, divisible_by, parallel, added, fits):
    """131 entries pad to 256 rows where they are rounded up to 128 or more; extra ids are Megatron-LM's own."""

    def edit(content):
        vars(content["args"]).update(make_vocab_size_divisible_by=divisible_by, vocab_extra_ids=added)
        vars(content["args"]).update(tensor_model_parallel_size=parallel, padded_vocab_size=PADDED_VOCAB)

    folder = edited(rank_files, tmp_path, edit)
    if fits:
        read_stock_source(folder, rank_files[1])
    else:
        with pytest.raises(ValueError, match=r"--tokenizer must have 1\d\d to 256 entries, .* but has 131 instead"):
            read_stock_source(folder, rank_files[1])


def test_a_tokenizer_with_more_entries_than_rows_is_refused(rank_files, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(300))]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match=r"to 256 entries, .* but has 305 instead"):
        read_stock_source(rank_files[0], tmp_path / "larger")


def test_random_states_beside_the_weights_do_not_matter(rank_files, tmp_path):
    """What every stock checkpoint holds: Python's, NumPy's and torch's states, sets, dates."""
    import collections
    import datetime
    import random

    import numpy as np

    states = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
        "some": {1, 2},
        "counts": collections.defaultdict(list),
        "when": datetime.datetime(2021, 1, 1),
        "bytes": b"\x00\xff",
    }
    folder = edited(rank_files, tmp_path, lambda content: content.update(states))
    assert read_stock_source(folder, rank_files[1]).iteration == 100


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_a_builtin_that_runs_code_is_refused(rank_files, tmp_path, name):
    import builtins

    folder = edited(rank_files, tmp_path, lambda content: content.update(extra=getattr(builtins, name)))
    with pytest.raises(ValueError, match=f"names (builtins|__builtin__).{name}"):
        read_stock_source(folder, rank_files[1])
