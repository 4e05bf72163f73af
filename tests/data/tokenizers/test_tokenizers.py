"""Tokenizers: from vocabularies and folders with the right case and accents, trained in three kinds, refused when
unfit."""

import json
import zipfile
from pathlib import Path

import pytest

from megatron_alum.data.preprocessing.settings import InputSettings
from megatron_alum.data.preprocessing.train_tokenizer import train_tokenizer
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings, VocabularySettings
from megatron_alum.data.tokenizers import folder
from megatron_alum.data.tokenizers.folder import describe_folder, write_folder
from megatron_alum.data.tokenizers.tokenizer import (
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
    tokenizer_kind,
)
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from tests.data.preprocessing.corpora import LETTERS, SPECIALS, prepare, write_jsonl, write_vocab

TEXTS = [
    f"The {word} of Zo\xeb ran over the lazy dog, again and again." for word in ("cat", "Fox", "HORSE", "bee")
] * 20


def trained(folder, **options):
    source = write_jsonl(folder / "in.jsonl", TEXTS)
    given = {"output": str(folder / "tok"), "vocab_size": 300, **options}
    run = TrainTokenizerSettings(InputSettings((str(source),)), VocabularySettings(**given))
    return train_tokenizer(run, show_progress=False)


@pytest.mark.parametrize(
    ("case", "accents", "tokens"),
    [
        (None, None, ["a", "e"]),
        ("lower", False, ["a", "\xe9"]),
        ("keep", None, ["A", "\xc9"]),
        ("keep", True, ["A", "E"]),
    ],
)
def test_case_and_accents_of_a_bare_vocabulary(tmp_path, case, accents, tokens):
    entries = SPECIALS + LETTERS + (["A", "E", "\xc9"] if case == "keep" else []) + ["\xe9"]
    (tmp_path / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
    source = TokenizerSource(vocab_file=tmp_path / "vocab.txt", case=case, strip_accents=accents)
    assert make_tokenizer(source).tokenize("A \xc9") == tokens


def test_a_vocabulary_with_upper_case_keeps_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "[unused0]", *LETTERS, "Cat"]))
    assert make_tokenizer(TokenizerSource(vocab_file=tmp_path / "vocab.txt")).tokenize("Cat") == ["Cat"]
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "[unused0]", *LETTERS, "cat"]))
    assert make_tokenizer(TokenizerSource(vocab_file=tmp_path / "vocab.txt")).tokenize("Cat") == ["cat"]


def test_a_folders_own_case_and_another_one(tmp_path):
    save_tokenizer(make_tokenizer(TokenizerSource(vocab_file=write_vocab(tmp_path))), tmp_path / "folder")
    own = make_tokenizer(TokenizerSource(folder=tmp_path / "folder"))
    assert own.tokenize("The CAT") == ["the", "cat"]
    cased = make_tokenizer(TokenizerSource(folder=tmp_path / "folder", case="keep"))
    assert cased.tokenize("the CAT") == ["the", "[UNK]"] and len(cased) == len(own)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_trained_tokenizer_loads_offline_and_serves_the_pipeline(tmp_path, kind):
    from transformers import AutoTokenizer

    tokenizer = trained(tmp_path, type=kind)
    again = AutoTokenizer.from_pretrained(str(tmp_path / "tok"), local_files_only=True)
    text = "The Horse of Zo\xeb, again"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] and len(again) == len(tokenizer) <= 300
    assert tokenizer_kind(again) == kind
    manifest = prepare(tmp_path, tmp_path / "in.jsonl", tokenizer=str(tmp_path / "tok"))
    assert manifest["tokenizer"]["kind"] == kind and manifest["num_documents"] == len(TEXTS)
    lowered = "HORSE" not in "".join(again.tokenize("HORSE")).replace("##", "").replace("\u2581", "")
    assert lowered == (kind != "bpe")


def test_cased_training_and_what_it_refuses(tmp_path):
    tokenizer = trained(tmp_path, case="keep", vocab_size=200)
    assert tokenizer.convert_tokens_to_ids("H") != tokenizer.unk_token_id
    with pytest.raises(ValueError, match="`--output` must be a new folder"):
        trained(tmp_path)
    assert len(trained(tmp_path, vocab_size=60, overwrite=True)) <= 200
    with pytest.raises(ValueError, match="--case must be keep for --type bpe"):
        VocabularySettings(output="x", type="bpe", case="lower")
    with pytest.raises(ValueError, match="--vocab-size must be at least 261 for bpe"):
        VocabularySettings(output="x", type="bpe", vocab_size=260)
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    run = TrainTokenizerSettings(
        InputSettings((str(tmp_path / "empty.jsonl"),)), VocabularySettings(str(tmp_path / "t2"))
    )
    with pytest.raises(ValueError, match="must hold at least one document with text"):
        train_tokenizer(run, show_progress=False)
    with pytest.raises(ValueError, match=r"--num-shards must be 1 for a vocabulary, .* but is 2 instead"):
        TrainTokenizerSettings(InputSettings(("x",), num_shards=2, shard_id=1), VocabularySettings("y"))


