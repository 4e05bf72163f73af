"""Megatron-LM from before megatron-core: its names and its orders of query, key and value, published models included.

The right value is what megatron-core's own BertModel predicts with the same weights; its state is written down in the
old layouts by hand.
"""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.stock_folder import find_stock_checkpoint
from tests.convert.models import VOCAB_SIZE, batch, hf_outputs, tokenizer_folder
from tests.convert.test_stock import ARGS, HEADS, HIDDEN, LOGITS_ATOL, TWO_STAGES, VIRTUAL, stages_of, stock_model
from tests.helpers.distributed import run_ranks

# What the modules were called: in 2020, from 2021 and from 2023 on.
NAMES = {
    "2020": {"encoder": "transformer", "self_attention": "attention", "norm": "layernorm"},
    "2021": {"encoder": "encoder", "self_attention": "self_attention", "norm": "layernorm"},
    "2023": {"encoder": "encoder", "self_attention": "self_attention", "norm": "norm"},
}
HEAD_SIZE = HIDDEN // HEADS


def reordered(tensor, version, num_heads):
    """Rows [n, 3, d] in the order of a checkpoint_version: row by row, by what each row is."""
    place = {}
    for row in range(len(tensor)):
        head, rest = divmod(row, 3 * HEAD_SIZE)
        which, channel = divmod(rest, HEAD_SIZE)
        place[row] = {
            0: which * num_heads * HEAD_SIZE + head * HEAD_SIZE + channel,  # all queries, all keys, all values
            1: (head * HEAD_SIZE + channel) * 3 + which,  # query, key, value of one channel side by side
        }.get(version, row)
    result = torch.empty_like(tensor)
    for row, target in place.items():
        result[target] = tensor[row]
    return result


def old_tree(state, year, version, num_heads):
    """`model` of an old file, from one part of a megatron-core state dict."""
    names = NAMES[year]
    tree, encoder, embedding, pooler, head = {}, {}, {}, {}, {}
    for name, value in state.items():
        if value is None:
            continue
        if match := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", name):
            old = {
                "input_layernorm": f"input_{names['norm']}",
                "pre_mlp_layernorm": f"post_attention_{names['norm']}",
                "self_attention.linear_qkv": f"{names['self_attention']}.query_key_value",
                "self_attention.linear_proj": f"{names['self_attention']}.dense",
                "mlp.linear_fc1": "mlp.dense_h_to_4h",
                "mlp.linear_fc2": "mlp.dense_4h_to_h",
            }[match[2]]
            value = reordered(value, version, num_heads) if old.endswith("query_key_value") else value
            encoder[f"layers.{match[1]}.{old}.{match[3]}"] = value
        elif name.startswith("encoder.final_layernorm."):
            encoder[f"final_{names['norm']}.{name.rsplit('.', 1)[1]}"] = value
        elif name.startswith("embedding."):
            embedding[name.split(".")[1]] = {"weight": value}
        elif name.startswith("pooler."):
            pooler[name.removeprefix("pooler.")] = value
        elif name.startswith("lm_head."):
            head[name.removeprefix("lm_head.").replace("layer_norm", names["norm"])] = value
        elif name == "output_layer.bias":
            head["bias"] = value
        elif name == "output_layer.weight":
            tree["word_embeddings_for_head"] = {"weight": value}
        else:
            tree.setdefault("binary_head", {})[name.removeprefix("binary_head.")] = value
    parts = {"embedding": embedding, names["encoder"]: encoder, "pooler": pooler}
    tree["language_model"] = {part: content for part, content in parts.items() if content}
    return {**tree, **({"lm_head": head} if head else {})}


