"""Ids from the word cache equal the library's, for every tokenizer kind, on any text, which is its whole contract."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_alum.data.preprocessing.readers.base import Document
from megatron_alum.data.preprocessing.readers.wikiextractor import WikiextractorReader
from megatron_alum.data.preprocessing.settings import InputSettings
from megatron_alum.data.preprocessing.train_tokenizer import train_tokenizer
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings, VocabularySettings
from megatron_alum.data.tokenizers import word_cache
from megatron_alum.data.tokenizers.tokenizer import make_tokenizer
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from megatron_alum.data.tokenizers.word_cache import WordCache, token_dtype, word_scheme
from tests.data.preprocessing.corpora import write_jsonl

KINDS = ["wordpiece", "wordpiece-cased", "bpe", "unigram", "unigram-cased"]
TRAINING = [
    "The quick brown fox jumps over the lazy dog, again and again: 12 times!",
    "Zo\u00eb's na\u00efve caf\u00e9.",
    "[MASK] [CLS] [SEP] k",
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A trained tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    source = write_jsonl(folder / "in.jsonl", TRAINING * 5)
    made = {}
    for name in KINDS:
        kind, _, cased = name.partition("-")
        vocabulary = VocabularySettings(
            output=str(folder / name), type=kind, vocab_size=300, case="keep" if cased or kind == "bpe" else "lower"
        )
        run = TrainTokenizerSettings(InputSettings((str(source),)), vocabulary)
        made[name] = train_tokenizer(run, show_progress=False)
    return made


def library_ids(tokenizer, texts):
    """Ids by transformers itself, special tokens in the text taken as text."""
    return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]


def cache_of(tokenizer, **options):
    return WordCache(tokenizer.backend_tokenizer.to_str(), **options)


def ids_of(cache, texts):
    from numpy import frombuffer

    return [frombuffer(packed, cache.dtype).tolist() for packed in cache.encode(texts)]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_word_scheme(tokenizers, name):
    assert cache_of(tokenizers[name]).scheme == ("prefixed" if name == "bpe" else "uniform")


# Letters, accents as one and as two code points, CJK, Hangul, spaces of all kinds, controls, joiners, ligatures,
# final sigma.
ALPHABET = (
    "aB1.,!'\"-_#\u00e9e\u0301\u4e2d\uac00 \u00a0\u3000\t\n\u200d\u00ad\ufb01\u03a3\u00df\u0130\u2581\u0120\u00a8[]<>"
)
TEXT = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=["Cs"])), max_size=40)


@pytest.mark.parametrize("native", [True, False], ids=["extension", "dictionary"])
@pytest.mark.parametrize("name", KINDS)
def test_any_text_gets_the_librarys_ids(tokenizers, name, native):
    cache = cache_of(tokenizers[name], native=native)

    @settings(max_examples=100, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(TEXT, max_size=4))
    def check(texts):
        assert ids_of(cache, texts) == library_ids(tokenizers[name], texts)

    check()


@pytest.mark.parametrize("native", [True, False], ids=["extension", "dictionary"])
@pytest.mark.parametrize("name", KINDS)
def test_a_full_table_is_emptied_and_gives_the_same_ids(tokenizers, name, native):
    cache = cache_of(tokenizers[name], max_bytes=60_000, native=native)
    draw = random.Random(1)
    most = 0
    for _ in range(30):
        texts = [" ".join(f"\xe9{draw.randrange(3000)}" for _ in range(20)) for _ in range(10)]
        assert ids_of(cache, texts) == library_ids(tokenizers[name], texts)
        most = max(most, cache.num_words)
    assert 100 < most < 1000


@pytest.mark.parametrize("cased", [False, True])
def test_ascii_words_are_spelt_like_berts(tokenizers, cased):
    """Every printable character, at every place of a word, runs at the limit of 100 and beyond it, unknown letters."""
    tokenizer = tokenizers["wordpiece-cased" if cased else "wordpiece"]
    cache = cache_of(tokenizer)
    printable = [chr(code) for code in range(33, 127)]
    words = [f"{a}the{b}Dog{a}" for a, b in zip(printable, reversed(printable), strict=True)]
    words += ["t" * 100, "t" * 101, "x." * 60, "theqqq", "##the", "a##the", "[UNK]", "ZZZ", "\x7f", "a\x01b"]
    assert ids_of(cache, words) == library_ids(tokenizer, words)
    assert cache.num_words == 0  # the odd ones go to the library, the others take no space


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_in_the_text_are_text(tokenizers, name):
    tokenizer = tokenizers[name]
    cache = cache_of(tokenizer)
    text = f"the {tokenizer.mask_token} dog{tokenizer.sep_token} {tokenizer.cls_token}"
    (ids,) = ids_of(cache, [text])
    assert not set(ids) & {tokenizer.mask_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id}


def test_both_tables_give_the_same_answers(tokenizers):
    spec = json.loads(tokenizers["bpe"].backend_tokenizer.to_str())
    assert word_cache._bert_wordpiece(spec) is None
    tables = [word_cache._extension().WordTable(prefixed=True, token_bytes=2), word_cache._DictTable(True, "H")]
    sentences = ["a b a", "", "a  b", " a", "\u4e2d a", "a"]
    for table in tables:
        assert table.encode(sentences) == ([None] * 6, ["a", " b", " a", "\u4e2d"])
        table.learn(["a", " b", " a"], [[1], [2, 3], [4]])
        assert table.encode(sentences)[0] == [b"\1\0\2\0\3\0\4\0", None, None, None, None, b"\1\0"]
        assert len(table) == 3 and table.num_bytes > 0
        table.clear()
        assert len(table) == 0 and table.encode(["a"]) == ([None], ["a"])


def test_schemes_that_are_refused(tokenizers):
    spec = json.loads(tokenizers["unigram"].backend_tokenizer.to_str())
    assert word_scheme(spec) == "uniform"
    assert word_scheme({**spec, "pre_tokenizer": None}) is None
    assert word_scheme({**spec, "added_tokens": [{"special": False}]}) is None
    assert word_scheme({**spec, "normalizer": {"type": "Prepend"}}) is None
    regex = {"type": "Replace", "pattern": {"Regex": " +"}, "content": ""}
    assert word_scheme({**spec, "normalizer": {"type": "Sequence", "normalizers": [regex]}}) is None
    bpe = json.loads(tokenizers["bpe"].backend_tokenizer.to_str())
    bpe["pre_tokenizer"]["use_regex"] = False
    assert word_scheme(bpe) is None


def test_the_library_serves_a_tokenizer_without_scheme(tokenizers):
    backend = Tokenizer.from_str(tokenizers["wordpiece"].backend_tokenizer.to_str())
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    cache = WordCache(backend.to_str())
    assert cache.scheme is None
    assert ids_of(cache, ["The dog, again."]) == [backend.encode("The dog, again.", add_special_tokens=False).ids]


def test_dtype_follows_megatron():
    from megatron.core.datasets.indexed_dataset import DType

    for size in (1, 65_499, 65_500, 250_000):
        assert token_dtype(size) == DType.optimal_dtype(size)


SHARED = {
    "bert-uncased": ("bert-base-uncased-vocab.txt", None),
    "bert-cased": ("bert-base-cased-vocab.txt", None),
    "roberta": ("roberta-base-vocab.json", "gpt2-merges.txt"),
}


@pytest.mark.requires_shared_data
@pytest.mark.parametrize("name", SHARED)
def test_real_text_gets_transformers_ids(shared_data, name):
    vocab, merges = SHARED[name]
    folder = shared_data / "vocab"
    source = TokenizerSource(vocab_file=folder / vocab, merge_file=folder / merges if merges else None)
    tokenizer = make_tokenizer(source)
    paths = sorted((shared_data / "wiki" / "extracted" / "AB").glob("*.bz2"))[:2]
    reader = WikiextractorReader()
    texts = [
        item.text for p in paths for c in reader.chunks(p) for item in reader.documents(c) if isinstance(item, Document)
    ]
    lines = [line for text in texts for line in text.split("\n")][:6000]
    assert ids_of(cache_of(tokenizer), lines) == tokenizer(lines, add_special_tokens=False)["input_ids"]


SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def foreign_tokenizers():
    """Models that a literal special token reaches: as a piece, longest first, by merges, as a whole word."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(c, -5.0) for c in "\u2581abmsk/<"]  # ">" is unknown
    yield Tokenizer(models.Unigram(pieces, unk_id=1)), pre_tokenizers.Metaspace()
    letters = [*"<>/amsk", *("##" + c for c in "<>/amsk")]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    yield Tokenizer(models.WordPiece(vocab, unk_token="<unk>")), pre_tokenizers.WhitespaceSplit()
    steps = ["<m", "<ma", "<mas", "<mask", "<mask>"]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *"<>/amsk", *steps[:-1]])}
    merges = [(step[:-1], step[-1]) for step in steps]
    yield Tokenizer(models.BPE(vocab, merges, unk_token="<unk>")), pre_tokenizers.WhitespaceSplit()
    yield Tokenizer(models.BPE(vocab, [], unk_token="<unk>", ignore_merges=True)), pre_tokenizers.WhitespaceSplit()


@pytest.mark.parametrize("tokenizer", foreign_tokenizers(), ids=["unigram", "wordpiece", "bpe", "whole words"])
@pytest.mark.parametrize("normal", [False, True], ids=["alone", "with an added word"])
def test_special_tokens_of_other_folders_are_text_too(tokenizer, normal):
    backend, backend.pre_tokenizer = tokenizer
    backend = Tokenizer.from_str(backend.to_str())
    backend.add_special_tokens(SPECIAL)
    if normal:
        backend.add_tokens(["amsk"])
    before = backend.to_str()
    cache = WordCache(backend.to_str())
    text = "a <mask> m</s>k <s><pad> amsk"
    (ids,) = ids_of(cache, [text])
    assert ids and not set(ids) & {backend.token_to_id(token) for token in SPECIAL if token != "<unk>"}
    assert (backend.token_to_id("amsk") in ids) == normal
    plain = "a m sk as"
    assert ids_of(cache, [plain]) == [backend.encode(plain, add_special_tokens=False).ids]
    assert json.loads(before)["model"] == json.loads(backend.to_str())["model"]
