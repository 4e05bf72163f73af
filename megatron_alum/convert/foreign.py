"""Folders that are neither a run nor a Hugging Face model: what they are, and what to do with them.

One table of telltale files, so that all commands describe a folder (an adapter, a TensorFlow model) in the same words.
"""

from __future__ import annotations

from pathlib import Path

from megatron_alum.checkpoint.folder import COMPLETE_FILE, list_iterations
from megatron_alum.convert.stock_folder import how_to_convert

_CONVERT_TENSORFLOW = (
    "Convert it with a transformers release before 5 (from_pretrained(..., from_tf=True), then save_pretrained)."
)
# (pattern of a file in the folder, what the folder is, what to do)
_KINDS = (
    (
        "adapter_config.json",
        "a PEFT adapter, which holds no model of its own",
        "Merge it into its base model (merge_and_unload(), then save_pretrained) and give that folder.",
    ),
    ("bert_config.json", "Google's TensorFlow release of a BERT", _CONVERT_TENSORFLOW),
    ("*.ckpt.index", "a TensorFlow checkpoint", _CONVERT_TENSORFLOW),
    ("tf_model.h5", "a TensorFlow model", _CONVERT_TENSORFLOW),
    (
        "flax_model.msgpack",
        "a Flax model",
        "Convert it with a transformers release before 5 (from_pretrained(..., from_flax=True), then save_pretrained).",
    ),
    ("*.onnx", "an ONNX export, which cannot be trained", "Give the folder that it was exported from."),
    ("*.gguf", "a GGUF export, which cannot be trained", "Give the folder that it was exported from."),
    (
        "0_Transformer/config.json",
        "a sentence-transformers model of the older layout",
        "Give its encoder's folder, 0_Transformer in it.",
    ),
    (
        "*.idx",
        "a folder of shards, which are text and no network",
        "Give the folder of a run (--save of megatron-alum pretrain) or of a model.",
    ),
    ("dict.txt", "a model of fairseq", "Convert it with transformers' converter for fairseq's RoBERTa."),
    (
        "model.*.safetensors",
        "a Hugging Face model whose weights are a variant",
        "Load it with from_pretrained(..., variant=...) and save it again without one.",
    ),
)


def instead_of_a_model(path: Path) -> str | None:
    """The error where a Hugging Face model is expected and `path` is something else that is known; else None."""
    if path.is_file():
        return f"{path} must be a folder, but is a file. Give the folder that holds it."
    if hint := how_to_convert(path):
        return f"{path} must be a Hugging Face model, but is another: {hint}"
    if list_iterations(path) or (path / COMPLETE_FILE).is_file():
        return (
            f"{path} must be a Hugging Face model, but is a run of this project. Export it: "
            f"megatron-alum convert to-hf --load {path} --output HF_DIR."
        )
    found = _kind_of(path)
    return None if found is None else f"{path} must be a Hugging Face model with PyTorch weights, but is {found}"


def instead_of_a_run(path: Path) -> str | None:
    """The error where a checkpoint is expected and `path` is something else that is known; else None."""
    if path.is_file():
        return f"{path} must hold a checkpoint (iter_0000020/), but is a file. Give the folder of its run."
    if not path.is_dir():
        return f"{path} must hold a checkpoint (iter_0000020/), but there is no such folder."
    if hint := how_to_convert(path):
        return f"{path} must hold a checkpoint (iter_0000020/), but is another: {hint}"
    found = _kind_of(path)
    if found is None and (path / "config.json").is_file() and not (path / COMPLETE_FILE).is_file():
        found = "a Hugging Face model. Start from it with --init-from, or import it with from-hf."
    return None if found is None else f"{path} must hold a checkpoint (iter_0000020/), but is {found}"


def has_weights(path: Path) -> bool:
    """Whether a folder holds weights that transformers loads, whole or in parts."""
    names = ("model.safetensors", "pytorch_model.bin")
    return any((path / f"{name}{ending}").is_file() for name in names for ending in ("", ".index.json"))


def _kind_of(path: Path) -> str | None:
    """What the folder is and what to do, for one that holds a file of the kinds above."""
    for pattern, kind, remedy in _KINDS:
        if any(entry.is_file() for entry in path.glob(pattern)):
            return f"{kind}. {remedy}"
    return None
