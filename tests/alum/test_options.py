"""Every option of AlumConfig that Algorithm 1 reads changes exactly what it says, dropout policies included."""

import pytest
import torch
from torch import nn

from megatron_alum.alum import AlumConfig, AlumRegularizer
from tests.alum.toy import BIG, B, H, S, TokenModel, inputs


def test_embedding_gradient_flows_unless_detached(model):
    x, start, _ = inputs()
    for detach in (False, True):
        leaf = x.clone().requires_grad_(True)
        clean = model(x)
        out = AlumRegularizer(AlumConfig(**BIG, detach_embeddings=detach))(leaf, clean, model, noise_key=start)
        (grad,) = torch.autograd.grad(out.loss, leaf, allow_unused=True)
        assert (grad is None) == detach
        if not detach:
            assert grad.abs().max() > 0


def test_shared_dropout_replays_the_clean_masks():
    torch.manual_seed(0)
    model = TokenModel(p=0.5).double()
    x, _, _ = inputs()
    zero = torch.zeros_like(x)
    shared = AlumRegularizer(AlumConfig(dropout="shared"))
    snapshot = shared.dropout_snapshot()
    clean = model(x)
    after_clean = torch.get_rng_state()
    out = shared(x, clean, model, noise_key=zero, dropout_snapshot=snapshot)
    assert out.loss == 0, "equal masks and no perturbation leave nothing to diverge"
    assert torch.equal(torch.get_rng_state(), after_clean)
    independent = AlumRegularizer(AlumConfig())
    assert independent.dropout_snapshot() is None
    assert independent(x, clean, model, noise_key=zero).loss > 0.01
    with pytest.raises(ValueError, match="dropout_snapshot"):
        shared(x, clean, model, noise_key=zero)


def test_caller_replaces_the_dropout_generators():
    class Counter:
        def __init__(self):
            self.log = []

        def snapshot(self):
            self.log.append("snapshot")
            return len(self.log)

        def restore(self, state):
            self.log.append(f"restore {state}")

    state = Counter()
    model = TokenModel()
    regularizer = AlumRegularizer(AlumConfig(dropout="shared"), dropout_state=state)
    snapshot = regularizer.dropout_snapshot()
    x = torch.randn(B, S, H)
    regularizer(x, model(x), model, dropout_snapshot=snapshot)
    # one inner and one outer forward: note where we are, go back to the snapshot, return
    assert state.log == ["snapshot", "snapshot", "restore 1", "restore 2", "snapshot", "restore 1", "restore 5"]


def run_with(**changes):
    """(loss, delta, gradient of the head) on a fixed problem with two outputs, under changed options."""
    torch.manual_seed(5)
    model, second = TokenModel(depth=2).double(), nn.Linear(H, 2).double()
    x, start, mask = inputs()
    forward = lambda e: (model(e), second(e[:, 0]))  # noqa: E731
    regularizer = AlumRegularizer(AlumConfig(**{**BIG, **changes}))
    out = regularizer(x, forward(x), forward, noise_key=start.clamp(-0.1, 0.1), mask=mask)
    (grad,) = torch.autograd.grad(out.loss, model.head.weight)
    return out.loss.item(), out.delta, grad


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"epsilon": 0.05}, "delta"),
        ({"step_size": 0.01}, "delta"),
        ({"num_ascent_steps": 2}, "delta"),
        ({"projection": "clamp"}, "delta"),
        ({"projection": "normalize", "epsilon": 1e-5}, "delta"),
        ({"inner_divergence": "symmetric", "projection": "clamp", "step_size": 5.0}, "delta"),
        ({"inner_reduction": "batch", "projection": "clamp", "step_size": 5.0}, "delta"),
        ({"detach_targets": False}, "gradient"),
    ],
)
def test_every_option_changes_what_it_says(changes, what):
    base_changes = {"projection": "clamp", "step_size": 5.0} if "inner" in " ".join(changes) else {}
    base, other = run_with(**base_changes), run_with(**changes)
    differs = {
        "delta": not torch.allclose(base[1], other[1], rtol=1e-4),
        "gradient": not torch.allclose(base[2], other[2], rtol=1e-4),
    }
    assert differs[what]
    if what == "gradient":
        assert base[0] == pytest.approx(other[0], rel=1e-12), "stopping gradients must not change the value"


def test_noise_std_sets_the_start_without_a_key(model):
    x, _, _ = inputs()
    many = x.repeat(50, 1, 1)
    torch.manual_seed(0)
    delta = AlumRegularizer(AlumConfig(noise_std=0.3, num_ascent_steps=0))(many, model(many), model).delta
    assert delta.std().item() == pytest.approx(0.3, rel=0.05)  # 3,000 draws: 1.3 % standard error
