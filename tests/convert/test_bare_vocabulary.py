"""Vocabularies without a tokenizer.json: one rule for case and kind in every command, and how they are imported.

Folders as BioBERT, SciBERT and ClinicalBERT (config.json, weights, vocab.txt) and older RoBERTas (vocab.json and
merges.txt) have them. Expected tokens are written by hand.
"""

import json
import shutil
import warnings

import pytest
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.from_hf import check_same_vocabulary
from megatron_alum.data.tokenizers.bare_vocabulary import open_tokenizer
from megatron_alum.data.tokenizers.folder import describe_folder, write_folder
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from megatron_alum.finetune.runs.models import load_tokenizer as load_for_finetuning
from tests.convert.models import SIZES, random_hf_model, save_hf_model

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
CASED = [*SPECIALS, "Patient", "has", "patient", "HER", "##2", "\u00e9", "e", "H", "a", "b", "c", "d", "f"]
UNCASED = [*SPECIALS, "patient", "has", "her", "##2", "e", "a", "b", "c", "d", "f", "g", "h", "i"]
TEXT = "Patient has HER2 \u00e9"
KEPT, LOWERED = ["Patient", "has", "HER", "##2", "\u00e9"], ["patient", "has", "her", "##2", "e"]
# name: (vocabulary, tokenizer_config.json or None, tokens of TEXT)
WORDPIECE = {
    "BioBERT, ClinicalBERT: cased, nothing said": (CASED, None, KEPT),
    "SciBERT: uncased, nothing said": (UNCASED, None, LOWERED),
    "cased, said so": (CASED, {"do_lower_case": False}, KEPT),
    "cased, a length said": (CASED, {"model_max_length": 512}, KEPT),
    "cased, a class said": (CASED, {"tokenizer_class": "BertTokenizer"}, KEPT),
    "uncased, said to be kept": (UNCASED, {"do_lower_case": False}, ["[UNK]", "has", "[UNK]", "[UNK]"]),
    "uncased, a length said as of old": (UNCASED, {"max_len": 512}, LOWERED),
    "cased, accents stripped": (CASED, {"do_lower_case": False, "strip_accents": True}, [*KEPT[:4], "e"]),
}


def wordpiece(folder, name):
    vocabulary, config, _ = WORDPIECE[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level(folder):
    entries = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"Ptaien", "\u0120", "as", "\u0120h", "\u0120has", "h", "s"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\na s\n\u0120 h\n\u0120h as\n")
    return folder


@pytest.mark.parametrize("with_config", [False, True], ids=["alone", "beside config.json"])
@pytest.mark.parametrize("name", WORDPIECE)
def test_every_command_reads_a_wordpiece_vocabulary_alike(name, with_config, tmp_path):
    folder, expected = wordpiece(tmp_path / "bare", name), WORDPIECE[name][2]
    if with_config:
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 19}))
    write_folder(TokenizerSource(folder=folder), tmp_path / "written")  # preprocess_data.py --tokenizer
    readers = {
        "training and conversion": load_tokenizer(folder),
        "preprocessing": load_tokenizer(tmp_path / "written"),
        "fine-tuning": load_for_finetuning(str(folder)),
    }
    assert {name: tokenizer.tokenize(TEXT) for name, tokenizer in readers.items()} == dict.fromkeys(readers, expected)
    assert describe_folder(tmp_path / "written")["lower_case"] == (expected == LOWERED)
    if WORDPIECE[name][1] is None:
        write_folder(TokenizerSource(vocab_file=folder / "vocab.txt"), tmp_path / "from-file")  # --vocab-file
        assert load_tokenizer(tmp_path / "from-file").tokenize(TEXT) == expected


def test_every_command_reads_a_byte_level_vocabulary_alike(tmp_path):
    folder = byte_level(tmp_path / "bare")
    write_folder(TokenizerSource(folder=folder), tmp_path / "written")
    for tokenizer in (load_tokenizer(folder), load_tokenizer(tmp_path / "written"), load_for_finetuning(str(folder))):
        assert tokenizer.tokenize("Patient has") == [*"Patient", "\u0120has"]
        assert tokenizer("has")["input_ids"][0] == 0  # <s>


