"""Small random encoders with a head of each task kind, and batches that suit them."""

import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

B, S, VOCABULARY = 4, 12, 64
HEADS = {
    "classification": BertForSequenceClassification,
    "regression": BertForSequenceClassification,
    "spans": BertForQuestionAnswering,
    "choice": BertForMultipleChoice,
    "tags": BertForTokenClassification,
}


def tiny_config(**changes) -> BertConfig:
    """A 2-layer, 16-wide BERT."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "num_labels": 3,
        "initializer_range": 0.3,
    }
    return BertConfig(**{**settings, **changes})


def tiny_model(kind: str, seed: int = 0, **changes):
    """A model with the head of `kind`, same weights for the same seed."""
    torch.manual_seed(seed)
    own = {"regression": {"num_labels": 1, "problem_type": "regression"}, "spans": {"num_labels": 2}}.get(kind, {})
    return HEADS[kind](tiny_config(**{**own, **changes}))


def example(kind: str, index: int) -> dict:
    """Features of one training example, padded to S; its length varies with `index`."""
    generator = torch.Generator().manual_seed(index)

    def text():
        length = 6 + index % 5
        ids = torch.randint(5, VOCABULARY, (S,), generator=generator)
        mask = (torch.arange(S) < length).long()
        return ids * mask, mask

    if kind == "choice":
        pairs = [text() for _ in range(4)]
        return {
            "input_ids": torch.stack([ids for ids, _ in pairs]),
            "attention_mask": torch.stack([mask for _, mask in pairs]),
            "labels": torch.tensor(index % 4),
        }
    ids, mask = text()
    features = {"input_ids": ids, "attention_mask": mask}
    if kind == "classification":
        return {**features, "labels": torch.tensor(index % 3)}
    if kind == "regression":
        return {**features, "labels": torch.tensor(float(index % 5))}
    if kind == "spans":
        return {
            **features,
            "start_positions": torch.tensor(1 + index % 3),
            "end_positions": torch.tensor(2 + index % 3),
        }
    return {**features, "labels": torch.where(mask.bool(), ids % 3, torch.tensor(-100))}


def examples(kind: str, count: int = 16) -> list[dict]:
    """A list data set."""
    return [example(kind, index) for index in range(count)]


def batch(kind: str, count: int = B) -> dict:
    """Stacked features of the first examples."""
    rows = examples(kind, count)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
