"""The same weights in a transformers model: the second implementation that the networks are compared with.

Written from the architectures' definitions, independent of `megatron_alum.convert`. Works on whole (TP = 1) tensors.
"""

import torch
import transformers

from megatron_alum.config.model import ModelConfig
from megatron_alum.models import SplitBert
from megatron_alum.parallel import ProcessGroups

_CLASSES = {
    "megatron-bert": (transformers.MegatronBertConfig, transformers.MegatronBertForPreTraining),
    "bert": (transformers.BertConfig, transformers.BertForPreTraining),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM),
}


def randomize_whole(model: SplitBert, groups: ProcessGroups, seed: int = 7) -> None:
    """Changes every parameter, biases and LayerNorms included, so that no error hides behind an initial 0 or 1.

    Drawn for the unsplit parameter: the same network on every layout. Padded vocabulary rows change too; it must have
    no effect.
    """
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(seed * 1000 + index)
            split = getattr(parameter, "tensor_model_parallel", False)
            shape = list(parameter.shape)
            if split:
                shape[parameter.partition_dim] *= groups.tp_size
            noise = 0.1 * torch.randn(shape, generator=generator)
            parameter.add_(noise.chunk(groups.tp_size, parameter.partition_dim)[groups.tp_rank] if split else noise)


def twin(model: SplitBert) -> torch.nn.Module:
    """A transformers model in eval mode with the weights of `model`."""
    config: ModelConfig = model.model_config
    config_class, model_class = _CLASSES[config.model_type]
    hf = model_class(
        config_class(
            vocab_size=model.real_vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.ffn_hidden_size,
            hidden_act="gelu",
            hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            max_position_embeddings=config.num_position_rows,
            type_vocab_size=config.num_token_types,
            layer_norm_eps=config.layernorm_epsilon,
            pad_token_id=1 if config.model_type == "roberta" else 0,
        )
    )
    ours = {name: tensor.detach() for name, tensor in model.named_parameters()}
    missing, unexpected = hf.load_state_dict(dict(renamed(config, ours, model.real_vocab_size)), strict=False)
    assert not unexpected
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "lm_head.decoder.weight", "lm_head.bias"}
    assert all(name in tied or "position_ids" in name for name in missing), missing
    hf.tie_weights()
    return hf.eval()


def load_renamed(config, model, weights):
    """Gives `model` the `weights` of a transformers state dict; padded vocabulary rows become zero.

    `renamed` is linear and each of its values has one position, so numbering the positions inverts it.
    """
    with torch.no_grad():
        own = dict(model.named_parameters())
        places, count = {}, 0
        for name, parameter in own.items():
            places[name] = torch.arange(count, count + parameter.numel()).view(parameter.shape)
            count += parameter.numel()
        flat = torch.zeros(count, dtype=torch.float64)
        for name, place in renamed(config, places, model.real_vocab_size):
            if name in weights:  # the decoder's bias has two names
                flat[place.flatten()] = weights[name].double().flatten()
        for name, parameter in own.items():
            parameter.copy_(flat[places[name]])


def renamed(config, ours, vocab_size):
    """(transformers' name, tensor) for whole tensors by SplitBert's names: weights, or anything linear in them."""
    root = "roberta" if config.model_type == "roberta" else "bert"
    yield f"{root}.embeddings.word_embeddings.weight", ours["embedding.word_embeddings.weight"][:vocab_size]
    yield f"{root}.embeddings.position_embeddings.weight", ours["embedding.position_embeddings.weight"]
    yield f"{root}.embeddings.token_type_embeddings.weight", ours["embedding.tokentype_embeddings.weight"]
    if config.post_layernorm:
        yield from _both(f"{root}.embeddings.LayerNorm", ours, "embedding.layer_norm")
    else:
        yield from _both("bert.encoder.ln", ours, "encoder.final_layernorm")
    for index in range(config.num_layers):
        yield from _layer(config, ours, f"encoder.layers.{index}.", f"{root}.encoder.layer.{index}.")
    yield from _head(config, ours, vocab_size)


def _layer(config, ours, source, target):
    for part in ("weight", "bias"):
        merged = ours[f"{source}self_attention.linear_qkv.{part}"]
        # rows: for each head its query, key and value rows
        split = merged.view(config.num_attention_heads, 3, config.hidden_size // config.num_attention_heads, -1)
        for which, name in enumerate(("query", "key", "value")):
            value = split[:, which].reshape(config.hidden_size, -1)
            yield f"{target}attention.self.{name}.{part}", value if part == "weight" else value.flatten()
    yield from _both(f"{target}attention.output.dense", ours, f"{source}self_attention.linear_proj")
    yield from _both(f"{target}intermediate.dense", ours, f"{source}mlp.linear_fc1")
    yield from _both(f"{target}output.dense", ours, f"{source}mlp.linear_fc2")
    if config.post_layernorm:
        yield from _both(f"{target}attention.output.LayerNorm", ours, f"{source}attention_layernorm")
        yield from _both(f"{target}output.LayerNorm", ours, f"{source}mlp_layernorm")
    else:
        yield from _both(f"{target}attention.ln", ours, f"{source}input_layernorm")
        yield from _both(f"{target}ln", ours, f"{source}pre_mlp_layernorm")


def _head(config, ours, vocab_size):
    bias = ours["output_layer.bias"][:vocab_size]
    if config.model_type == "roberta":
        yield from _both("lm_head.dense", ours, "lm_head.dense")
        yield from _both("lm_head.layer_norm", ours, "lm_head.layer_norm")
        yield "lm_head.bias", bias
        yield "lm_head.decoder.bias", bias
        return
    yield from _both("cls.predictions.transform.dense", ours, "lm_head.dense")
    yield from _both("cls.predictions.transform.LayerNorm", ours, "lm_head.layer_norm")
    yield "cls.predictions.bias", bias
    yield "cls.predictions.decoder.bias", bias
    yield from _both("cls.seq_relationship", ours, "binary_head")
    yield from _both("bert.pooler.dense", ours, "pooler.dense")


def _both(target, ours, source):
    yield f"{target}.weight", ours[f"{source}.weight"]
    yield f"{target}.bias", ours[f"{source}.bias"]
