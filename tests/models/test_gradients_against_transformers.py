"""One ALUM step moves our network and transformers' the same way: every gradient, TP = 1 and 2.

Both are driven by the same ascent (perturb = word, epsilon = sigma = 0.05, dropout 0). The transformers side pads, and
takes its divergence from the float64 reference of `alum`, ours from the vocab-parallel one of `ops`.
"""

import pytest
import torch
from torch.nn import functional as F

from megatron_alum.alum import ascend, reference_divergence
from megatron_alum.models import HeadOutputs, build_model
from megatron_alum.reference.tokens import perturb
from tests.helpers.distributed import run_ranks
from tests.models.alum_step import ALPHA, ALUM, gradients, noise_key
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.huggingface import randomize_whole, renamed, twin
from tests.models.test_against_transformers import transformers_outputs
from tests.models.tolerances import GRADIENT_RTOL, KEY_BIAS_ATOL, LOSS_RTOL


def _transformers_step(hf, model_type, batch):
    """Losses by name; gradients are left in `hf`."""
    is_roberta = model_type == "roberta"

    def forward(embeddings):
        outputs = transformers_outputs(hf, batch, embeddings)
        logits = (outputs.logits if is_roberta else outputs.prediction_logits).flatten(0, 1)[batch.padded_positions]
        return HeadOutputs(logits, None if is_roberta else outputs.seq_relationship_logits)

    x = hf.get_input_embeddings()(batch.padded())
    clean = forward(x)

    def divergence(adversarial, *, symmetric):
        """Mean over masked tokens and over sequences."""
        pairs = [(a, b) for a, b in zip(clean, adversarial, strict=True) if a is not None]
        options = {"symmetric": symmetric, "detach_targets": True}
        return sum(reference_divergence(a if symmetric else a.detach(), b, **options).mean() for a, b in pairs)

    rows = torch.arange(len(batch.lengths))[:, None].expand(batch.padding_mask.shape)
    position = torch.arange(batch.padding_mask.size(1)).expand(batch.padding_mask.shape)
    ascent = ascend(
        x,
        lambda x_adv: divergence(forward(x_adv), symmetric=False),
        start=noise_key(rows.flatten(), position.flatten()),
        config=ALUM,
        perturb=perturb,
        segments=rows,
        num_segments=len(rows),
        mask=batch.padding_mask,
        parameters=hf.parameters(),
    )
    kl = divergence(forward(x + ascent.delta), symmetric=True)
    losses = {"mlm": F.cross_entropy(clean.mlm_logits, batch.labels), "kl": kl}
    if not is_roberta:
        losses["nsp"] = F.cross_entropy(clean.nsp_logits, torch.arange(len(rows)) % 2)
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
