"""examples/folders.md, cell by cell: each kind of folder, built as its makers write it, given to each command.

The page is the table of expectations: what it says is what is tested, and a kind without a builder fails.
"""

import json
import re
import types
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from megatron_alum.config.model import ModelConfig
from megatron_alum.convert import commands, hf_vocab_size, load_hf_into_model, model_flags_from_hf
from megatron_alum.convert.verify import single_rank_model
from megatron_alum.data.tokenizers.bare_vocabulary import has_tokenizer
from megatron_alum.data.tokenizers.folder import write_folder
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from tests.convert.models import SIZES, VOCAB_SIZE, save_hf_model, tokenizer_folder
from tests.convert.test_bare_vocabulary import WORDPIECE, model_folder
from tests.convert.test_legacy import save_published
from tests.convert.test_stock import HEADS, save_stock
from tests.helpers.distributed import run_ranks
from tests.training.runs import launch

PAGE = Path(__file__).resolve().parents[2] / "examples" / "folders.md"
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if line[:1] == "|"]
COMMANDS = ROWS[0][1:]
CELLS = [(row[0], command, cell) for row in ROWS[2:] for command, cell in zip(COMMANDS, row[1:], strict=True)]


def hf(folder, **options):
    tokenizer_folder(folder)
    return save_hf_model("bert", folder, **options)