def test_byte_level_files(tmp_path):
    tokenizer = trained(tmp_path, type="bpe")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    source = TokenizerSource(vocab_file=tmp_path / "vocab.json", merge_file=tmp_path / "merges.txt")
    assert make_tokenizer(source)(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    with pytest.raises(ValueError, match=r"`--merge-file` must name the merges\.txt"):
        make_tokenizer(TokenizerSource(vocab_file=tmp_path / "vocab.json"))
    with pytest.raises(ValueError, match="`--case` must be keep for a byte-level BPE vocabulary"):
        make_tokenizer(
            TokenizerSource(vocab_file=tmp_path / "vocab.json", merge_file=tmp_path / "merges.txt", case="lower")
        )
    (tmp_path / "vocab.json").write_text(json.dumps({k: v for k, v in model["vocab"].items() if k != "<mask>"}))
    with pytest.raises(ValueError, match=r"must contain .* but .* lacks <mask>"):
        make_tokenizer(source)


def test_a_vocabulary_with_gaps_is_refused(tmp_path):
    """As roberta-base's without its madeupword entries: fewer entries than its highest id + 1."""
    model = json.loads(trained(tmp_path, type="bpe").backend_tokenizer.to_str())["model"]
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    last = max(model["vocab"], key=model["vocab"].get)
    number = model["vocab"].pop(last)
    vocab = {token: i for token, i in model["vocab"].items()} | {last: number + 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    options = {"vocab_file": str(tmp_path / "vocab.json"), "merge_file": str(tmp_path / "merges.txt")}
    refused = rf"must number its {number + 1} entries from 0 to {number}, but has none with id {number}\. Add an entry"
    with pytest.raises(ValueError, match=refused):
        prepare(tmp_path, tmp_path / "in.jsonl", **options)
    (tmp_path / "vocab.json").write_text(json.dumps(list(vocab)))
    with pytest.raises(ValueError, match=r"must be a JSON map, but .* is a list"):
        prepare(tmp_path, tmp_path / "in.jsonl", **options)
    spec = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())
    spec["model"]["vocab"] = vocab
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=refused):
        prepare(tmp_path, tmp_path / "in.jsonl", tokenizer=str(tmp_path / "tok"))
    assert not list(tmp_path.glob("out*"))


