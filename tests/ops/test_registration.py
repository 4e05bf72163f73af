"""What torch knows about the compiled ops: schemas and fakes (opcheck), needs_input_grad, one backward, compile,
overwriting."""

import pytest
import torch

from megatron_alum import ops
from tests.ops import oracle

N, V = 5, 200


@pytest.fixture
def kernel(device):
    """The namespace of the compiled ops; without them there is nothing to register."""
    info = ops.build_info()
    if not info["built"]:
        pytest.skip(info["reason"])
    return torch.ops.megatron_alum


def logits(device, dtype=torch.float32, grad=False):
    return [x.to(device, dtype).requires_grad_(grad) for x in oracle.logits(N, V, difference=0.1)]


@pytest.mark.parametrize("with_labels", [False, True])
def test_opcheck_of_the_row_ops(kernel, device, with_labels):
    clean, adv = logits(device)
    labels = torch.tensor([0, 3, -100, 7, 150], device=device) if with_labels else None
    weights = (torch.rand(N, device=device) if with_labels else None, torch.rand(N, device=device))
    records = kernel.row_statistics(clean, adv, labels, 0, V, False)
    for arguments in ((clean, adv, labels, 0, V, False), (clean, adv, labels, 0, 150, True)):
        torch.library.opcheck(kernel.row_statistics, arguments)
    torch.library.opcheck(kernel.merge_statistics, (torch.stack([records, records]), False))
    for given in (records, None):
        common = (given, labels, *weights, 0, V, False, True)
        for needed in ((True, True), (False, True)):
            torch.library.opcheck(kernel.row_gradients, (clean, adv, *common, *needed))
            torch.library.opcheck(kernel.row_gradients_, (clean.clone(), adv.clone(), *common, *needed))
        torch.library.opcheck(kernel.row_gradients, (clean, None, *common, True, False))
        torch.library.opcheck(kernel.row_gradients_, (clean.clone(), None, *common, True, False))
    torch.library.opcheck(kernel.scale_, (clean.clone(), torch.tensor(0.5, device=device)))
    a, b = logits(device, grad=True)
    torch.library.opcheck(kernel.row_losses, (a, b, records, labels, 0, V, False, False, False))


def test_opcheck_of_the_token_ops(kernel, device):
    x, delta, grad = torch.randn(3, 4, 2, 12, device=device)
    samples, positions = torch.arange(8, device=device), torch.arange(8, device=device)
    mask = torch.rand(4, 2, device=device) < 0.5
    noise, no_noise = (samples, positions, 1.0, 3, 4), (None, None, 0.0, 0, 0, 0)
    no_step = None, 0.0, 0.0, 0, None, torch.float32
    torch.library.opcheck(kernel.perturb, (None, None, *noise, 12, *no_step))
    torch.library.opcheck(kernel.perturb, (None, delta, *no_noise, grad, 0.1, 0.2, 1, None, torch.float32))
    torch.library.opcheck(kernel.perturb, (x, delta, *no_noise, grad, 0.1, 0.2, 0, mask, torch.bfloat16))
    torch.library.opcheck(kernel.perturb, (x, None, *noise, 0, None, 0.1, 0.2, 0, None, torch.float32))


def test_a_start_without_delta_and_without_noise_is_refused(kernel, device):
    x = torch.zeros(2, 4, device=device)
    with pytest.raises(ValueError, match="`delta`, or the noise's `sample_index` and `position`, must be given"):
        kernel.perturb(x, None, None, None, 0.0, 0, 0, 0, None, 0.1, 0.2, 0, None, torch.float32)


def test_only_needed_gradients_are_computed(kernel, device, monkeypatch):
    """The inner pass needs the adversarial side alone: nothing of logit size is written for the other."""
    clean, adv = logits(device)
    records = kernel.row_statistics(clean, adv, None, 0, V, False)
    arguments = (clean, adv, records, None, None, torch.ones(N, device=device), 0, V, False, True)
    _, to_clean, to_adv = kernel.row_gradients(*arguments, False, True)
    assert to_clean.numel() == 0 and to_adv.shape == (N, V)
    both = kernel.row_gradients(*arguments, True, True)
    assert torch.equal(both[2], to_adv)
    adv.requires_grad_()
    ops.symmetric_kl(clean, adv).sum().backward()
    assert clean.grad is None and torch.equal(adv.grad, to_adv)


