"""Compiled layers compute what eager ones do, through the clean pass and the frozen inner pass alike."""

import pytest
import torch

from megatron_alum.alum import frozen
from megatron_alum.models import build_model
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.tolerances import LOGITS_ATOL


def _pass(model, batch, rows):
    """Logits, the gradient in x of a frozen pass, and a weight's gradient of an ordinary one."""
    x = model.embed(batch.inputs)

    def forward(embeddings):
        encode = model.encode_rows if rows else model.encode
        return model.heads(encode(embeddings, batch.inputs), batch.inputs).mlm_logits

    leaf = x.detach().requires_grad_(True)
    with frozen(model.parameters()):
        (inner,) = torch.autograd.grad(forward(leaf).logsumexp(-1).sum(), leaf)
    logits = forward(x)
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), inner, model.encoder.layers[0].self_attention.linear_qkv.weight.grad


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert"])
def test_compiled_layers_equal_eager_ones(groups, model_type):
    config = small_config(model_type, num_attention_heads=3)
    eager, compiled = (
        build_model(config, vocab_size=VOCAB_SIZE, groups=groups, torch_compile=on) for on in (False, True)
    )
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    for lengths in ((16, 13, 10), (16, 7, 9, 12, 16), (8,)):  # tokens and rows of other numbers
        batch = make_batch(model_type, lengths)
        for rows in (False, True):
            for expected, actual in zip(_pass(eager, batch, rows), _pass(compiled, batch, rows), strict=True):
                torch.testing.assert_close(actual, expected, atol=LOGITS_ATOL, rtol=1e-5)
