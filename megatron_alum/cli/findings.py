"""What `megatron-alum doctor` looks at: environment, extensions, extras, attention, one training step."""

import importlib.util

import torch

from megatron_alum.compat.detect import Finding, environment_report
from megatron_alum.config.extras import missing_extras

_REBUILD = "in the repository: pip install --no-build-isolation -e ."


def all_findings() -> list[Finding]:
    """Everything in the order in which it is printed; the last is the self-test."""
    return [*environment_report(), *_extensions(), _extras(), _attention(), _self_test()]


def _extras() -> Finding:
    """Which extras of the package have libraries that are not installed."""
    missing = missing_extras()
    if not missing:
        return Finding("extras", "all installed")
    found = "; ".join(f"{extra} lacks {', '.join(modules)}" for extra, modules in missing.items())
    return Finding("extras", found, f"where needed: pip install 'megatron_alum[{','.join(missing)}]'")


def _extensions() -> list[Finding]:
    """The compiled parts: fused ops (`_C`) and sampler (`_data`)."""
    from megatron_alum.ops import build_info

    info = build_info()
    if info["built"]:
        kernels = f"{info['instruction_set']} kernels, CUDA kernels: {info['cuda'] or 'none'}"
        ops = Finding("fused ops", f"built for torch {info['torch']}; {kernels}")
    else:
        ops = Finding("fused ops", f"the torch reference is used: {info['reason']}", _REBUILD)
    if importlib.util.find_spec("megatron_alum._data") is None:
        return [ops, Finding("sampler", "not built: the Python reference is used, many times slower", _REBUILD)]
    return [ops, Finding("sampler", "built")]


def _attention() -> Finding:
    """How attention within packed sequences is computed on this rank's device."""
    try:
        from megatron_alum.models import attention_backend
    except ImportError as error:
        return Finding("attention", f"unknown without megatron-core ({error})")
    name, reason = attention_backend(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    wants_package = name == "jagged"
    advice = "optional, faster in 16 bits: pip install --no-build-isolation flash-attn" if wants_package else ""
    return Finding("attention", f"{name}: {reason}", advice)


def _self_test() -> Finding:
    """A forward and backward pass of a tiny network on this machine's device."""
    try:
        loss = _one_step()
    except Exception as error:
        return Finding("self-test", f"failed: {type(error).__name__}: {error}", "report this output", required=True)
    return Finding("self-test", f"one step of a tiny BERT ran, loss {loss:.2f}")


def _one_step() -> float:
    from megatron_alum.config.model import ModelConfig
    from megatron_alum.models import ModelInputs, build_model
    from megatron_alum.parallel import initialize, seed_everything, shutdown

    groups = initialize(tensor_parallel_size=1)
    seed_everything(0, groups)
    model = build_model(ModelConfig(model_size="tiny", seq_length=16), vocab_size=100, groups=groups)
    lengths = (16, 11, 5)
    tokens = torch.arange(32)
    inputs = ModelInputs.of(
        tokens=tokens,
        token_types=torch.zeros_like(tokens),
        position=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        masked_positions=torch.tensor([3, 20, 30]),
        device=groups.device,
    )
    outputs = model(inputs)
    loss = torch.nn.functional.cross_entropy(
        outputs.mlm_logits[:, :100].float(), inputs.tokens[inputs.masked_positions]
    )
    loss.backward()
    shutdown()
    return loss.item()