@pytest.mark.parametrize("door", ["rows", "weighted", "hidden"])
def test_no_double_backward(impl, device, door):
    """Gradients that forward has formed do not pass for constants either."""
    clean, adv = logits(device, grad=True)
    if door == "hidden":
        hidden = torch.eye(N, device=device), torch.eye(N, device=device)
        call = {"kl_weight": torch.ones(N, device=device), "chunk_rows": 2, "impl": impl}
        kl = ops.row_losses_from_hidden(*hidden, adv.T.contiguous(), None, **call).kl
    else:
        weight = torch.ones(N, device=device) if door == "weighted" else None
        kl = ops.row_losses(clean, adv, kl_weight=weight, impl=impl).kl.sum()
    grad = torch.autograd.grad(kl, adv, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.square().sum().backward()


def test_no_forward_mode(impl, device):
    clean, adv = logits(device)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: ops.symmetric_kl(x, adv, impl=impl), (clean,), (torch.ones_like(clean),))


def test_what_has_no_answer_is_refused(impl, device):
    clean, adv = logits(device)
    for call in (lambda: ops.row_losses(clean, impl=impl), lambda: ops.symmetric_kl(clean, None, impl=impl)):
        with pytest.raises(ValueError, match="`adv_logits` or `labels` must be given, but neither is"):
            call()
    with pytest.raises(ValueError, match=r"must be dense and floating point, but are .* torch.sparse_coo"):
        ops.symmetric_kl(clean.to_sparse(), adv.to_sparse(), impl=impl)
    ones, weight = torch.ones(N, device=device), torch.ones(7, V, device=device)
    with pytest.raises(ValueError, match=r"`bias` must have shape \[7\], but is \[3\] instead"):
        ops.row_losses_from_hidden(clean, adv, weight, ones[:3], kl_weight=ones, chunk_rows=2, impl=impl)
    with pytest.raises(ValueError, match="`x` must be floating point, but is"):
        ops.perturb_embeddings(clean.int(), adv, step_size=0.1, epsilon=0.1, impl=impl)


@pytest.mark.parametrize("label", [-1, 190, V])
def test_labels_beyond_the_vocabulary_are_refused_on_the_cpu(impl, device, label):
    if device.type != "cpu":
        pytest.skip("the values of labels on a GPU are not looked at")
    clean, adv = logits(device)
    labels = torch.tensor([0, -100, 189, 3, label])
    with pytest.raises(RuntimeError, match="`labels` must be -100 or below 190, but are not"):
        ops.row_losses(clean, adv, labels, valid_vocab_size=190, impl=impl)


