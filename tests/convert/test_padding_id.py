"""RoBERTa counts positions after its padding id, whichever that is: import, export, fine-tuning and every sentence."""

import json

import pytest
import torch
import transformers

from megatron_alum.config.model import ModelConfig
from megatron_alum.convert import commands, model_config_from_hf, model_flags_from_hf
from megatron_alum.finetune.methods.embeddings import EmbeddingSplit
from megatron_alum.finetune.runs.models import check_vocabulary, load_tokenizer, longest_input
from tests.convert import ranks
from tests.convert.models import SIZES, VOCAB_SIZE, edit_config, hf_outputs
from tests.helpers.distributed import run_ranks

ATOL = 1e-5
PADDING_IDS = (0, 1, 3, 7)
USABLE = 39
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def roberta(folder, pad, *, tokenizer_pad=None):
    """A model that pads with entry `pad`, and a tokenizer that does (or one that pads with `tokenizer_pad`)."""
    sizes = {**SIZES, "max_position_embeddings": USABLE + pad + 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    config = transformers.RobertaConfig(**sizes, pad_token_id=pad)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(pad)
        model = transformers.RobertaForMaskedLM(config)
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    tokenizer(pad if tokenizer_pad is None else tokenizer_pad).save_pretrained(folder)
    return model


def tokenizer(pad):
    others = [token for token in (*SPECIALS, *(f"w{i}" for i in range(VOCAB_SIZE))) if token != "<pad>"]
    entries = [*others[:pad], "<pad>", *others[pad:]][:VOCAB_SIZE]
    return transformers.RobertaTokenizer(vocab={token: i for i, token in enumerate(entries)}, merges=[])


@pytest.mark.parametrize("pad", PADDING_IDS)
def test_a_model_computes_the_same_here_and_after_the_round_trip(pad, tmp_path):
    hf = roberta(tmp_path / "hf", pad)
    config = model_config_from_hf(tmp_path / "hf")
    assert (config.first_position, config.max_position_embeddings) == (pad + 1, USABLE)
    ours, _ = run_ranks(1, ranks.outputs_after_import, str(tmp_path / "hf"), 1)[0]
    theirs = hf_outputs(hf)
    for index in (0, 2):
        torch.testing.assert_close(ours[index], theirs[index], atol=ATOL, rtol=0)
    commands.from_hf(str(tmp_path / "hf"), tmp_path / "run", verify=True)
    assert model_flags_from_hf(tmp_path / "run")["first_position"] == pad + 1
    commands.to_hf(str(tmp_path / "run"), tmp_path / "out", verify=True)
    again = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert again.config.pad_token_id == pad
    for name, value in hf.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("pad", [0, 3])
def test_an_export_counts_after_the_padding_id_of_its_tokenizer(pad, tmp_path):
    """A run from scratch on shards that pad with another entry than the network's first position says."""
    hf = roberta(tmp_path / "hf", 1)
    theirs = hf_outputs(hf)
    tokenizer(pad).save_pretrained(tmp_path / "tokenizer")
    run = (str(tmp_path / "hf"), 1, str(tmp_path / "run"), {"objective": "none"}, str(tmp_path / "tokenizer"))
    run_ranks(1, ranks.save_from_hf, *run)
    commands.to_hf(str(tmp_path / "run"), tmp_path / "out", verify=True)
    out = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert (out.config.pad_token_id, out.config.max_position_embeddings) == (pad, USABLE + pad + 1)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == pad
    tokens = torch.randint(4, VOCAB_SIZE, (2, USABLE))
    with torch.no_grad():
        expected = hf(tokens).logits  # no padding and none of the two ids: what both count alike
        torch.testing.assert_close(out(tokens).logits, expected, atol=ATOL, rtol=0)
        padded = torch.cat((tokens[:, :9], torch.full((2, 5), pad)), dim=1)
        found = out(padded, attention_mask=(torch.arange(14) < 9).expand(2, -1).long()).logits[:, :9]
        torch.testing.assert_close(found, hf(tokens[:, :9]).logits, atol=ATOL, rtol=0)
    assert theirs[0].abs().max() > 0.1, "too small to tell right from wrong"


def test_fine_tuning_follows_the_padding_id(tmp_path):
    for pad in PADDING_IDS:
        folder = tmp_path / f"pad{pad}"
        model = roberta(folder, pad)
        assert longest_input(str(folder), load_tokenizer(str(folder)), 512) == USABLE
        check_vocabulary(str(folder), load_tokenizer(str(folder)))
        EmbeddingSplit(model, "word")  # refuses a model whose outputs from embeddings are others
    roberta(tmp_path / "mixed", 3, tokenizer_pad=0)
    with pytest.raises(
        ValueError, match=r"must have the padding id 3 of .*, after which its positions begin, but has 0"
    ):
        check_vocabulary(str(tmp_path / "mixed"), load_tokenizer(str(tmp_path / "mixed")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pad_token_id": -1}, "`pad_token_id` of .* must be the number of an entry, but is -1 instead"),
        ({"pad_token_id": "1"}, "`pad_token_id` of .* must be the number of an entry, but is '1' instead"),
        ({"pad_token_id": 60}, "`max_position_embeddings` of .* must be more than the 61 rows up to the padding id"),
    ],
)
def test_an_impossible_padding_id_is_refused(fields, message, tmp_path):
    roberta(tmp_path / "hf", 1)
    edit_config(tmp_path / "hf", **fields)
    with pytest.raises(ValueError, match=message):
        model_config_from_hf(tmp_path / "hf")


def test_a_config_without_a_padding_id_has_robertas_own(tmp_path):
    roberta(tmp_path / "hf", 1)
    edit_config(tmp_path / "hf", without=("pad_token_id",))
    assert "pad_token_id" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    assert model_config_from_hf(tmp_path / "hf").first_position == 2


def test_networks_that_do_not_count_after_padding_take_no_first_position():
    with pytest.raises(ValueError, match="--first-position must be 0 for --model-type bert, but is 2 instead"):
        ModelConfig(model_type="bert", model_size="tiny", first_position=2)
    with pytest.raises(ValueError, match="--first-position must be at least 1 for --model-type roberta, but is 0"):
        ModelConfig(model_type="roberta", model_size="tiny", first_position=0)
    assert ModelConfig(model_type="roberta", model_size="tiny", first_position=8).num_position_rows == 520
