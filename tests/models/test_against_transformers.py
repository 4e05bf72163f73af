"""Hidden states, logits and gradients equal those of transformers' implementations, which pad what is stored back to
back here.
"""

import pytest
import torch

from megatron_alum.models import build_model
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.huggingface import randomize_whole, twin
from tests.models.tolerances import GRADIENT_RTOL, HIDDEN_ATOL, LOGITS_ATOL


def transformers_outputs(hf, batch, embeddings=None):
    """Outputs of the padded rows, with all hidden states."""
    where = {"input_ids": batch.padded()} if embeddings is None else {"inputs_embeds": embeddings}
    if batch.model_type == "roberta" and embeddings is not None:
        where["position_ids"] = (batch.padded(batch.position) + 2) * batch.padding_mask + ~batch.padding_mask
    types = batch.padded(batch.token_types)
    mask = batch.padding_mask.long()
    return hf(**where, token_type_ids=types, attention_mask=mask, output_hidden_states=True)


@pytest.mark.parametrize("attention", ["native", "jagged"])
@pytest.mark.parametrize("level", ["word", "encoder_input", 1])
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta"])
def test_hidden_states_and_logits_equal(groups, model_type, level, attention):
    model = build_model(small_config(model_type), vocab_size=VOCAB_SIZE, groups=groups, attention=attention).eval()
    randomize_whole(model, groups)
    batch = make_batch(model_type)
    with torch.no_grad():
        expected = transformers_outputs(twin(model), batch)
        x = model.embed(batch.inputs, level=level)
        hidden = model.encode(x, batch.inputs, level=level)
        mlm_logits, nsp_logits = model.heads(hidden, batch.inputs)
    assert x.dtype == torch.float32 and x.shape == (40, 1, 24)
    if isinstance(level, int):
        torch.testing.assert_close(
            x[batch.is_real, 0], expected.hidden_states[level][batch.padding_mask], atol=HIDDEN_ATOL, rtol=0
        )
    torch.testing.assert_close(
        hidden[batch.is_real, 0], expected.hidden_states[-1][batch.padding_mask], atol=HIDDEN_ATOL, rtol=0
    )
    mlm_expected = expected.logits if model_type == "roberta" else expected.prediction_logits
    torch.testing.assert_close(
        mlm_logits[:, :VOCAB_SIZE], mlm_expected.flatten(0, 1)[batch.padded_positions], atol=LOGITS_ATOL, rtol=0
    )
    if model_type == "roberta":
        assert nsp_logits is None
    else:
        torch.testing.assert_close(nsp_logits, expected.seq_relationship_logits, atol=LOGITS_ATOL, rtol=0)


@pytest.mark.parametrize("attention", ["native", "jagged"])
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta"])
def test_gradients_in_x_equal(groups, model_type, attention):
    """At the word vectors and at the hidden state of layer 1, for a function of every real token's hidden state."""
    model = build_model(small_config(model_type), vocab_size=VOCAB_SIZE, groups=groups, attention=attention)
    randomize_whole(model, groups)
    hf, batch = twin(model), make_batch(model_type)
    words = hf.get_input_embeddings()(batch.padded()).detach().requires_grad_()
    states = transformers_outputs(hf, batch, words).hidden_states
    layer = states[1]
    expected = torch.autograd.grad(states[-1][batch.padding_mask].sin().sum(), [words, layer])
    for level, gradient in zip(("word", 1), expected, strict=True):
        x = model.embed(batch.inputs, level=level).detach().requires_grad_()
        hidden = model.encode(x, batch.inputs, level=level)
        (ours,) = torch.autograd.grad(hidden[batch.is_real].sin().sum(), x)
        theirs = gradient[batch.padding_mask]
        worst = (ours[batch.is_real, 0] - theirs).abs().max()
        assert worst < GRADIENT_RTOL * theirs.abs().max(), level
        assert (ours[~batch.is_real] == 0).all()
