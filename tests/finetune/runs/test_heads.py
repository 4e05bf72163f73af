"""What `build_model` makes of an encoder's folder: float32 weights, and the task's dropout before the classifier."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MegatronBertConfig,
    MegatronBertModel,
    RobertaConfig,
    RobertaModel,
)

from megatron_alum.finetune.benchmarks.tasks import TASKS
from megatron_alum.finetune.runs.models import build_model, load_finetuned

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = {"vocab_size": 64, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
ENCODERS = {
    "bert": (BertConfig, BertModel, SIZES, "dropout"),
    "megatron-bert": (MegatronBertConfig, MegatronBertModel, SIZES, "dropout"),
    "roberta": (RobertaConfig, RobertaModel, SIZES, "classifier.dropout"),
    "electra": (ElectraConfig, ElectraModel, SIZES, "classifier.dropout"),
    "albert": (AlbertConfig, AlbertModel, SIZES, "dropout"),
    "deberta-v2": (DebertaV2Config, DebertaV2Model, SIZES, "dropout"),
    "distilbert": (DistilBertConfig, DistilBertModel, DISTIL, "dropout"),
}


@pytest.mark.parametrize(("task", "dropout"), [("mnli", 0.3), ("cola", 0.05), ("rte", 0.1)])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_task_layer_has_the_papers_dropout(tmp_path, name, task, dropout):
    """Section 4.2, whether the architecture's configuration has a name for it or not; the encoder keeps its own."""
    config, model, sizes, where = ENCODERS[name]
    model(config(**sizes)).save_pretrained(tmp_path)
    before = {key: m.p for key, m in model(config(**sizes)).named_modules() if isinstance(m, torch.nn.Dropout)}
    built = build_model(str(tmp_path), TASKS[task])
    assert built.get_submodule(where).p == dropout
    inside = {key: m.p for key, m in built.base_model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert inside == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_folder_is_trained_and_attacked_in_float32(tmp_path, dtype):
    """What pre-training in bf16 exports: at 2e-5 its updates would round away."""
    BertModel(BertConfig(**SIZES)).to(dtype).save_pretrained(tmp_path / "encoder")
    built = build_model(str(tmp_path / "encoder"), TASKS["sst2"])
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    built.to(dtype).save_pretrained(tmp_path / "tuned")
    loaded = load_finetuned(str(tmp_path / "tuned"), TASKS["sst2"])
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