def test_unfit_folders_and_vocabularies(tmp_path):
    with pytest.raises(ValueError, match="must be a tokenizer folder, but is no folder"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must be a Hugging Face tokenizer folder"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"must be given, and not both"):
        TokenizerSource()
    with pytest.raises(ValueError, match=r"`--merge-file` must go with `--vocab-file`, but is merges\.txt beside"):
        TokenizerSource(folder=tmp_path / "empty", merge_file=Path("merges.txt"))
    (tmp_path / "twice.txt").write_text("\n".join([*SPECIALS, "a", "b", "a"]))
    with pytest.raises(ValueError, match=r"must list each entry once, but .* has 'a' more than once"):
        make_tokenizer(TokenizerSource(vocab_file=tmp_path / "twice.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        make_tokenizer(TokenizerSource(vocab_file=tmp_path / "binary.txt"))


def test_special_tokens_must_differ(tmp_path):
    tokenizer = make_tokenizer(TokenizerSource(vocab_file=write_vocab(tmp_path)))
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(str(tmp_path / "bad"))
    with pytest.raises(ValueError, match=r"`mask_token` of the tokenizer .* must have an id of its own"):
        load_tokenizer(tmp_path / "bad")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("wordpiece", {}),
        ("wordpiece", {"case": "keep", "strip_accents": True}),
        ("wordpiece", {"case": "lower"}),
        ("bpe", {}),
    ],
)
def test_folders_written_without_transformers_are_its_own(tmp_path, monkeypatch, kind, options):
    """From vocabulary files and from a folder: the bytes that transformers saves, without importing it."""
    model = json.loads(trained(tmp_path, type=kind).backend_tokenizer.to_str())["model"]
    if kind == "bpe":
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
        source = TokenizerSource(vocab_file=tmp_path / "vocab.json", merge_file=tmp_path / "merges.txt")
    else:
        (tmp_path / "vocab.txt").write_text("\n".join(sorted(model["vocab"], key=model["vocab"].get)), encoding="utf-8")
        source = TokenizerSource(vocab_file=tmp_path / "vocab.txt", **options)
    tokenizer = make_tokenizer(source)
    save_tokenizer(tokenizer, tmp_path / "theirs")
    monkeypatch.setattr(folder, "make_tokenizer", None)  # what would import transformers
    write_folder(source, tmp_path / "ours")
    write_folder(TokenizerSource(folder=tmp_path / "ours"), tmp_path / "copied")
    assert files_of(tmp_path / "theirs") == files_of(tmp_path / "ours") == files_of(tmp_path / "copied")
    assert describe_folder(tmp_path / "ours") == {
        "kind": kind,
        "class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "lower_case": bool(getattr(tokenizer, "do_lower_case", False)),
    }


def test_other_folders_go_through_transformers(tmp_path):
    """A folder whose configuration and tokenizer.json disagree gets what transformers makes of it."""
    write_folder(TokenizerSource(vocab_file=write_vocab(tmp_path)), tmp_path / "odd")
    path = tmp_path / "odd" / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"do_lower_case": true', '"do_lower_case": false'))
    write_folder(TokenizerSource(folder=tmp_path / "odd"), tmp_path / "written")
    own, theirs = load_tokenizer(tmp_path / "written"), load_tokenizer(tmp_path / "odd")
    assert own.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert own.tokenize("The CAT") == theirs.tokenize("The CAT")
    write_folder(TokenizerSource(folder=tmp_path / "odd", case="keep"), tmp_path / "kept")
    assert load_tokenizer(tmp_path / "kept").tokenize("the CAT") == ["the", "[UNK]"]


def test_merges_of_another_vocabulary_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])})
    )
    (tmp_path / "merges.txt").write_text("a b\n")
    source = TokenizerSource(vocab_file=tmp_path / "vocab.json", merge_file=tmp_path / "merges.txt")
    with pytest.raises(ValueError, match="`--merge-file` must belong to the vocabulary"):
        write_folder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_blank_lines_at_the_end_and_what_google_strips(tmp_path):
    entries = [*SPECIALS, *LETTERS, "cat"]
    for number, text in enumerate(
        ("\n".join(entries), "\ufeff" + "\r\n".join(entries) + "\r\n\r\n", "\n".join(entries) + " \n\n \n")
    ):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
        tokenizer = make_tokenizer(TokenizerSource(vocab_file=tmp_path / f"{number}.txt"))
        assert len(tokenizer) == len(entries) and tokenizer.convert_tokens_to_ids("cat") == len(entries) - 1


