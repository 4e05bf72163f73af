"""The exported folder as its users see it: offline, through Auto classes and pipelines, with its model card."""

import json
import os

import pytest
import safetensors.torch
import torch
import transformers

from megatron_alum.convert import commands
from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.model_card import CardFacts, mean_of, model_card
from megatron_alum.convert.to_hf import export_folder
from tests.convert import ranks
from tests.convert.models import VOCAB_SIZE, save_hf_model, tokenizer_folder
from tests.helpers.distributed import run_ranks
from tests.helpers.warm import run_script

RUN = {"objective": "nsp", "lr": 1e-4, "alum_alpha": 10.0, "train_iters": 9, "global_batch_size": 32, "seed": 4}


def metrics_rows():
    """Two standard and two adversarial iterations before the exported one (7), one after it."""
    for i in range(4, 9):
        adversarial = i > 5
        yield {
            "iteration": i,
            "phase": "alum" if adversarial else "standard",
            "lm_loss": 10.0 - i,
            "nsp_loss": 0.5,
            "alum_kl": 0.25 * i if adversarial else None,
            "effective_perturbation": 0.5 if adversarial else None,
            "ascent_ratio": float("nan") if i == 6 else 1e-3,
            "mask_rate": 0.15,
            "skipped": 3,
        }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder exported from a checkpoint of two ranks with tokenizer, corpus manifest and metrics."""
    root = tmp_path_factory.mktemp("export")
    source = save_hf_model("megatron-bert", root / "source")
    tokenizer = tokenizer_folder(root / "tokenizer")
    (root / "corpus.json").write_text(json.dumps({"num_documents": 12, "num_tokens": 3456, "files": {}}))
    run = {**RUN, "data_path": [str(root / "corpus")]}
    run_ranks(2, ranks.save_from_hf, str(source), 2, str(root / "run"), run, str(tokenizer))
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics_rows()) + '{"iter')
    return export_folder(read_checkpoint_source(root / "run"), root / "model")


USE_OFFLINE = """
import socket, sys
def refuse(*_): raise OSError("no network in this test")
socket.socket.connect = refuse
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, pipeline
folder = sys.argv[1]
for loader in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining):
    _, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], (loader, info)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert len(tokenizer) == int(sys.argv[2]) and tokenizer.mask_token == "[MASK]"