@pytest.mark.requires_shared_data
def test_a_real_cased_vocabulary_keeps_its_upper_case(shared_data, tmp_path):
    """bert-base-cased's entries, which BioBERT and ClinicalBERT share: each word finds itself."""
    shutil.copyfile(shared_data / "vocab" / "bert-base-cased-vocab.txt", tmp_path / "vocab.txt")
    tokenizer = open_tokenizer(tmp_path)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and word != word.lower()]
    assert len(words) > 5000
    assert [word for word in words if tokenizer.tokenize(word) != [word]] == []


def model_folder(folder, kind):
    """Config and weights of a model as large as the vocabulary, no tokenizer_config.json."""
    if kind == "roberta":
        byte_level(folder)
        sizes = {**SIZES, "vocab_size": 17, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 41}
        transformers.RobertaForMaskedLM(transformers.RobertaConfig(**sizes)).save_pretrained(folder)
        return folder
    wordpiece(folder, kind)
    transformers.BertForPreTraining(transformers.BertConfig(**{**SIZES, "vocab_size": 19})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["roberta", *list(WORDPIECE)[:2]])
def test_what_is_imported_can_be_exported_and_started_from(kind, tmp_path):
    """from-hf writes a tokenizer.json, which to-hf, a run's --init-from and every user of the export read alike."""
    source = model_folder(tmp_path / "hf", kind)
    text, expected = ("Patient has", [*"Patient", "\u0120has"]) if kind == "roberta" else (TEXT, WORDPIECE[kind][2])
    commands.from_hf(str(source), tmp_path / "run")
    imported = read_checkpoint_source(tmp_path / "run").tokenizer_dir
    assert (imported / "tokenizer.json").is_file()
    assert load_tokenizer(imported).tokenize(text) == expected
    commands.to_hf(str(tmp_path / "run"), tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.tokenize(text) == expected
    assert exported.model_max_length == 39


def test_a_tokenizer_that_an_export_would_refuse_is_refused_at_import(tmp_path):
    source = model_folder(tmp_path / "hf", next(iter(WORDPIECE)))
    (source / "vocab.txt").write_text("\n".join([*CASED, "one", "too", "many"]) + "\n")
    with pytest.raises(ValueError, match="must have at most the model's 19 entries, but has 22 instead"):
        commands.from_hf(str(source), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sentencepiece_model_alone_is_named(tmp_path):
    source = save_hf_model("bert", tmp_path / "hf")
    (source / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    message = r"must hold a tokenizer.json, but has only the SentencePiece model spiece.model, which is not read"
    for refuse in (
        lambda: load_tokenizer(source),
        lambda: load_for_finetuning(str(source)),
        lambda: write_folder(TokenizerSource(folder=source), tmp_path / "written"),
        lambda: commands.from_hf(str(source), tmp_path / "run"),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()
    assert not (tmp_path / "run").exists()


def test_a_config_from_before_model_type_is_read(tmp_path):
    """BioBERT's first files: BERT's sizes and nothing else."""
    source = save_hf_model("bert-masked-lm", tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name in (*SIZES, "hidden_act", "type_vocab_size")}
    (source / "config.json").write_text(json.dumps(kept))
    commands.from_hf(str(source), tmp_path / "run")
    commands.to_hf(str(tmp_path / "run"), tmp_path / "out")
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out").state_dict()
    for name, value in random_hf_model("bert-masked-lm").state_dict().items():
        assert torch.equal(again[name], value), name


def test_shards_of_another_case_than_the_model_are_warned_about(tmp_path):
    """The entries are the same; the text that the model sees is not."""
    entries = {entry: i for i, entry in enumerate(CASED)}
    for name, lower in (("kept", False), ("lowered", True)):
        transformers.BertTokenizer(vocab=entries, do_lower_case=lower).save_pretrained(tmp_path / name)
    with pytest.warns(UserWarning, match=r"reads 'Word \u00c9t\u00e9' as 'Word \u00c9t\u00e9', .* as 'word ete'"):
        check_same_vocabulary(tmp_path / "kept", tmp_path / "lowered")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_vocabulary(tmp_path / "kept", tmp_path / "kept")


def test_half_a_vocabulary_is_named(tmp_path):
    """A byte order mark hides [PAD] from transformers; a table of bytes means nothing without its merges."""
    marked = wordpiece(tmp_path / "marked", "SciBERT: uncased, nothing said") / "vocab.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
    (byte_level(tmp_path / "alone") / "merges.txt").unlink()
    for name, message in (
        ("marked", "vocab.txt` must not begin with"),
        ("alone", "merges.txt beside"),
    ):
        with pytest.raises(ValueError, match=message):
            open_tokenizer(tmp_path / name)
