"""RoBERTa from text to fill-mask: byte-level BPE vocabulary, full-sentence shards, continual run at TP=2, export."""

import json
import pydoc_data.topics

import transformers

from tests.helpers.distributed import run_ranks
from tests.helpers.warm import run_script
from tests.training.runs import train_quietly

ITERATIONS = 24
OPTIONS = f"""
    --seq-length 32 --micro-batch-size 8 --global-batch-size 8 --train-iters {ITERATIONS} --lr 5e-3
    --adam-beta2 0.98 --mask-rate-start 0.15 --mask-rate-end 0.15 --alum-start-fraction 0 --eval-interval 0
    --tensor-model-parallel-size 2
""".split()


def test_roberta_from_text_to_fill_mask(tmp_path):
    corpus = tmp_path / "topics.jsonl"
    topics = sorted(pydoc_data.topics.topics.items())[:25]
    corpus.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in topics))
    start, shards = tmp_path / "start", tmp_path / "shards"
    run("tools/train_tokenizer.py", "--input", corpus, "--output", start, "--type", "bpe", "--vocab-size", 601)
    run("tools/preprocess_data.py", "--input", corpus, "--output-prefix", shards, "--tokenizer", start, "--workers", 1)
    vocab_size = len(transformers.AutoTokenizer.from_pretrained(start))
    save_random_roberta(start, vocab_size)

    folders = ["--data-path", shards, "--save", tmp_path / "run", "--init-from", start]
    assert run_ranks(2, train_quietly, [str(word) for word in (*folders, *OPTIONS)]) == [None, None]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["alum"] * ITERATIONS
    assert all(not row["nsp_loss"] and row["alum_kl"] > 0 for row in rows)
    losses = [row["lm_loss"] for row in rows]
    assert sum(losses[-4:]) < sum(losses[:4])

    exported = tmp_path / "out"
    printed = run("tools/convert_checkpoint.py", "to-hf", "--load", tmp_path / "run", "--output", exported, "--verify")
    assert "MLM logits" in printed and "NSP" not in printed
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["RobertaForMaskedLM"] and config["max_position_embeddings"] == 34
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (1, 0, 2)
    assert config["classifier_dropout"] == 0.3  # the network does not need it; the run has kept it
    best = transformers.pipeline("fill-mask", model=str(exported))("The <mask> statement is used in a function.")
    assert len(best) == 5 and all(row["token"] < vocab_size for row in best)


def run(script, *arguments):
    """What the script prints."""
    done = run_script(script, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def save_random_roberta(folder, vocab_size):
    """The model that the continual run starts from, beside its tokenizer: 32 positions after the two unused rows."""
    transformers.set_seed(5)
    config = transformers.RobertaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        classifier_dropout=0.3,
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
