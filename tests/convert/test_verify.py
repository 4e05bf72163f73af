"""--verify: whatever config.json says of class and padding, and on another device than the CPU, as with a GPU."""

import pytest
import torch

from megatron_alum.config.model import ModelConfig
from megatron_alum.convert import commands, load_hf_into_model
from megatron_alum.convert.verify import MAX_LOGIT_DIFFERENCE, compare, single_rank_model
from tests.convert.models import SIZES, VOCAB_SIZE, edit_config, save_hf_model
from tests.helpers.other_device import OTHER_DEVICE, on_fresh_rank, other_device


def _compare_on_the_other_device(rank, world_size, folder):
    config = ModelConfig(
        num_layers=SIZES["num_hidden_layers"],
        hidden_size=SIZES["hidden_size"],
        num_attention_heads=SIZES["num_attention_heads"],
        ffn_hidden_size=SIZES["intermediate_size"],
        seq_length=SIZES["max_position_embeddings"],
    )
    with other_device(), single_rank_model(config, VOCAB_SIZE) as model:
        assert next(model.parameters()).device == OTHER_DEVICE
        load_hf_into_model(folder, model)
        compared = [compare(folder, model)]
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        return [*compared, compare(folder, model)]


def test_both_models_and_the_batch_are_where_the_network_is(tmp_path):
    folder = save_hf_model("megatron-bert", tmp_path / "hf")
    same, changed = on_fresh_rank(_compare_on_the_other_device, folder)
    same.check()
    assert 0 < same.mlm < MAX_LOGIT_DIFFERENCE and same.nsp is not None  # computed twice, not one model with itself
    with pytest.raises(ValueError, match=r"must agree within 0\.0001, but differ by"):
        changed.check()


NO_NAME = {"without": ("architectures",)}
# name: (case, what is changed in its config.json, heads that are compared)
CONFIGS = {
    "no class": ("bert-masked-lm", NO_NAME, {"MLM"}),
    "no class, both heads": ("megatron-bert", NO_NAME, {"MLM", "NSP"}),
    "no class, no heads": ("roberta-encoder", NO_NAME, set()),
    "a null class": ("bert-masked-lm", {"architectures": None}, {"MLM"}),
    "a class of one's own": ("roberta", {"architectures": ["MyRobertaForMaskedLM"]}, {"MLM"}),
    "a class with another head": ("bert-masked-lm", {"architectures": ["BertForNextSentencePrediction"]}, {"MLM"}),
    "a class with more heads": ("bert-encoder", {"architectures": ["BertForMaskedLM"]}, set()),
    "no padding": ("bert", {"pad_token_id": None}, {"MLM", "NSP"}),
    "no padding, positions after it": ("roberta", {"pad_token_id": None}, {"MLM"}),
}


@pytest.mark.filterwarnings("ignore:.*(has no weights|has no place) for")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_heads_of_the_weights_are_compared_whatever_config_names(name, tmp_path, capsys):
    case, changed, heads = CONFIGS[name]
    folder = save_hf_model(case, tmp_path / "hf")
    edit_config(folder, **changed)
    commands.from_hf(str(folder), tmp_path / "run", verify=True)
    verified = capsys.readouterr().out.splitlines()[0]
    assert {head for head in ("MLM", "NSP") if f"{head} logits" in verified} == heads
    commands.to_hf(str(tmp_path / "run"), tmp_path / "out", verify=True)
    assert capsys.readouterr().out.startswith("verified: ")
