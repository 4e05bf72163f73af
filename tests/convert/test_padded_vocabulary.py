"""Models whose word table has more rows than their tokenizer has words, as many published ones: kept all the way."""

import json
import shutil

import pytest
import safetensors.torch
import torch
import transformers

from megatron_alum.convert import hf_vocab_size
from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.to_hf import export_folder
from tests.convert.models import CASES, SIZES, VOCAB_SIZE, tokenizer_folder
from tests.training.runs import launch

ROWS = VOCAB_SIZE + 6
"""of the word table, beside a tokenizer of VOCAB_SIZE words"""


def words_and_config(folder):
    """(word table, its row count by config.json, MLM bias) of a folder."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    table = next(value for name, value in state.items() if name.endswith("word_embeddings.weight"))
    bias = next(value for name, value in state.items() if name in ("cls.predictions.bias", "lm_head.bias"))
    return table, json.loads((folder / "config.json").read_text())["vocab_size"], bias


@pytest.mark.parametrize("name", ["megatron-bert", "bert", "roberta"])
def test_every_row_survives_the_round_trip(name, tmp_path):
    case = CASES[name]
    torch.manual_seed(2)
    model = case.model_class(case.model_class.config_class(**{**SIZES, **case.fields, "vocab_size": ROWS}))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n in ("cls.predictions.bias", "lm_head.bias")).normal_()
    model.save_pretrained(tmp_path / "hf")
    tokenizer_folder(tmp_path / "hf", roberta=name == "roberta")
    import_folder(str(tmp_path / "hf"), tmp_path / "run")
    assert hf_vocab_size(tmp_path / "hf") == hf_vocab_size(tmp_path / "run") == ROWS
    again = export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out")
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (tmp_path / "hf", again))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert words_and_config(again)[1] == ROWS == len(words_and_config(again)[0])


@pytest.fixture(scope="module")
def start(prefix, tmp_path_factory):
    """A BERT for the corpus's tokenizer with ten rows more, and its number of words."""
    folder = tmp_path_factory.mktemp("start") / "hf"
    shutil.copytree(f"{prefix}-tokenizer", folder)
    num_words = len(transformers.AutoTokenizer.from_pretrained(folder))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.BertConfig(**shape, vocab_size=num_words + 10, max_position_embeddings=48)
    torch.manual_seed(4)
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder, num_words


def test_a_run_trains_resumes_and_exports_all_rows(prefix, start, tmp_path):
    """The rows beyond the tokenizer take part in every softmax, as in transformers; a resume needs no start folder."""
    folder, num_words = start
    options = {"init_from": folder, "model_type": "bert", "train_iters": 4, "alum_start_fraction": 0.5}
    straight = launch(1, prefix, tmp_path / "straight", **options)
    launch(2, prefix, tmp_path / "run", **options, tensor_model_parallel_size=2, exit_interval=2)
    moved = {**options, "init_from": tmp_path / "gone"}
    resumed = launch(1, prefix, tmp_path / "run", **moved, load=tmp_path / "run")
    # Dropout has one generator a tensor-parallel rank, so the two runs are near each other, not equal.
    assert [row["lm_loss"] for row in resumed] == pytest.approx([row["lm_loss"] for row in straight], rel=0.05)
    exported = export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out")
    table, rows, bias = words_and_config(exported)
    assert rows == num_words + 10 == len(table) == len(bias)
    before = words_and_config(folder)[2]
    assert (bias[num_words:] < before[num_words:]).all(), "a word that is never right loses score in every softmax"


def test_a_model_with_fewer_rows_than_words_is_refused(prefix, start, tmp_path):
    folder, num_words = start
    small = shutil.copytree(folder, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": num_words - 1}))
    with pytest.raises(ValueError, match=rf"at least the {num_words} tokens .* has {num_words - 1}\. Preprocess"):
        launch(1, prefix, tmp_path / "run", init_from=small, model_type="bert", train_iters=2)
    assert not (tmp_path / "run").exists()