def save_old(rank, world_size, folder, year, version, *, pipeline=None, with_args=True, zipped=True):
    """Save on this layout; returns the network's (MLM logits of real tokens, NSP logits)."""
    model = stock_model(world_size)
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    stages = [{"model": state}] if pipeline is None else stages_of(state, pipeline)
    for stage, content in enumerate(stages):
        parts = {name: old_tree(part, year, version, HEADS // world_size) for name, part in content.items()}
        target = Path(folder) / (f"mp_rank_{rank:02d}" + ("" if pipeline is None else f"_{stage:03d}"))
        target.mkdir(parents=True)
        content = {"iteration": 7, **parts}
        content |= {"args": argparse.Namespace(**old_args(year))} if with_args else {}
        content |= {"checkpoint_version": float(version)} if version else {}
        torch.save(content, target / "model_optim_rng.pt", _use_new_zipfile_serialization=zipped)
    tokens, types, mask = batch("megatron-bert")
    with torch.no_grad():
        mlm, nsp = model(tokens, mask.float(), types)
    return mlm[mask][:, :VOCAB_SIZE], nsp


def old_args(year):
    """The arguments of the time: no ffn_hidden_size in 2020, and other names."""
    kept = {
        name: ARGS[name] for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
    }
    if year == "2020":
        return {**kept, "layernorm_epsilon": 1e-5, "model_parallel_size": 1, "openai_gelu": False}
    return {**kept, "ffn_hidden_size": ARGS["ffn_hidden_size"], "layernorm_epsilon": 1e-5, "bert_binary_head": True}


def check_export(load, tmp_path, expected, **options):
    commands.to_hf(
        str(load), tmp_path / "hf", tokenizer=tokenizer_folder(tmp_path / "tokenizer"), verify=True, **options
    )
    mlm, nsp, _ = hf_outputs(transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "hf").eval())
    torch.testing.assert_close(mlm, expected[0], atol=LOGITS_ATOL, rtol=0)
    torch.testing.assert_close(nsp, expected[1], atol=LOGITS_ATOL, rtol=0)


LAYOUTS = {
    "2020, version 0": ("2020", 0, 1, None),
    "2020, version 0, two ranks": ("2020", 0, 2, None),
    "2021, version 1": ("2021", 1, 1, None),
    "2021, version 1, two ranks": ("2021", 1, 2, None),
    "2021, version 2, two stages": ("2021", 2, 1, TWO_STAGES),
    "2023, version 3": ("2023", 3, 1, None),
    "2023, version 3, two ranks, two stages of two virtual ones": ("2023", 3, 2, VIRTUAL),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_with_the_same_predictions(layout, tmp_path):
    year, version, tp, pipeline = LAYOUTS[layout]
    folder = tmp_path / "iter_0000007"
    expected = run_ranks(tp, save_old_with, str(folder), year, version, pipeline)[0]
    check_export(folder, tmp_path, expected)


def save_old_with(rank, world_size, folder, year, version, pipeline):
    return save_old(rank, world_size, folder, year, version, pipeline=pipeline)


def save_published(rank, world_size, folder):
    """As NVIDIA's 345M models are: a release of 2020 without arguments and version, in PyTorch's old file format."""
    return save_old(rank, world_size, folder, "2020", 0, with_args=False, zipped=False)


def test_a_published_model_is_read(tmp_path):
    run = tmp_path / "published"
    expected = run_ranks(1, save_published, str(run / "release"))[0]
    (run / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert find_stock_checkpoint(run) == run / "release"
    check_export(run, tmp_path, expected, num_attention_heads=HEADS)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["num_attention_heads"], config["intermediate_size"], config["layer_norm_eps"]) == (HEADS, 36, 1e-5)


def test_heads_of_a_model_without_arguments_are_asked_for(tmp_path):
    run_ranks(1, save_published, str(tmp_path / "release"))
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"--num-attention-heads must say how many heads .* stores no arguments"):
        commands.to_hf(str(tmp_path / "release"), tmp_path / "hf", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="--num-attention-heads must divide the 20 channels, but is 3 instead"):
        commands.to_hf(str(tmp_path / "release"), tmp_path / "hf", tokenizer=tokenizer, num_attention_heads=3)
    run_ranks(1, save_old_with, str(tmp_path / "iter_0000007"), "2020", 0, None)
    with pytest.raises(ValueError, match=r"--num-attention-heads must be 4 as in .*, but is 2 instead"):
        commands.to_hf(str(tmp_path / "iter_0000007"), tmp_path / "hf", tokenizer=tokenizer, num_attention_heads=2)


def edit(folder, change):
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


BAD = {
    "an unknown version": (lambda c: c.update(checkpoint_version=4.0), "`checkpoint_version` must be one of 0.0, 1.0"),
    "a tensor without a place": (
        lambda c: c["model"]["language_model"]["encoder"].update(
            {"layers.0.inter_attention.dense.bias": torch.ones(2)}
        ),
        r"also language_model.encoder.layers.0.inter_attention.dense.bias",
    ),
    "a GPT": (lambda c: c["model"].pop("lm_head"), "5 missing"),
    "squared ReLU": (lambda c: setattr(c["args"], "squared_relu", True), "`squared_relu` of .* must be False"),
    "LayerNorm of gamma + 1": (lambda c: setattr(c["args"], "apply_layernorm_1p", True), "`apply_layernorm_1p`"),
}


@pytest.mark.parametrize("name", BAD)
def test_another_model_is_refused_with_nothing_written(name, tmp_path):
    change, complaint = BAD[name]
    folder = tmp_path / "iter_0000007"
    run_ranks(1, save_old_with, str(folder), "2021", 2, None)
    edit(folder, change)
    with pytest.raises(ValueError, match=complaint):
        commands.to_hf(str(folder), tmp_path / "hf", tokenizer=tokenizer_folder(tmp_path / "tokenizer"))
    assert not (tmp_path / "hf").exists()