def test_compiles_without_graph_breaks(kernel, device):
    """The public functions inside a compiled function, forward and backward, with the results of eager mode."""
    labels = torch.tensor([0, 3, -100, 7, 150], device=device)

    def loss(clean, adv, x, delta, grad):
        moved, _, sums = ops.perturb_embeddings(x, delta, grad, step_size=0.1, epsilon=0.05)
        mlm, kl = ops.mlm_symmetric_kl(clean, adv, labels, valid_vocab_size=190)
        return mlm.sum() + 10.0 * kl.sum() + moved.sum() + 0.0 * ops.perturbation_statistics(sums).delta_norm

    tokens = [torch.randn(4, 2, 12, device=device) for _ in range(3)]
    clean, adv = logits(device, grad=True)
    expected = torch.autograd.grad(loss(clean, adv, *tokens), (clean, adv))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(clean, adv, *tokens), (clean, adv))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_every_way_into_a_compiled_function_is_without_graph_breaks(kernel, device):
    """Logits that are overwritten, the chunked head, and the fallback for float64, which must not write a log there."""
    hidden = [torch.randn(6, 8, device=device, requires_grad=True) for _ in range(2)]
    weight, ones = torch.randn(V, 8, device=device, requires_grad=True), torch.ones(6, device=device)
    labels = torch.arange(6, device=device)

    def overwritten(clean, adv, weight):
        return ops.symmetric_kl(clean @ weight.T, adv @ weight.T, overwrite_logits=True).sum()

    def chunked(clean, adv, weight):
        rows = {"mlm_row_weight": ones, "kl_row_weight": ones, "chunk_rows": 4}
        return sum(ops.mlm_symmetric_kl_from_hidden(clean, adv, weight, None, labels, **rows))

    def in_double(clean, adv, weight):
        return ops.symmetric_kl(clean.double() @ weight.T.double(), adv.double() @ weight.T.double()).sum()

    for function in (overwritten, chunked, in_double):
        expected = torch.autograd.grad(function(*hidden, weight), (*hidden, weight))
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(*hidden, weight), (*hidden, weight))
        for mine, theirs in zip(found, expected, strict=True):
            assert oracle.worst_row(mine, theirs) <= 1e-6, function.__name__  # two products in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_overwriting_gives_the_same_gradients_in_the_logits_memory(impl, device, dtype):
    leaves = logits(device, dtype, grad=True)
    labels = torch.tensor([0, 3, -100, 7, 150], device=device)
    results = []
    for overwrite in (False, True):
        clean, adv = (x * 1.0 for x in leaves)
        mlm, kl = ops.mlm_symmetric_kl(clean, adv, labels, overwrite_logits=overwrite, impl=impl)
        where = [x.detach().data_ptr() for x in (clean, adv)]
        clean.register_hook(lambda grad, at=where[0], on=overwrite: check_place(grad, at, on))
        adv.register_hook(lambda grad, at=where[1], on=overwrite: check_place(grad, at, on))
        results.append(torch.autograd.grad((mlm + 3.0 * kl).sum(), leaves))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def check_place(grad, address, overwritten):
    assert (grad.data_ptr() == address) == overwritten


def test_overwriting_is_refused_where_others_would_see_it(impl, device):
    clean, adv = logits(device, grad=True)
    with pytest.raises(ValueError, match="`clean_logits` must own its memory to be overwritten, but is a leaf"):
        ops.symmetric_kl(clean, adv * 1.0, overwrite_logits=True, impl=impl)
    with pytest.raises(ValueError, match="`adv_logits` must own its memory to be overwritten, but is a view"):
        ops.symmetric_kl(clean * 1.0, (adv * 1.0)[:, :], overwrite_logits=True, impl=impl)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adv_logits": torch.zeros(N, V + 1)}, "the logits must be two"),
        ({"adv_logits": torch.zeros(N, V, dtype=torch.float64)}, "the logits must be two"),
        ({"valid_vocab_size": 0}, r"`valid_vocab_size` must be in \[1, 200\], but is 0"),
        ({"valid_vocab_size": V + 1}, r"`valid_vocab_size` must be in \[1, 200\], but is 201"),
        ({"labels": torch.zeros(N)}, "`labels` must be int64 of shape"),
        ({"labels": torch.zeros(N + 1, dtype=torch.int64)}, "`labels` must be int64 of shape"),
    ],
)
def test_wrong_arguments_are_refused(impl, device, change, message):
    clean, adv = logits(device)
    call = {"clean_logits": clean, "adv_logits": adv, "labels": torch.zeros(N, dtype=torch.int64), **change}
    call = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    with pytest.raises(ValueError, match=message):
        ops.mlm_symmetric_kl(impl=impl, **call)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU; run with --device cuda on one")
def test_captured_into_a_cuda_graph(kernel, device):
    clean, adv = logits("cuda", grad=True)
    ops.symmetric_kl(clean, adv).sum()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kl = ops.symmetric_kl(clean, adv)
        grads = torch.autograd.grad(kl.sum(), (clean, adv))
    graph.replay()
    assert torch.equal(kl, ops.symmetric_kl(clean, adv)) and grads[0].any()
