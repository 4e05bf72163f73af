"""Exported folders in their users' hands: pipelines and sentence-transformers on long and empty text, in batches with
padding, after fine-tuning, saved again, and through torch.export; for every architecture.
"""

import json

import pytest
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.tokenizer_files import copy_tokenizer, limit_length
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from tests.convert.models import CASES, FULL, VOCAB_SIZE, save_hf_model, tokenizer_folder

USABLE = 39  # tokens that the position tables of the test models serve; RoBERTa's has 41 rows
ATOL = 1e-5
UNLIMITED = int(1e30)


@pytest.fixture(scope="module", params=FULL)
def exported(request, tmp_path_factory):
    """An export of one architecture, every head it has."""
    root = tmp_path_factory.mktemp(request.param)
    (spelling_tokenizer if request.param == "roberta" else tokenizer_folder)(root / "hf")
    commands.from_hf(str(save_hf_model(request.param, root / "hf")), root / "run")
    commands.to_hf(str(root / "run"), root / "out")
    return root / "out"


def spelling_tokenizer(folder):
    """RoBERTa's kind, which spells every word of `texts`, with as many entries as the models have."""
    entries = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u0120", "w", *"0123456789"]
    entries += [f"unused{i}" for i in range(VOCAB_SIZE - len(entries))]
    made = transformers.RobertaTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[])
    made.save_pretrained(folder)
    return folder


def texts(folder):
    """(short, long, empty): the long one has ten times as many words as there are positions."""
    words = [f"w{i % 97}" for i in range(10 * USABLE)]
    return "w1 w2 w3", " ".join(words), ""


def pipe(task, model, **options):
    return transformers.pipeline(task, model=str(model), device="cpu", **options)


def test_the_tokenizer_knows_the_longest_input(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer.model_max_length == USABLE
    assert len(tokenizer(texts(exported)[1], truncation=True)["input_ids"]) == USABLE


def test_fill_mask_takes_long_and_short_text(exported):
    fill, mask = pipe("fill-mask", exported), transformers.AutoTokenizer.from_pretrained(exported).mask_token
    for text in (mask, f"w1 {mask} w2", f"{mask} {texts(exported)[1]}"):
        best = fill(text, tokenizer_kwargs={"truncation": True})
        assert len(best) == 5 and all(0 < row["score"] < 1 for row in best)


def test_feature_extraction_gives_the_same_alone_and_in_a_batch(exported):
    extract = pipe("feature-extraction", exported, tokenize_kwargs={"truncation": True})
    short, long, empty = texts(exported)
    batched = extract([short, long, empty, short], batch_size=4)
    for text, found in zip((short, long, empty, short), batched, strict=True):
        alone = torch.tensor(extract(text)[0])
        assert len(alone) == USABLE if text == long else 2 <= len(alone) < USABLE  # special tokens at least
        torch.testing.assert_close(torch.tensor(found[0])[: len(alone)], alone, atol=ATOL, rtol=0)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_fine_tuned_model_serves(task, exported, tmp_path):
    """The folder that fine-tuning writes: its own model builder, saved with the tokenizer."""
    from megatron_alum.finetune.benchmarks.tasks import TASKS
    from megatron_alum.finetune.runs.models import build_model, load_tokenizer

    of_task = (TASKS["sst2"],) if task == "text-classification" else (TASKS["jnlpba"], ("O", "B-DNA", "I-DNA"))
    build_model(str(exported), *of_task).save_pretrained(tmp_path)
    load_tokenizer(str(exported)).save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).model_max_length == USABLE
    serve = pipe(task, tmp_path)
    options = {"truncation": True} if task == "text-classification" else {}
    short, long, empty = texts(exported)
    if task == "text-classification":
        rows = serve([short, long, empty], batch_size=3, **options)
        assert len(rows) == 3 and all(0 < row["score"] <= 1 for row in rows)
        assert rows[0]["score"] == pytest.approx(serve(short)[0]["score"], abs=ATOL)
    else:
        found = serve([short, long], batch_size=2)  # it truncates to the tokenizer's limit by itself
        assert len(found) == 2 and all(0 < row["score"] <= 1 for rows in found for row in rows)


def test_sentence_transformers_takes_long_text(exported):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    encoder = sentence_transformers.SentenceTransformer(str(exported), device="cpu")
    assert encoder.max_seq_length == USABLE
    short, long, empty = texts(exported)
    vectors = encoder.encode([short, long, empty], convert_to_tensor=True)
    tokenizer, model = load_tokenizer(exported), transformers.AutoModel.from_pretrained(exported).eval()
    for text, vector in zip((short, long, empty), vectors, strict=True):  # the mean of the last hidden states, by hand
        with torch.no_grad():
            hidden = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(0), atol=ATOL, rtol=0)


def test_saving_again_and_torch_export_keep_the_outputs(exported, tmp_path):
    model_class = CASES[exported.parent.name.rstrip("0123456789")].model_class
    model = model_class.from_pretrained(exported).eval()
    inputs = dict(transformers.AutoTokenizer.from_pretrained(exported)(texts(exported)[0], return_tensors="pt"))
    model.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again").eval()
    program = torch.export.export(model, args=(), kwargs=inputs).module()
    with torch.no_grad():
        expected = model(**inputs)
        for other in (again, program):
            assert torch.allclose(other(**inputs)[0], expected[0], atol=ATOL), type(other).__name__


# how a tokenizer gets into a run: (tokenizer_config.json's fields, limit of the export)
LIMITS = {
    "not said": ({"model_max_length": UNLIMITED}, USABLE),
    "no field": ({}, USABLE),
    "of a larger model": ({"model_max_length": 512}, USABLE),
    "as of old": ({"max_len": 512}, USABLE),
    "its owner's, shorter": ({"model_max_length": 16}, 16),
    "nonsense": ({"model_max_length": -1}, USABLE),
    "null": ({"model_max_length": None}, USABLE),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_is_written_whatever_the_tokenizer_said(name, tmp_path):
    fields, limit = LIMITS[name]
    source = tokenizer_folder(tmp_path / "tokenizer")
    path = source / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"}
    path.write_text(json.dumps(config | fields))
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out", load_tokenizer(source))
    limit_length(tmp_path / "out", USABLE)
    assert load_tokenizer(tmp_path / "out").model_max_length == limit


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.txt",)], ids=str)
def test_a_tokenizer_without_a_config_is_completed(kept, tmp_path):
    """A tokenizer.json or a vocabulary alone loads only beside the model's config.json: an export holds all of it."""
    source = tokenizer_folder(tmp_path / "tokenizer")
    entries = load_tokenizer(source).get_vocab()
    (source / "vocab.txt").write_text("\n".join(sorted(entries, key=entries.get)) + "\n")
    for path in source.iterdir():
        if path.name not in kept:
            path.unlink()
    (source / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out", load_tokenizer(source))
    limit_length(tmp_path / "out", USABLE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.get_vocab(), tokenizer.model_max_length) == (entries, USABLE)