best = pipeline("fill-mask", model=folder)("w1 w2 [MASK] w3")
assert len(best) == 5 and all(0 < row["score"] < 1 and row["token_str"] in tokenizer.get_vocab() for row in best)
vectors = pipeline("feature-extraction", model=folder)("w1 w2 w3")
assert (len(vectors[0]), len(vectors[0][0])) == (5, 20)  # [CLS] w1 w2 w3 [SEP], hidden size
"""


def test_loads_without_network_in_auto_classes_and_pipelines(exported, tmp_path):
    (tmp_path / "use.py").write_text(USE_OFFLINE)
    done = run_script(tmp_path / "use.py", exported, VOCAB_SIZE)
    assert done.returncode == 0, done.stderr[-2000:]


def test_works_as_the_encoder_of_sentence_transformers(exported):
    """sentence-transformers wraps the folder with mean pooling; by hand: the mean over the real tokens."""
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    texts = ["w1 w2", "w3"]
    vectors = sentence_transformers.SentenceTransformer(str(exported), device="cpu").encode(
        texts, convert_to_tensor=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(exported)(**inputs).last_hidden_state
    real = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(vectors, (hidden * real).sum(1) / real.sum(1), atol=1e-6, rtol=1e-5)


def test_the_card_states_the_records_of_the_run(exported):
    card = (exported / "README.md").read_text()
    header = card.split("---")[1]
    assert "library_name: transformers" in header and "pipeline_tag: fill-mask" in header
    assert "`MegatronBertForPreTraining`" in card and "after iteration 7." in card
    assert "license: unknown" in header and "language:" not in header
    for fact in ("lr 0.0001", "train_iters 9", "alum_alpha 10", "12 documents and 3,456 tokens."):
        assert fact in card
    # Iterations 4 to 7 only: the fifth row is later than the export, the torn one is no row.
    assert "| lm_loss | 4.5 | 4.5 |" in card and "skipped for non-finite values: 3" in card
    assert "Means over the 2 logged adversarial iterations" in card
    assert (
        "| alum_kl | 1.625 |" in card
        and "| effective_perturbation | 0.5 |" in card
        and "| ascent_ratio | 0.001 |" in card
    )


def test_a_card_without_records_says_so():
    card = model_card(CardFacts(name="m", class_name="BertModel"))
    assert "no configuration of a training run" in card and "was not found" in card and "No metrics.jsonl" in card
    assert "pipeline_tag: feature-extraction" in card and "Perturbation" not in card
    assert "## Evaluation\n\nNone was recorded" in card and card.index("## Evaluation") < card.index("## Limits")


def test_means_by_hand():
    rows = [{"x": 1.0}, {"x": None}, {"x": float("inf")}, {}, {"x": 4}]
    assert mean_of(rows, "x") == 2.5 and mean_of(rows, "y") is None


def test_files_are_readable_by_everyone_the_umask_admits(exported):
    os.umask(mask := os.umask(0o022))
    assert {oct(path.stat().st_mode & 0o777) for path in exported.iterdir()} == {oct(0o666 & ~mask)}


def test_a_checkpoint_without_a_tokenizer_takes_that_of_another_model(tmp_path):
    """Its tokenizer and nothing else: the other folder's weights, index and card stay where they are."""
    source = save_hf_model("bert", tmp_path / "hf")
    import_folder(str(source), tmp_path / "run")
    other = tokenizer_folder(save_hf_model("megatron-bert", tmp_path / "other"))
    for name in ("pytorch_model.bin", "model.safetensors.index.json", "generation_config.json"):
        (other / name).write_text("{}")
    commands.to_hf(str(tmp_path / "run"), tmp_path / "out", tokenizer=other)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == VOCAB_SIZE
    given = {path.name for path in tmp_path.joinpath("out").iterdir()}
    assert given == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_tokenizer_that_is_none_or_one_too_many_is_refused(exported, tmp_path):
    import_folder(str(save_hf_model("bert", tmp_path / "hf")), tmp_path / "run")
    with pytest.raises(ValueError, match="absent` must be a tokenizer folder, but is not a folder"):
        commands.to_hf(str(tmp_path / "run"), tmp_path / "out", tokenizer=tmp_path / "absent")
    with pytest.raises(ValueError, match=r"--tokenizer must not be given .* has its own, but is .*tokenizer instead\."):
        commands.to_hf(str(exported.parent / "run"), tmp_path / "out", tokenizer=exported.parent / "tokenizer")
    assert not (tmp_path / "out").exists()


def run_tool(*arguments):
    return run_script("tools/convert_checkpoint.py", *arguments)


def test_the_tool_verifies_and_prints_one_line(exported, tmp_path):
    card = ("--license", "apache-2.0", "--language", "en", "de")
    done = run_tool("to-hf", "--load", exported.parent / "run", "--output", tmp_path / "out", "--verify", *card)
    assert done.returncode == 0, done.stderr
    verified, closing = done.stdout.splitlines()
    assert verified.startswith("verified: largest difference of hidden states") and "KL" in verified
    assert closing.startswith(f"{tmp_path / 'out'}: iteration 7 of")
    written = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0\nlanguage:\n- en\n- de\n" in written
    assert (
        f"megatron-alum convert to-hf --load {exported.parent / 'run'} --output {tmp_path / 'out'} --verify" in written
    )


def test_the_tool_reports_a_user_error_in_one_sentence(tmp_path):
    done = run_tool("to-hf", "--load", tmp_path / "absent", "--output", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
