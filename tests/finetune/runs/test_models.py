"""Tokenizers and lengths of the encoders: words given one by one, and position tables that begin after the pad."""

import json

import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, MPNetConfig, MPNetModel, PreTrainedTokenizerFast, RobertaTokenizerFast

from megatron_alum.finetune.benchmarks.features import Encoder
from megatron_alum.finetune.runs.models import load_tokenizer, longest_input

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["a", "of", "gene"]
BYTE_LEVEL = {
    "plain": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "after a split": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def trained(pre_tokenizer):
    """A byte-level BPE that has merged the words, with and without the space before them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    text = ["a of gene of a gene"] * 20 + WORDS * 5
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text, BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, vocab_size=400))
    return tokenizer


def save(folder, form):
    """As a generic tokenizer, or in RoBERTa's class, which builds its steps anew when it is loaded."""
    if form != "roberta":
        options = {"unk_token": "<unk>", "pad_token": "<pad>"}
        PreTrainedTokenizerFast(tokenizer_object=trained(BYTE_LEVEL[form]), **options).save_pretrained(folder)
        return
    model = json.loads(trained(BYTE_LEVEL["plain"]).to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    RobertaTokenizerFast(vocab=model["vocab"], merges=merges).save_pretrained(folder)


def tokens(tokenizer, text, **options):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


@pytest.mark.parametrize("form", [*BYTE_LEVEL, "roberta"])
def test_words_of_a_byte_level_bpe_are_those_of_the_sentence(tmp_path, form):
    save(tmp_path / "a", form)
    plain, tags = load_tokenizer(str(tmp_path / "a")), load_tokenizer(str(tmp_path / "a"), "tags")
    expected = tokens(plain, " " + " ".join(WORDS))
    assert expected == ["\u0120a", "\u0120of", "\u0120gene"]
    assert tokens(tags, WORDS, is_split_into_words=True) == expected
    assert tokens(plain, WORDS, is_split_into_words=True) != expected, "the case is one that needs the change"
    (feature,) = Encoder(tags, "tags", 32, tags=("O",)).encode([{"tokens": WORDS, "tags": ["O"] * 3}])
    assert [label for label in feature["labels"] if label != -100] == [0, 0, 0]
    tags.save_pretrained(tmp_path / "b")  # beside the fine-tuned model
    assert tokens(AutoTokenizer.from_pretrained(tmp_path / "b"), WORDS, is_split_into_words=True) == expected


@pytest.mark.requires_shared_data
def test_words_of_robertas_own_vocabulary(tmp_path, shared_data):
    files = {"vocab": "roberta-base-vocab.json", "merges": "gpt2-merges.txt"}
    RobertaTokenizerFast(**{name: str(shared_data / "vocab" / file) for name, file in files.items()}).save_pretrained(
        tmp_path
    )
    plain, tags = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path), "tags")
    words = "Identification of APC2 , a homologue".split()
    assert tokens(tags, words, is_split_into_words=True) == tokens(plain, " " + " ".join(words))


def test_a_word_piece_vocabulary_stays_as_it_is(tmp_path):
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    plain, tags = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path), "tags")
    assert plain.backend_tokenizer.to_str() == tags.backend_tokenizer.to_str()


def test_the_longest_input_fits_a_position_table_that_begins_after_the_pad(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = MPNetModel(MPNetConfig(vocab_size=400, max_position_embeddings=20, **sizes)).eval()
    model.save_pretrained(tmp_path)
    save(tmp_path, "plain")
    length = longest_input(str(tmp_path), load_tokenizer(str(tmp_path)), 512)
    assert length == 18
    assert model(input_ids=torch.full((1, length), 7)).last_hidden_state.shape == (1, 18, 16)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, length + 1), 7))
