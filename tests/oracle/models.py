"""Random transformers models and sequences for tests that compare with the oracle."""

from typing import Any

import torch
import transformers

from tests.oracle.network import FIRST_POSITION, LAYERNORM_EPSILON, Network, Sequence

VOCAB_SIZE = 61
HIDDEN, HEADS, LAYERS = 20, 4, 3
CLASSES = {
    "megatron-bert": transformers.MegatronBertForPreTraining,
    "bert": transformers.BertForPreTraining,
    "roberta": transformers.RobertaForMaskedLM,
}


def hf_model(model_type: str, *, seed: int = 0) -> Any:
    """A float64 model in eval mode, dropout irrelevant, no parameter at its initial 0 or 1, logits of order 1."""
    model_class: Any = CLASSES[model_type]
    config = model_class.config_class(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=36,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=32 + FIRST_POSITION[model_type],
        type_vocab_size=1 if model_type == "roberta" else 2,
        layer_norm_eps=LAYERNORM_EPSILON[model_type],
        pad_token_id=1 if model_type == "roberta" else 0,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config).double()
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def network(model_type: str, *, seed: int = 0) -> Network:
    """The oracle's network with the weights of `hf_model`."""
    weights = {name: tensor.detach().clone() for name, tensor in hf_model(model_type, seed=seed).named_parameters()}
    return Network(model_type, weights, num_heads=HEADS)


def sequences(
    model_type: str, lengths: tuple[int, ...] = (9, 14, 3), *, std: float = 0.05, seed: int = 1
) -> list[Sequence]:
    """Random sequences with 1 or 2 masked tokens and a random start each."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        types = (torch.arange(length) >= length // 2).long()
        count = 1 + number % 2
        made.append(
            Sequence(
                tokens=torch.randint(2, VOCAB_SIZE, (length,), generator=generator),
                token_types=torch.zeros_like(types) if model_type == "roberta" else types,
                masked_positions=torch.randperm(length, generator=generator)[:count].sort().values,
                masked_labels=torch.randint(VOCAB_SIZE, (count,), generator=generator),
                nsp_label=None if model_type == "roberta" else number % 2,
                start=std * torch.randn(length, HIDDEN, generator=generator, dtype=torch.float64),
            )
        )
    return made
