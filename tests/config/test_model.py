"""ModelConfig: presets, derived values, and one sentence for each wrong value."""

import pytest

from megatron_alum.config.model import PRESETS, ModelConfig


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("tiny", (2, 128, 2)),
        ("mini", (4, 256, 4)),
        ("small", (4, 512, 8)),
        ("base", (12, 768, 12)),
        ("large", (24, 1024, 16)),
    ],
)
def test_presets_are_those_of_the_papers(size, expected):
    config = ModelConfig(model_size=size)
    assert (config.num_layers, config.hidden_size, config.num_attention_heads) == expected == PRESETS[size]
    assert config.ffn_hidden_size == 4 * config.hidden_size
    assert config.max_position_embeddings == config.seq_length == 512


def test_flags_win_over_the_preset():
    config = ModelConfig(
        model_size="base", num_layers=3, ffn_hidden_size=99, seq_length=128, max_position_embeddings=256
    )
    assert (config.num_layers, config.hidden_size, config.ffn_hidden_size) == (3, 768, 99)
    assert (config.seq_length, config.max_position_embeddings) == (128, 256)


def test_architectures_differ_where_their_authors_do():
    kinds = ("megatron-bert", "bert", "roberta")
    megatron, bert, roberta = (ModelConfig(model_type=kind, model_size="tiny") for kind in kinds)
    assert (megatron.layernorm_epsilon, bert.layernorm_epsilon, roberta.layernorm_epsilon) == (1e-5, 1e-12, 1e-5)
    assert (megatron.num_position_rows, bert.num_position_rows, roberta.num_position_rows) == (512, 512, 514)
    assert (megatron.num_token_types, bert.num_token_types, roberta.num_token_types) == (2, 2, 1)
    assert (megatron.has_nsp_head, bert.has_nsp_head, roberta.has_nsp_head) == (True, True, False)
    assert (megatron.post_layernorm, bert.post_layernorm, roberta.post_layernorm) == (False, True, True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "gpt"}, "--model-type must be one of megatron-bert, bert, roberta, but is 'gpt' instead."),
        ({"model_size": "huge"}, "--model-size must be one of tiny, mini, small, base, large, but is 'huge' instead."),
        ({"model_size": None}, "--num-layers must be given when there is no --model-size"),
        (
            {"num_attention_heads": 3},
            "--hidden-size must be a multiple of --num-attention-heads 3, but is 128 instead.",
        ),
        (
            {"seq_length": 600, "max_position_embeddings": 512},
            "--seq-length must be at most --max-position-embeddings 512",
        ),
        ({"num_layers": 0}, "--num-layers must be at least 1, but is 0 instead."),
        ({"hidden_dropout": 1.0}, "--hidden-dropout must be at least 0 and below 1, but is 1.0 instead."),
        ({"attention_dropout": -0.1}, "--attention-dropout must be at least 0 and below 1, but is -0.1 instead."),
        ({"layernorm_epsilon": 0.0}, "--layernorm-epsilon must be positive, but is 0.0 instead."),
        ({"make_vocab_size_divisible_by": 0}, "--make-vocab-size-divisible-by must be at least 1, but is 0 instead."),
    ],
)
def test_wrong_values_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"model_size": "tiny", **changed})
