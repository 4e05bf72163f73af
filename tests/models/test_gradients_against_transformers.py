"""One ALUM step moves our network and transformers' the same way: every gradient, TP = 1 and 2.

Both are driven by the same AlumRegularizer (perturb = word, epsilon = sigma = 0.05, dropout 0). The transformers side
takes its divergence from the float64 reference of `alum`, ours from the vocab-parallel one of `ops`.
"""

import pytest
import torch
from torch.nn import functional as F

from megatron_alum.alum import AlumRegularizer, Kernels, reference_kernels
from megatron_alum.models import HeadOutputs, build_model
from megatron_alum.ops import perturb_embeddings
from tests.helpers.distributed import run_ranks
from tests.models.alum_step import ALPHA, ALUM, gradients, noise_key
from tests.models.batches import VOCAB_SIZE, make_batch
from tests.models.huggingface import randomize_whole, renamed, twin
from tests.models.test_gradients import small_config
from tests.models.tolerances import GRADIENT_RTOL, KEY_BIAS_ATOL, LOSS_RTOL


def _transformers_step(hf, model_type, batch):
    """Losses by name; gradients are left in `hf`."""
    is_roberta = model_type == "roberta"
    real = batch.padding_mask.long()
    extra = {"position_ids": torch.cumsum(real, 1) * real + 1} if is_roberta else {"token_type_ids": batch.token_types}

    def forward(embeddings):
        outputs = hf(inputs_embeds=embeddings, attention_mask=real, **extra)
        logits = (outputs.logits if is_roberta else outputs.prediction_logits).flatten(0, 1)[batch.masked_positions]
        return HeadOutputs(logits, None if is_roberta else outputs.seq_relationship_logits)

    x = hf.get_input_embeddings()(batch.tokens)
    clean = forward(x)
    reference = reference_kernels()
    kernels = Kernels(perturb=perturb_embeddings, divergence=reference.divergence, agree=reference.agree)
    step = AlumRegularizer(ALUM, kernels)(
        x,
        clean,
        forward,
        mask=batch.padding_mask,
        noise_key=noise_key(batch, batch_first=True),
        parameters=hf.parameters(),
    )
    losses = {"mlm": F.cross_entropy(clean.mlm_logits, batch.labels), "kl": step.loss}
    if not is_roberta:
        losses["nsp"] = F.cross_entropy(clean.nsp_logits, torch.arange(len(batch.tokens)) % 2)
    sum(loss * (ALPHA if name == "kl" else 1.0) for name, loss in losses.items()).backward()
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta"])
def test_every_gradient_equals_transformers(groups, model_type):
    config, batch = small_config(model_type), make_batch(model_type)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups)
    randomize_whole(model, groups)
    hf = twin(model)
    expected_losses = _transformers_step(hf, model_type, batch)
    expected = {name: parameter.grad for name, parameter in hf.named_parameters()}
    for world_size in (1, 2):
        whole, losses, _, _ = run_ranks(world_size, gradients, config, batch, {})[0]
        assert losses == pytest.approx(expected_losses, rel=LOSS_RTOL)
        ours = dict(renamed(config, whole, VOCAB_SIZE))
        assert expected.keys() <= ours.keys()
        for name, gradient in expected.items():
            worst = (ours[name] - gradient).abs().max()
            limit = KEY_BIAS_ATOL if name.endswith("key.bias") else GRADIENT_RTOL * gradient.abs().max()
            assert worst < limit, f"TP {world_size}, {name}: {worst:.1e} against {limit:.1e}"
