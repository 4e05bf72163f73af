"""Models that cannot be converted: one sentence naming what is wrong, before anything is written."""

import json
import os
import pickle
import shutil

import pytest
import safetensors.torch
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.from_hf import check_same_vocabulary
from megatron_alum.convert.import_folder import import_folder
from tests.convert import ranks
from tests.convert.models import SIZES, edit_config, random_hf_model, save_hf_model, tokenizer_folder
from tests.helpers.distributed import run_ranks


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return save_hf_model("bert", tmp_path_factory.mktemp("hf") / "bert")


@pytest.fixture
def folder(bert_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(bert_folder, tmp_path / "hf")


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    edit(state)
    safetensors.torch.save_file(state, path)


class RunsCode:
    """What an attacker would put into a pickle."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def pickle_instead(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def gpt2_instead(folder):
    shutil.rmtree(folder)
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.bias"
BAD_FOLDERS = {
    "a GPT-2 folder": (gpt2_instead, "`model_type` .* must be one of megatron-bert, bert, roberta, but is 'gpt2'"),
    "relative positions": (
        lambda f: edit_config(f, position_embedding_type="relative_key"),
        "`position_embedding_type` .* must be 'absolute', but is 'relative_key'",
    ),
    "another activation": (lambda f: edit_config(f, hidden_act="gelu_new"), "`hidden_act` .* must be 'gelu'"),
    "a decoder": (lambda f: edit_config(f, is_decoder=True), "`is_decoder` .* must be False"),
    "untied output": (lambda f: edit_config(f, tie_word_embeddings=False), "`tie_word_embeddings` .* must be True"),
    "token types of another family": (lambda f: edit_config(f, type_vocab_size=1), "`type_vocab_size` .* must be 2"),
    "a size that is no number": (lambda f: edit_config(f, hidden_size="20"), "`hidden_size` .* positive number"),
    "a dropout of null": (
        lambda f: edit_config(f, hidden_dropout_prob=None),
        r"`hidden_dropout_prob` .* must be a number, but is None instead\. Write .* or remove the field",
    ),
    "an epsilon in quotes": (
        lambda f: edit_config(f, layer_norm_eps="1e-12"),
        "`layer_norm_eps` .* must be a number, but is '1e-12' instead",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "a torn config": (lambda f: (f / "config.json").write_text("{"), "must be JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "but has neither"),
    "truncated safetensors": (truncate, "must be a whole safetensors file"),
    "a pickle with code": (lambda f: pickle_instead(f, {"a": RunsCode(str(f / "trap"))}), "names code to run"),
    "a pickle of something else": (lambda f: pickle_instead(f, [1, 2]), "dictionary of tensors"),
    "an unknown tensor": (
        lambda f: edit_tensors(f, lambda s: s.update({"adapter.weight": torch.zeros(2, 20)})),
        r"1 unknown \(adapter.weight\)",
    ),
    "missing tensors": (
        lambda f: edit_tensors(f, lambda s: (s.pop(QUERY), s.pop("bert.pooler.dense.bias"))),
        rf"2 missing \({QUERY}, bert.pooler.dense.bias\)",
    ),
    "a misshapen tensor": (
        lambda f: edit_tensors(f, lambda s: s.update({QUERY: torch.zeros(19)})),
        rf"1 misshapen \({QUERY} \(19,\) instead of \(20,\)\)",
    ),
    "a vocabulary of another size": (lambda f: edit_config(f, vocab_size=130), r"misshapen .*\(131, 20\)"),
    "another depth": (lambda f: edit_config(f, num_hidden_layers=1), "16 unknown"),
    "a decoder that differs": (
        lambda f: edit_tensors(f, lambda s: s.update({"cls.predictions.decoder.weight": s[WORDS] + 1})),
        "must equal `bert.embeddings.word_embeddings.weight`",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_is_refused_and_nothing_written(name, folder, tmp_path):
    damage, complaint = BAD_FOLDERS[name]
    damage(folder)
    with pytest.raises(ValueError, match=complaint) as error:
        import_folder(str(folder), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    assert not (folder / "trap").exists()


def test_a_sharded_index_must_stay_in_its_folder(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {WORDS: "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must be beside it"):
        import_folder(str(folder), tmp_path / "run")


def test_a_missing_shard_is_named(folder, tmp_path):
    shutil.rmtree(folder)
    random_hf_model("bert").save_pretrained(folder, max_shard_size="20KB")
    victim = sorted(folder.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ValueError, match=victim.name):
        import_folder(str(folder), tmp_path / "run")


def test_neither_a_folder_nor_a_reachable_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "absent"), "no/such/name", "nobody/nothing"):
        with pytest.raises(ValueError, match="must be a model folder or the name of a hub repository"):
            import_folder(name, tmp_path / "run")


def test_outputs_are_never_written_over(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("precious")
    with pytest.raises(ValueError, match="--save must name a new or empty folder"):
        import_folder(str(folder), tmp_path / "run")
    assert (tmp_path / "run" / "something").read_text() == "precious"


def complaint_of(rank, world_size, hf_dir, tp):
    """What importing at this tensor-parallel size complains about (raising in a worker would cost a new pool)."""
    with pytest.raises(ValueError) as error:
        ranks.build(hf_dir, tp)
    return str(error.value)


def test_heads_must_divide_by_the_ranks(tmp_path):
    config = transformers.BertConfig(**{**SIZES, "num_attention_heads": 5})
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "hf")
    for complaint in run_ranks(2, complaint_of, str(tmp_path / "hf"), 2):
        assert "--num-attention-heads must be a multiple of" in complaint and "5" in complaint


def complaint_of_another_network(rank, world_size, hf_dir, changes):
    """What loading into a network built with other sizes complains about."""
    from dataclasses import replace

    from megatron_alum.convert import load_hf_into_model, model_config_from_hf
    from megatron_alum.models import build_model
    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=1)
    seed_everything(1, groups)
    changes = dict(changes)
    vocab_size = changes.pop("vocab_size", 131)
    config = replace(model_config_from_hf(hf_dir), **changes)
    model = build_model(config, vocab_size=vocab_size, groups=groups)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError) as error:
        load_hf_into_model(hf_dir, model)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    return str(error.value)


OTHER_NETWORKS = {
    "depth": ({"num_layers": 3}, "--num-layers must be 2 as in"),
    "heads": ({"num_attention_heads": 2}, "--num-attention-heads must be 4"),
    "positions": ({"max_position_embeddings": 40}, "--max-position-embeddings must be 39"),
    "architecture": ({"model_type": "megatron-bert"}, "--model-type must be bert"),
    "epsilon": ({"layernorm_epsilon": 1e-5}, "--layernorm-epsilon must be 1e-12"),
    "vocabulary": ({"vocab_size": 132}, "must have the 131 entries"),
}


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_a_network_of_other_sizes_is_refused(name, folder):
    changes, complaint = OTHER_NETWORKS[name]
    assert complaint in run_ranks(1, complaint_of_another_network, str(folder), changes)[0]


def test_a_tokenizer_with_other_ids_is_refused(folder, tmp_path):
    tokenizer_folder(folder)
    check_same_vocabulary(folder, tokenizer_folder(tmp_path / "same"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w1", "w0"]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="gives 'w1' the id 5 instead of 6"):
        check_same_vocabulary(folder, tmp_path / "other")


@pytest.fixture(scope="module")
def run_folder(bert_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    import_folder(str(bert_folder), root / "run")
    return root / "run"


def flip_a_byte(run):
    path = next((run / "iter_0000000").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_metadata(run, content):
    """Replace .metadata and its digest, as an attacker who prepared the folder would."""
    import hashlib

    folder = run / "iter_0000000"
    (folder / ".metadata").write_bytes(content)
    complete = json.loads((folder / "COMPLETE").read_text())
    complete["files"][".metadata"] = hashlib.sha256(content).hexdigest()
    (folder / "COMPLETE").write_text(json.dumps(complete))


BAD_RUNS = {
    "nothing there": (shutil.rmtree, "must hold a checkpoint"),
    "a damaged tensor file": (flip_a_byte, "it is damaged"),
    "an interrupted save": (lambda r: (r / "iter_0000000" / "COMPLETE").unlink(), "the save was interrupted"),
    "a table of contents with code": (
        lambda r: other_metadata(r, pickle.dumps(RunsCode(str(r / "trap")))),
        "which could run code",
    ),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_checkpoint_is_refused_and_nothing_written(name, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    damage, complaint = BAD_RUNS[name]
    damage(run)
    with pytest.raises(ValueError, match=complaint):
        commands.to_hf(str(run), tmp_path / "hf")
    assert not (tmp_path / "hf").exists() and not list(tmp_path.glob(".hf*")) and not (run / "trap").exists()