def test_the_folder_of_googles_archive_and_of_fairseq(tmp_path):
    """A vocabulary beside other files, without a tokenizer's own, is what the folder stands for."""
    google = tmp_path / "uncased_L-2_H-128_A-2"
    google.mkdir()
    write_vocab(google)
    (google / "bert_config.json").write_text("{}")
    write_folder(TokenizerSource(folder=google), tmp_path / "a")
    write_folder(TokenizerSource(vocab_file=google / "vocab.txt"), tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert make_tokenizer(TokenizerSource(folder=google)).tokenize("The CAT") == ["the", "cat"]
    model = json.loads(trained(tmp_path, type="bpe").backend_tokenizer.to_str())["model"]
    fairseq = tmp_path / "gpt2_bpe"
    fairseq.mkdir()
    (fairseq / "encoder.json").write_text(json.dumps(model["vocab"]))
    (fairseq / "vocab.bpe").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    write_folder(TokenizerSource(folder=fairseq), tmp_path / "c")
    assert describe_folder(tmp_path / "c")["kind"] == "bpe"


def test_what_is_no_vocabulary_names_the_flag(tmp_path):
    write_folder(TokenizerSource(vocab_file=write_vocab(tmp_path)), tmp_path / "tok")
    (tmp_path / "renamed.json").write_bytes((tmp_path / "tok" / "tokenizer.json").read_bytes())
    (tmp_path / "merges.txt").write_text("a b\n")
    with zipfile.ZipFile(tmp_path / "uncased.zip", "w") as archive:
        archive.write(tmp_path / "vocab.txt", "uncased/vocab.txt")
    for name, remedy in {
        "tok": r"is a folder\. Give a folder by --tokenizer",
        "tok/tokenizer.json": "by --tokenizer .*tok",
        "tok/tokenizer_config.json": "by --tokenizer .*tok",
        "renamed.json": "by --tokenizer",
        "merges.txt": r"Give it by --merge-file",
        "uncased.zip": "Unpack it and give the folder with its vocab.txt by --tokenizer",
    }.items():
        with pytest.raises(ValueError, match=f"`--vocab-file` must be .*{remedy}"):
            make_tokenizer(TokenizerSource(vocab_file=tmp_path / name))
    for name, remedy in {
        "vocab.txt": "by --vocab-file .*vocab.txt",
        "tok/tokenizer.json": "the folder it lies in",
        "uncased.zip": "Unpack it",
        "bert-base-uncased": "nothing is downloaded",
    }.items():
        with pytest.raises(ValueError, match=f"must be a tokenizer folder, but is no folder.*{remedy}"):
            make_tokenizer(TokenizerSource(folder=tmp_path / name))


# What each keeps when text is lower-cased: the reading of a Hindi, Thai, Japanese, Arabic, Russian and a French word.
MARKED = [
    "\u0915\u093f\u092f\u0947",
    "\u0e17\u0e35\u0e48",
    "\u304c\u304e\u3050",
    "\u0622\u0645",
    "\u0439\u0451",
    "\u00e9t\u00e9",
]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_trained_vocabulary_strips_accents_from_latin_and_greek_alone(tmp_path, kind):
    source = write_jsonl(tmp_path / "in.jsonl", [" ".join(MARKED) + " \u039a\u03b1\u03af"] * 20)

    def words(**options):
        vocabulary = VocabularySettings(
            output=str(tmp_path / "tok"), type=kind, vocab_size=300, overwrite=True, **options
        )
        tokenizer = train_tokenizer(
            TrainTokenizerSettings(InputSettings((str(source),)), vocabulary), show_progress=False
        )
        assert load_tokenizer(tmp_path / "tok").tokenize(MARKED[0]) == tokenizer.tokenize(MARKED[0])
        joined = "".join(tokenizer.tokenize(" ".join([*MARKED, "\u039a\u03b1\u03af"])))
        return joined.replace("##", "").replace("\u2581", "")

    kept = "".join(MARKED[:-1])
    assert words() == kept + "ete" + "\u03ba\u03b1\u03b9"
    assert words(strip_accents=False) == kept + MARKED[-1] + "\u03ba\u03b1\u03af"
    assert MARKED[2] not in words(strip_accents=True)


def test_a_given_vocabulary_keeps_the_marks_it_has(tmp_path):
    """A vocabulary without marks gets Google's own stripping, one with vowel signs keeps them."""
    plain, marked = [*SPECIALS, *LETTERS, "##a", "\u0915", "##\u0915"], ["\u0915\u0947"]
    for entries, token in ((plain, "\u0915"), (plain + marked, marked[0])):
        (tmp_path / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
        source = TokenizerSource(vocab_file=tmp_path / "vocab.txt")
        assert make_tokenizer(source).tokenize("\u0915\u0947 \u00e9") == [token, "e"]
        write_folder(source, tmp_path / str(len(entries)))
        assert load_tokenizer(tmp_path / str(len(entries))).tokenize("\u0915\u0947 \u00e9") == [token, "e"]


def test_the_alphabet_fits_the_script(tmp_path):
    """Text of 3,000 Chinese characters has hardly an unknown one; a limit cuts it; few letters keep the old bound."""
    characters = [chr(0x4E00 + i) for i in range(3000)]
    source = write_jsonl(tmp_path / "in.jsonl", ["".join(characters)] * 3)

    def unknown(**options):
        vocabulary = VocabularySettings(output=str(tmp_path / "tok"), vocab_size=8000, overwrite=True, **options)
        tokenizer = train_tokenizer(
            TrainTokenizerSettings(InputSettings((str(source),)), vocabulary), show_progress=False
        )
        return tokenizer("".join(characters), add_special_tokens=False)["input_ids"].count(tokenizer.unk_token_id)

    assert unknown() <= 2
    assert unknown(limit_alphabet=1000) == 2000
    with pytest.raises(ValueError, match="--limit-alphabet must be at least 1 and go with --type wordpiece"):
        VocabularySettings("x", type="bpe", limit_alphabet=5)


def test_documents_that_lose_marks_are_counted(tmp_path):
    """Hindi under a vocabulary without vowel signs; English with a foreign name is no case of it."""
    english = "The cat sat on the mat, and then Zo\xeb ran far away again and again. " * 3 + "\u0419."
    source = write_jsonl(tmp_path / "in.jsonl", ["\u0915\u0947 \u0915\u0947 \u0915", english])
    (entry,) = prepare(tmp_path, source)["repaired"].items()
    assert entry[0].startswith("vowel signs or other marks") and entry[1]["count"] == 1
    assert prepare(tmp_path, source, strip_accents=False, overwrite=True)["repaired"] == {}
