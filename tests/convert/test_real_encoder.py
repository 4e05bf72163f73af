"""A real pretrained network through the converter: hidden states, sentence embeddings, continual ALUM on Wikipedia."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from megatron_alum.convert import load_hf_into_model, model_config_from_hf
from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.to_hf import export_folder
from megatron_alum.convert.verify import single_rank_model, without_padding
from tests.convert.real_encoder import encoder_dir

ROOT = Path(__file__).resolve().parents[2]
HIDDEN_ATOL = 1e-4  # float32, six to twelve layers, activations of order 1 to 10
# (sentence, its paraphrase); sentences of different rows are about different things.
PARAPHRASES = [
    ("A man is playing a guitar on the street.", "Someone plays the guitar outdoors."),
    ("The stock market fell sharply on Monday.", "Share prices dropped steeply at the start of the week."),
    ("The cat is sleeping on the sofa.", "A kitten naps on the couch."),
    ("She was born in Paris in 1867.", "Her birthplace is the French capital, in the year 1867."),
]
LONG = "This is one of several sentences of a longer text, whose row is therefore not padded at its end. "


@torch.no_grad()
def test_hidden_states_equal_those_of_transformers():
    folder = encoder_dir()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [sentence for pair in PARAPHRASES for sentence in pair] + [LONG * 4]
    inputs = tokenizer(texts, texts[::-1], padding=True, truncation=True, max_length=96, return_tensors="pt")
    theirs = transformers.AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    config = model_config_from_hf(folder)
    with single_rank_model(config, len(tokenizer)) as model:
        with pytest.warns(UserWarning, match="no weights for the MLM head, the NSP head"):
            load_hf_into_model(folder, model, tokenizer_dir=folder)
        model.eval()
        mask, types = inputs["attention_mask"].bool(), inputs["token_type_ids"]
        packed = without_padding(inputs["input_ids"], types, mask, torch.device("cpu"))
        ours = model.encode(model.embed(packed), packed).squeeze(1)
    assert not mask.all()
    torch.testing.assert_close(ours, theirs[mask], atol=HIDDEN_ATOL, rtol=0)


@torch.no_grad()
def sentence_vectors(folder, texts):
    """Unit vectors [n, H]: the mean over real tokens, as sentence-transformers pools this encoder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = transformers.AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def similarity_gap(folder):
    """(lowest cosine of a sentence and its paraphrase, mean cosine of sentences about different things)."""
    first, second = (sentence_vectors(folder, [pair[side] for pair in PARAPHRASES]) for side in (0, 1))
    cosines = first @ second.T
    different = cosines[~torch.eye(len(PARAPHRASES), dtype=torch.bool)]
    return float(cosines.diagonal().min()), float(different.mean())


@pytest.mark.filterwarnings("ignore:.*has no weights for")
def test_an_unchanged_export_is_the_same_encoder(tmp_path):
    folder = encoder_dir()
    import_folder(str(folder), tmp_path / "run")
    exported = export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out")
    before = transformers.AutoModel.from_pretrained(folder).state_dict()
    after = transformers.AutoModel.from_pretrained(exported).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def run(*words, torchrun=0):
    """A tool of this project, or the training entry under torchrun on so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)] if torchrun else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=2400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.requires_shared_data
def test_continual_alum_on_wikipedia_trains_the_fresh_head_and_keeps_the_encoder(shared_data, tmp_path):
    """100 iterations from the encoder, two tensor-parallel processes, ALUM from step 0."""
    folder = encoder_dir()
    shards = tmp_path / "wiki"
    pages = sorted((shared_data / "wiki" / "extracted" / "AA").glob("wiki_0[0-3].bz2"))
    run("tools/preprocess_data.py", "--input", *pages, "--output-prefix", shards, "--tokenizer", folder)
    options = (
        "--seq-length 64 --micro-batch-size 8 --global-batch-size 8 --train-iters 100 --lr 5e-5 --eval-interval 0 "
        "--mask-rate-start 0.15 --mask-rate-end 0.15 --alum-start-fraction 0 --tensor-model-parallel-size 2"
    )
    folders = ["--data-path", shards, "--save", tmp_path / "run", "--init-from", folder]
    run("pretrain_bert_alum.py", *folders, *options.split(), torchrun=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["lm_loss"] for row in rows]
    # A fresh head over a trained encoder starts near ln V = 10.3 (its decoder is the trained embedding table).
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 1.0, (losses[:10], losses[-10:])
    assert all(row["phase"] == "alum" and row["alum_kl"] >= 0 for row in rows)
    run("tools/convert_checkpoint.py", "to-hf", "--load", tmp_path / "run", "--output", tmp_path / "out", "--verify")
    paraphrases, different = similarity_gap(tmp_path / "out")
    assert paraphrases > different, (paraphrases, different)
