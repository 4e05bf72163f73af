"""Whole words of every kind of tokenizer: each word of a text is one group of tokens, and where that is unknown, no."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_alum.data.sampling.settings import SpecialTokens
from megatron_alum.data.tokenizers.word_marks import word_marks

SPECIALS = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
LINES = [
    "the quick brown foxes were jumping over lazily sleeping dogs while seventeen unbelievable wizards quarrelled",
    "a preposterous argument about nothing in particular never convinced anybody of anything worth remembering",
] * 20
TEXT = "the foxes quarrelled about wizards jumping preposterously over unbelievable arguments"


def trained(model, cutter, *, trainer=trainers.BpeTrainer, normalizer=None, lines=LINES, **options):
    backend = Tokenizer(model)
    backend.pre_tokenizer = cutter
    given = {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(cutter, pre_tokenizers.ByteLevel) else []
    given |= {"initial_alphabet": alphabet, "special_tokens": SPECIALS, "show_progress": False}
    backend.train_from_iterator(lines, trainer(vocab_size=len(alphabet) + 90, **given, **options))
    if normalizer is not None:  # as Llama's: spaces are written before anything is cut
        backend.pre_tokenizer, backend.normalizer = None, normalizer
    return fast(backend)


def fast(backend):
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(names))


SPACE = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
KINDS = {
    "wordpiece": lambda: trained(
        models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), trainer=trainers.WordPieceTrainer
    ),
    "wordpiece with ++": lambda: trained(
        models.WordPiece(unk_token="<unk>"),
        pre_tokenizers.WhitespaceSplit(),
        trainer=trainers.WordPieceTrainer,
        continuing_subword_prefix="++",
    ),
    "byte level": lambda: trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "unigram": lambda: trained(models.Unigram(), pre_tokenizers.Metaspace(), trainer=trainers.UnigramTrainer),
    "bpe metaspace": lambda: trained(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace()),
    "bpe underscore": lambda: trained(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(replacement="_")),
    "bpe normalizer": lambda: trained(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(), normalizer=SPACE),
    "bpe </w>": lambda: trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        pre_tokenizers.WhitespaceSplit(),
        end_of_word_suffix="</w>",
    ),
    "bpe ##": lambda: trained(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##"),
        pre_tokenizers.WhitespaceSplit(),
        continuing_subword_prefix="##",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_the_groups(kind):
    """Grouped by the marks, the tokens of each word lie together: their offsets cover the space-separated words."""
    tokenizer = KINDS[kind]()
    marks = word_marks(tokenizer)
    encoding = tokenizer.backend_tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(encoding.ids) > 2 * len(TEXT.split())
    groups = []
    for i, (number, (begin, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        if i == 0 or marks.starts[number] or marks.ends[encoding.ids[i - 1]]:
            groups.append((begin, end))
        groups[-1] = (groups[-1][0], end)
    assert [TEXT[begin:end].strip() for begin, end in groups] == TEXT.split()


def test_a_vocabulary_without_the_letters_of_the_probe():
    """[UNK] hides the mark at the end of a word: what follows it tells nothing against the mark."""
    to_cyrillic = str.maketrans(
        "abcdefghijklmnopqrstuvwxyz",
        "\u0430\u0431\u0446\u0434\u0435\u0444\u0433\u0445\u0438\u0439\u043a"
        "\u043b\u043c\u043d\u043e\u043f\u044f\u0440\u0441\u0442\u0443\u0432\u0448\u0449\u044b\u0437",
    )
    tokenizer = trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        pre_tokenizers.WhitespaceSplit(),
        lines=[line.translate(to_cyrillic) for line in LINES],
        end_of_word_suffix="</w>",
    )
    marks = word_marks(tokenizer)
    assert marks is not None
    text = f"{TEXT.translate(to_cyrillic)} \u0434\u0435x \u0434\u0435"
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    pairs = zip(encoding.offsets[1:], encoding.ids[1:], encoding.ids, strict=False)
    found = {begin for (begin, _end), number, before in pairs if marks.starts[number] or marks.ends[before]}
    assert found == {i + 1 for i, letter in enumerate(text) if letter == " "}


def test_tokens_without_marks_are_refused_for_whole_words_alone():
    tokenizer = trained(models.BPE(unk_token="<unk>"), pre_tokenizers.WhitespaceSplit())
    assert word_marks(tokenizer) is None
    assert SpecialTokens.from_tokenizer(tokenizer, roberta=False).word_start.all()
    for masking in ("whole_word", "ngram"):
        with pytest.raises(ValueError, match=f"--masking must be token for this tokenizer, but is {masking}"):
            SpecialTokens.from_tokenizer(tokenizer, roberta=False, masking=masking)


def test_added_words_stand_alone():
    for kind in ("bpe metaspace", "bpe </w>", "wordpiece"):
        tokenizer = KINDS[kind]()
        tokenizer.add_tokens(["covid"])
        marks = word_marks(tokenizer)
        number = tokenizer.convert_tokens_to_ids("covid")
        assert marks.starts[number]
        assert marks.ends[number] == (kind == "bpe </w>")
