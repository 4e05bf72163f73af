"""Compiled layers compute what eager ones do, through the clean pass and the frozen inner pass alike."""

import pytest
import torch

from megatron_alum.alum.regularizer import frozen
from megatron_alum.config.model import ModelConfig
from megatron_alum.models import build_model
from tests.models.batches import VOCAB_SIZE, make_batch
from tests.models.tolerances import LOGITS_ATOL


def _pass(model, batch):
    """Logits, the gradient in x of a frozen pass, and a weight's gradient of an ordinary one."""
    x = model.embed(batch.tokens, token_types=batch.token_types)

    def forward(embeddings):
        hidden = model.encode(embeddings, token_types=batch.token_types, padding_mask=batch.padding_mask)
        return model.heads(hidden, batch.masked_positions).mlm_logits

    leaf = x.detach().requires_grad_(True)
    with frozen(model.parameters()):
        (inner,) = torch.autograd.grad(forward(leaf).logsumexp(-1).sum(), leaf)
    logits = forward(x)
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), inner, model.encoder.layers[0].self_attention.linear_qkv.weight.grad


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert"])
def test_compiled_layers_equal_eager_ones(groups, model_type):
    config = ModelConfig(
        model_type=model_type,
        num_layers=2,
        hidden_size=24,
        num_attention_heads=3,
        seq_length=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    batch = make_batch(model_type)
    eager, compiled = (
        build_model(config, vocab_size=VOCAB_SIZE, groups=groups, torch_compile=on) for on in (False, True)
    )
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    for expected, actual in zip(_pass(eager, batch), _pass(compiled, batch), strict=True):
        torch.testing.assert_close(actual, expected, atol=LOGITS_ATOL, rtol=1e-5)
