"""Random Hugging Face models to convert: two layers, odd sizes, a vocabulary not divisible by 128, every tensor
changed.

`SIZES` can be split by four tensor-parallel ranks (heads, feed-forward) and by nothing else that a wrong reshape could
hide behind: head size 5, feed-forward 36, 131 words, 39 positions.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

transformers.utils.logging.disable_progress_bar()

VOCAB_SIZE = 131
MOST_PADDING = 7
"""largest padding id of any model here: no real token of `batch` has it"""
SIZES = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 39,
    "initializer_range": 0.03,
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.15,
}


@dataclass(frozen=True)
class Case:
    """One transformers class, with the config fields that are not its defaults."""

    model_class: type
    fields: dict
    kind: str

    @property
    def config(self):
        return self.model_class.config_class(**{**SIZES, **self.fields})


ROBERTA = {"type_vocab_size": 1, "max_position_embeddings": 41, "layer_norm_eps": 1e-5, "pad_token_id": 1}
CASES = {
    "megatron-bert": Case(transformers.MegatronBertForPreTraining, {"layer_norm_eps": 1e-5}, "pretraining"),
    "bert": Case(transformers.BertForPreTraining, {"classifier_dropout": 0.25}, "pretraining"),
    "bert-masked-lm": Case(transformers.BertForMaskedLM, {"layer_norm_eps": 1e-10}, "masked-lm"),
    "bert-encoder": Case(transformers.BertModel, {}, "encoder"),
    "megatron-bert-masked-lm": Case(transformers.MegatronBertForMaskedLM, {}, "masked-lm"),
    "megatron-bert-encoder": Case(transformers.MegatronBertModel, {"layer_norm_eps": 1e-5}, "encoder"),
    "roberta": Case(transformers.RobertaForMaskedLM, ROBERTA, "masked-lm"),
    "roberta-encoder": Case(transformers.RobertaModel, ROBERTA, "encoder"),
}
FULL = ("megatron-bert", "bert", "roberta")
"""One case per architecture, with every head it has."""


def random_hf_model(name: str, seed: int = 3) -> torch.nn.Module:
    """A model of `CASES[name]` in eval mode, no parameter left at its initial 0 or 1."""
    case = CASES[name]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = case.model_class(case.config)
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def save_hf_model(name: str, folder: Path, **options) -> Path:
    """`random_hf_model(name)` as a folder; returns it."""
    random_hf_model(name).save_pretrained(folder, **options)
    return folder


def edit_config(folder: Path, *, without: tuple[str, ...] = (), **fields) -> None:
    """Change config.json by hand, as its users do: `fields` are set, those of `without` removed."""
    path = folder / "config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in without}
    path.write_text(json.dumps({**kept, **fields}))


def tokenizer_folder(folder: Path, *, roberta: bool = False) -> Path:
    """A tokenizer of VOCAB_SIZE made-up words, with the special tokens of the architecture; returns the folder."""
    specials = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    vocab = {word: i for i, word in enumerate([*specials, *(f"w{i}" for i in range(VOCAB_SIZE - 5))])}
    made = transformers.RobertaTokenizer(vocab=vocab, merges=[]) if roberta else transformers.BertTokenizer(vocab=vocab)
    made.save_pretrained(folder)
    return folder


def batch(model_type: str, pad: int | None = None):
    """(tokens, types, mask): pairs, and rows of 17, 17, 9 and 3 real tokens, none of them the padding id `pad`."""
    generator = torch.Generator().manual_seed(5)
    if pad is None:
        pad = 1 if model_type == "roberta" else 0
    lengths = torch.tensor([17, 17, 9, 3])
    mask = torch.arange(17) < lengths[:, None]
    tokens = torch.randint(MOST_PADDING + 1, VOCAB_SIZE, mask.shape, generator=generator).where(mask, pad)
    types = ((torch.arange(17) >= lengths[:, None] // 2) & mask).long()
    return tokens, torch.zeros_like(types) if model_type == "roberta" else types, mask


@torch.no_grad()
def hf_outputs(model: torch.nn.Module):
    """(MLM logits of real tokens [N, V] or None, NSP logits [B, 2] or None, hidden states of real tokens [N, H])."""
    tokens, types, mask = batch(model.config.model_type, model.config.pad_token_id)
    out = model(input_ids=tokens, attention_mask=mask.long(), token_type_ids=types, output_hidden_states=True)
    mlm = getattr(out, "prediction_logits", getattr(out, "logits", None))
    nsp = getattr(out, "seq_relationship_logits", None)
    return None if mlm is None else mlm[mask], nsp, out.hidden_states[-1][mask]
