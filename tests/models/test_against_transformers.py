"""Logits equal those of transformers' implementations of the same networks, on padded batches of pairs."""

import pytest
import torch

from megatron_alum.config.model import ModelConfig
from megatron_alum.models import build_model
from tests.models.batches import VOCAB_SIZE, make_batch
from tests.models.huggingface import randomize_whole, twin
from tests.models.tolerances import LOGITS_ATOL


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("level", ["word", "encoder_input"])
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta"])
def test_logits_equal(groups, model_type, level, padded):
    config = ModelConfig(model_type=model_type, num_layers=2, hidden_size=24, num_attention_heads=3, seq_length=16)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups).eval()
    randomize_whole(model, groups)
    batch = make_batch(model_type, padded=padded)
    with torch.no_grad():
        expected = twin(model)(
            input_ids=batch.tokens, token_type_ids=batch.token_types, attention_mask=batch.padding_mask.long()
        )
        x = model.embed(batch.tokens, token_types=batch.token_types, level=level)
        hidden = model.encode(x, token_types=batch.token_types, padding_mask=batch.padding_mask, level=level)
        mlm_logits, nsp_logits = model.heads(hidden, batch.masked_positions)
    assert x.dtype == torch.float32 and x.shape == (16, 3, 24)
    mlm_expected = expected.logits if model_type == "roberta" else expected.prediction_logits
    torch.testing.assert_close(
        mlm_logits[:, :VOCAB_SIZE], mlm_expected.flatten(0, 1)[batch.masked_positions], atol=LOGITS_ATOL, rtol=0
    )
    if model_type == "roberta":
        assert nsp_logits is None
    else:
        torch.testing.assert_close(nsp_logits, expected.seq_relationship_logits, atol=LOGITS_ATOL, rtol=0)
