"""Inputs of the files beside it, which commit 9131dd6 wrote from them (SOURCE is its checkout, with extensions built):

    python make.py
    python SOURCE/tools/preprocess_data.py --input in.jsonl --output-prefix corpus --vocab-file vocab.txt --workers 1
    python SOURCE/tools/finetune.py --model encoder --task sst2 --data-dir glue --output runs-alum --seeds 1 2 \
        --num-train-epochs 1 --learning-rate 1e-3 --per-device-train-batch-size 4 --method alum --max-seq-length 16 \
        --save-model false
"""

import json
import random
from pathlib import Path

WORDS = "the a dog cat runs sits eats good bad film book river town old new big small and of in on".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", ",", "##s"]


def save_encoder(folder):
    """One layer of width 16 with the words above; its weights do not matter."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=32, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    (Path(folder) / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizer(str(Path(folder) / "vocab.txt")).save_pretrained(folder)


def write_sentences(path, count):
    """A file of SST-2's layout."""
    rows = [f"{' '.join(random.choices(WORDS, k=4))} {'good' if i % 2 else 'bad'}\t{i % 2}\n" for i in range(count)]
    path.write_text("sentence\tlabel\n" + "".join(rows))


if __name__ == "__main__":
    random.seed(0)
    with open("in.jsonl", "w") as out:
        for _document in range(24):
            sentences = [random.choices(WORDS, k=random.randint(3, 9)) for _ in range(random.randint(1, 5))]
            text = " ".join(" ".join(words).capitalize() + "." for words in sentences)
            out.write(json.dumps({"text": text}) + "\n")
    Path("vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    Path("glue/SST-2").mkdir(parents=True, exist_ok=True)
    write_sentences(Path("glue/SST-2/train.tsv"), 16)
    write_sentences(Path("glue/SST-2/dev.tsv"), 12)
    save_encoder("encoder")
