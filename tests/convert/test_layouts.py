"""Logits of Hugging Face and of our network agree at every tensor-parallel size, in both directions, across layouts."""

import json

import pytest
import torch
import transformers

from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.keys import ARCHITECTURES, expand_rows
from megatron_alum.convert.to_hf import export_folder
from tests.convert import ranks
from tests.convert.models import CASES, FULL, hf_outputs, random_hf_model, save_hf_model, tokenizer_folder
from tests.helpers.distributed import run_ranks

# Two layers in float32, logits of order 1: both sides add the same products in different orders.
LOGITS_ATOL = 1e-5


def assert_same_outputs(ours, theirs):
    """MLM, NSP and hidden states, where both have them (a fresh head has no counterpart)."""
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, atol=LOGITS_ATOL, rtol=0)


@pytest.mark.parametrize(
    ("name", "tp"), [*((name, 2) for name in CASES), *((name, tp) for name in FULL for tp in (1, 4))]
)
def test_import_gives_the_same_predictions(name, tp, tmp_path):
    folder = save_hf_model(name, tmp_path / "hf")
    results = run_ranks(tp, ranks.outputs_after_import, str(folder), tp)
    for ours, _ in results:
        assert_same_outputs(ours, hf_outputs(random_hf_model(name)))


MLM_HEAD = {
    *("lm_head.dense.weight", "lm_head.dense.bias", "lm_head.layer_norm.weight", "lm_head.layer_norm.bias"),
    "output_layer.bias",
}
NSP_HEAD = {"binary_head.weight", "binary_head.bias"}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
# name: (parameters that stay fresh, what the warning calls them)
FRESH = {
    "bert": (set(), ""),
    "roberta": (set(), ""),
    "bert-masked-lm": (POOLER | NSP_HEAD, "the pooler, the NSP head"),
    "bert-encoder": (MLM_HEAD | NSP_HEAD, "the MLM head, the NSP head"),
    "megatron-bert-encoder": (MLM_HEAD | NSP_HEAD, "the MLM head, the NSP head"),
    "roberta-encoder": (MLM_HEAD, "the MLM head"),
}


@pytest.mark.parametrize("name", FRESH)
def test_heads_that_the_folder_lacks_stay_fresh_and_are_named(name, tmp_path):
    folder = save_hf_model(name, tmp_path / "hf")
    [(fresh, moved, warned)] = run_ranks(1, ranks.fresh_parameters, str(folder))
    expected, titles = FRESH[name]
    assert set(fresh) == expected and not moved & expected
    named = [text for text in warned if "has no weights for" in text]
    if expected:
        assert len(named) == 1 and f"has no weights for {titles}: " in named[0]
        assert all(parameter in named[0] for parameter in expected)
    else:
        assert not named


# (saving ranks, its tensor-parallel size): TP alone, and TP with two data-parallel replicas.
@pytest.mark.parametrize(
    ("name", "world_size", "tp"),
    [*((name, 4, 2) for name in FULL), *((FULL[0], size, tp) for size, tp in ((1, 1), (2, 2), (4, 4), (2, 1)))],
)
def test_export_gives_the_same_predictions_whatever_layout_saved(name, world_size, tp, tmp_path):
    source = save_hf_model(name, tmp_path / "hf")
    arguments = (str(source), tp, str(tmp_path / "run"), {"objective": "nsp"}, None)
    ours = run_ranks(world_size, ranks.save_from_hf, *arguments)[0]
    exported = export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out")
    hf = CASES[name].model_class.from_pretrained(exported).eval()
    assert_same_outputs(ours, hf_outputs(hf))
    for parameter, value in random_hf_model(name).state_dict().items():
        assert torch.equal(hf.state_dict()[parameter], value), parameter


@pytest.mark.parametrize("name", FULL)
def test_a_checkpoint_of_four_ranks_loads_on_one_and_two(name, tmp_path):
    source = save_hf_model(name, tmp_path / "hf")
    saved = run_ranks(4, ranks.save_from_hf, str(source), 4, str(tmp_path / "run"), {}, None)[0]
    for tp in (1, 2):
        loaded = run_ranks(tp, ranks.outputs_of_checkpoint, str(source), tp, str(tmp_path / "run" / "iter_0000007"))
        assert_same_outputs(loaded[0], saved)


@pytest.mark.parametrize("name", FULL)
def test_a_run_may_start_from_a_folder_or_from_a_checkpoint(name, tmp_path):
    """--init-from: the shape and the weights of either, at another tensor-parallel size than saved."""
    source = save_hf_model(name, tmp_path / "hf")
    tokenizer = str(tokenizer_folder(source, roberta=name == "roberta"))
    saved = run_ranks(2, ranks.save_from_hf, str(source), 2, str(tmp_path / "run"), {}, tokenizer)[0]
    for start in (source, tmp_path / "run", tmp_path / "run" / "iter_0000007"):
        started = run_ranks(1, ranks.outputs_after_start, str(start), tokenizer, 1)[0]
        assert_same_outputs(started, saved)


def parameter_facts(rank, world_size, hf_dir, tp):
    """{name: (shape, split dimension)} of every parameter of this rank."""
    model, _ = ranks.build(hf_dir, tp, load=False)
    return {
        name: (tuple(p.shape), p.partition_dim if getattr(p, "tensor_model_parallel", False) else None)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", FULL)
def test_the_key_table_is_the_network(name, tmp_path):
    """Every parameter has its row, split where megatron-core splits it; every row has its parameter or is optional."""
    folder = save_hf_model(name, tmp_path / "hf")
    facts = run_ranks(2, parameter_facts, str(folder), 2)[1]
    rows = {row.megatron: row for row in expand_rows(ARCHITECTURES[name], 2)}
    assert set(facts) <= set(rows)
    assert {rows[extra].part for extra in set(rows) - set(facts)} <= {"pooler"}  # RoBERTa's, which no objective trains
    assert {key: split for key, (_, split) in facts.items()} == {key: rows[key].split for key in facts}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == name and transformers.AutoConfig.from_pretrained(folder).model_type == name
