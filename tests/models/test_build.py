"""Building: weights by seed and name whatever the layout, padded vocabulary, equality with megatron-core's own
BertModel.
"""

import pytest
import torch
from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
from megatron.core.models.bert.bert_model import BertModel

from megatron_alum.config.model import ModelConfig
from megatron_alum.models import build_model, padded_vocab_size
from megatron_alum.parallel import initialize
from tests.helpers.distributed import run_ranks
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.huggingface import randomize_whole
from tests.models.tolerances import LOGITS_ATOL

SMALL = ModelConfig(num_layers=2, hidden_size=24, num_attention_heads=4, seq_length=16)


@pytest.mark.parametrize(
    ("vocab_size", "divisible_by", "tp", "expected"),
    [
        (30522, 128, 1, 30592),
        (30522, 128, 2, 30592),
        (30522, 128, 8, 30592),
        (128, 128, 2, 128),
        (77, 10, 4, 80),
        (5, 1, 3, 6),
    ],
)
def test_padded_vocab_size(vocab_size, divisible_by, tp, expected):
    assert padded_vocab_size(vocab_size, divisible_by, tp) == expected


def test_heads_equal_the_stock_model_with_the_same_state_dict(groups):
    ours = build_model(SMALL, vocab_size=VOCAB_SIZE, groups=groups).eval()
    randomize_whole(ours, groups)
    stock = BertModel(
        ours.config,
        num_tokentypes=2,
        transformer_layer_spec=bert_layer_local_spec,
        vocab_size=ours.vocab_size,
        max_sequence_length=16,
        share_embeddings_and_output_weights=True,
    ).eval()
    stock.load_state_dict(ours.state_dict())  # strict: the names are BertModel's
    batch = make_batch("megatron-bert")
    with torch.no_grad():
        mlm, nsp = ours(batch.inputs)
        types = batch.padded(batch.token_types)
        all_mlm, stock_nsp = stock(batch.padded(), batch.padding_mask.long(), tokentype_ids=types)
    torch.testing.assert_close(mlm, all_mlm.flatten(0, 1)[batch.padded_positions], atol=LOGITS_ATOL, rtol=0)
    torch.testing.assert_close(nsp, stock_nsp, atol=LOGITS_ATOL, rtol=0)


def _whole_weights(rank, world_size, config):
    groups = initialize(tensor_parallel_size=world_size)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups)
    whole = {}
    for name, parameter in model.named_parameters():
        parts = [parameter.detach().clone()]
        if getattr(parameter, "tensor_model_parallel", False):
            parts = [torch.empty_like(parameter) for _ in range(world_size)]
            torch.distributed.all_gather(parts, parameter.detach(), group=groups.tp)
        whole[name] = torch.cat(parts, dim=getattr(parameter, "partition_dim", 0) if len(parts) > 1 else 0)
    return whole


@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta"])
def test_initial_weights_do_not_depend_on_the_layout(model_type):
    config = small_config(model_type, make_vocab_size_divisible_by=1)
    one, two = run_ranks(1, _whole_weights, config)[0], run_ranks(2, _whole_weights, config)[1]
    assert one.keys() == two.keys()
    for name in one:
        rows = VOCAB_SIZE if "word_embeddings" in name or name == "output_layer.bias" else len(one[name])
        assert torch.equal(one[name][:rows], two[name][:rows]), name
        assert (two[name][rows:] == 0).all(), "padding starts at zero"


def test_initial_scale_is_the_papers(groups):
    """std 0.02; the pre-LayerNorm network divides what writes to the residual stream by sqrt(2 layers) (GPT-2,
    Megatron).
    """
    for model_type, residual_std in (("megatron-bert", 0.02 / 2), ("bert", 0.02)):
        config = ModelConfig(model_type=model_type, num_layers=2, hidden_size=256, num_attention_heads=4, seq_length=16)
        weights = dict(build_model(config, vocab_size=VOCAB_SIZE, groups=groups).named_parameters())
        assert weights["encoder.layers.0.mlp.linear_fc1.weight"].std().item() == pytest.approx(0.02, rel=0.01)
        assert weights["encoder.layers.1.mlp.linear_fc2.weight"].std().item() == pytest.approx(residual_std, rel=0.01)
        assert weights["embedding.word_embeddings.weight"][:VOCAB_SIZE].std().item() == pytest.approx(0.02, rel=0.02)
        assert all((weights[name] == 0).all() for name in weights if name.endswith("bias"))
        assert (weights["lm_head.layer_norm.weight"] == 1).all()


def test_another_seed_gives_other_weights_and_building_draws_nothing(groups):
    state = torch.get_rng_state()
    first, again, other = (build_model(SMALL, vocab_size=VOCAB_SIZE, groups=groups, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.std() == 0 or a.ndim == 1 or not torch.equal(a, c)


def _build_error(rank, world_size, config):
    with pytest.raises(ValueError) as caught:
        build_model(config, vocab_size=VOCAB_SIZE, groups=initialize(tensor_parallel_size=world_size))
    return str(caught.value)


def test_heads_that_do_not_divide_are_refused():
    config = ModelConfig(num_layers=1, hidden_size=24, num_attention_heads=3, seq_length=16)
    expected = "--num-attention-heads must be a multiple of --tensor-model-parallel-size 2, but is 3 instead."
    assert run_ranks(2, _build_error, config) == [expected] * 2