def pickled(folder, *, shards=0):
    """Weights as torch.save writes them, in one file or in `shards` with an index."""
    hf(folder)
    state = transformers.BertForPreTraining.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    if not shards:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = sorted(state)
    weight_map = {name: f"pytorch_model-{i % shards:05d}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def without_weights(folder, files, *, keep_config=True):
    hf(folder)
    (folder / "model.safetensors").unlink()
    if not keep_config:
        (folder / "config.json").unlink()
    for name in files:
        (folder / name).write_bytes(b"{}")
    return folder


def with_head(folder, model_class):
    tokenizer_folder(folder)
    model_class(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    return folder


def no_model_type(folder):
    hf(folder)
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sentencepiece(folder):
    save_hf_model("bert", folder)
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    return folder


def imported(folder):
    commands.from_hf(str(hf(folder / "source")), folder / "run")
    return folder / "run"


def exported(folder):
    commands.to_hf(str(imported(folder)), folder / "export")
    return folder / "export"


def gpt2(folder):
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def stock(folder, file_format):
    run_ranks(1, save_stock, 1, str(folder), file_format, False)
    return folder


def published(folder):
    run_ranks(1, save_published, str(folder / "release"))
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    return folder


def empty(folder):
    folder.mkdir()
    return folder


def file(folder):
    folder.write_bytes(b"weights")
    return folder


BUILDERS = {
    "import (what from-hf wrote)": imported,
    "export (what to-hf wrote)": exported,
    "Hugging Face model": hf,
    "sharded safetensors": lambda f: hf(f, max_shard_size="20KB"),
    "pytorch_model.bin": pickled,
    "sharded pytorch_model.bin": lambda f: pickled(f, shards=3),
    "vocab.txt alone": lambda f: model_folder(f, next(iter(WORDPIECE))),
    "vocab.json and merges.txt alone": lambda f: model_folder(f, "roberta"),
    "SentencePiece model alone": sentencepiece,
    "no tokenizer": lambda f: save_hf_model("bert", f),
    "no model_type in config.json": no_model_type,
    "classification head": lambda f: with_head(f, transformers.BertForSequenceClassification),
    "token-classification head": lambda f: with_head(f, transformers.BertForTokenClassification),
    "encoder without heads": lambda f: with_head(f, transformers.BertModel),
    "PEFT adapter": lambda f: without_weights(
        f, ["adapter_config.json", "adapter_model.safetensors"], keep_config=False
    ),
    "TensorFlow weights": lambda f: without_weights(f, ["tf_model.h5"]),
    "Google's TensorFlow release": lambda f: without_weights(
        f, ["bert_config.json", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"], keep_config=False
    ),
    "Flax weights": lambda f: without_weights(f, ["flax_model.msgpack"]),
    "another architecture (GPT-2)": gpt2,
    "Megatron-LM, torch_dist": lambda f: stock(f, "torch_dist"),
    "Megatron-LM, a file a rank": lambda f: stock(f, "torch"),
    "Megatron-LM before megatron-core": published,
    "tokenizer alone": tokenizer_folder,
    "empty folder": empty,
    "no such path": lambda f: f,
    "a file": file,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, prefix):
    """kind -> its folder, built once."""
    root = tmp_path_factory.mktemp("folders")

    @cache
    def run():
        launch(1, prefix, root / "run", train_iters=1, save_interval=1)
        return root / "run"

    @cache
    def build(kind):
        if kind in ("run of pre-training", "one iteration of a run"):
            return run() if kind.startswith("run") else run() / "iter_0000001"
        return BUILDERS[kind](root / re.sub(r"\W+", "-", kind))

    return build


def to_hf(path, scratch):
    is_stock = "Megatron-LM" in path.name
    options = {"tokenizer": tokenizer_folder(scratch / "tokenizer"), "num_attention_heads": HEADS} if is_stock else {}
    commands.to_hf(str(path), scratch / "out", **options)
    assert (scratch / "out" / "model.safetensors").is_file()


def from_hf(path, scratch):
    commands.from_hf(str(path), scratch / "out")
    assert (scratch / "out" / "iter_0000000" / "COMPLETE").is_file()


def init_from(path, scratch):
    """As pre-training does: the network's shape from the folder, then its weights, then the shards' tokenizer."""
    config = ModelConfig(**model_flags_from_hf(path), seq_length=24)
    shards = tokenizer_folder(scratch / "tokenizer")
    if has_tokenizer(path):
        shards = scratch / "shards"
        write_folder(TokenizerSource(folder=path), shards)
    elif list(path.glob("**/tokenizer")):
        shards = next(path.glob("**/tokenizer"))
    with single_rank_model(config, hf_vocab_size(path)) as model:
        load_hf_into_model(path, model, tokenizer_dir=shards)


def load(path, scratch):
    from megatron_alum.parallel import initialize
    from megatron_alum.parallel.groups import shutdown
    from megatron_alum.training.resume import find_resume

    config = types.SimpleNamespace(
        checkpoint=types.SimpleNamespace(load=str(path), save=str(path.parent / "elsewhere"))
    )
    groups = initialize(tensor_parallel_size=1)
    try:
        find_resume(config, groups)
    finally:
        shutdown()


def tokenizer(path, scratch):
    write_folder(TokenizerSource(folder=path), scratch / "out")
    assert (scratch / "out" / "tokenizer.json").is_file()


def finetune(path, scratch):
    from megatron_alum.finetune.benchmarks.tasks import TASKS
    from megatron_alum.finetune.runs.models import build_model, check_vocabulary, checked_folder, load_tokenizer

    checked_folder(str(path), "--model")
    check_vocabulary(str(path), load_tokenizer(str(path)))
    build_model(str(path), TASKS["rte"])


RUN = {
    "`to-hf --load`": to_hf,
    "`from-hf --model`": from_hf,
    "`--init-from`": init_from,
    "`--load` (pre-training)": load,
    "`--tokenizer` (preprocessing)": tokenizer,
    "`finetune.py --model`": finetune,
}


@pytest.mark.parametrize(("kind", "command", "cell"), CELLS, ids=lambda value: re.sub(r"[^\w ]", "", value)[:24])
def test_the_page_says_what_happens(kind, command, cell, folder_of, tmp_path):
    if cell == "continued":
        return  # tests/training/test_resume.py: every way to continue
    path, said = folder_of(kind), re.search(r'"(.*)"', cell)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if said is None or cell.startswith("warns"):
            RUN[command](path, tmp_path)
            assert said is None or any(said[1] in str(warning.message) for warning in caught)
            return
        with pytest.raises((ValueError, OSError)) as refused:
            RUN[command](path, tmp_path)
    assert said[1] in str(refused.value)
    assert "\n" not in str(refused.value) or command == "`finetune.py --model`"  # transformers' own words there
    assert not (tmp_path / "out").exists()


def test_the_page_has_every_kind_and_every_command():
    assert set(COMMANDS) == set(RUN)
    assert {row[0] for row in ROWS[2:]} == {"run of pre-training", "one iteration of a run", *BUILDERS}
    assert VOCAB_SIZE > 16, "fine-tuning refuses tokenizers with fewer entries"
