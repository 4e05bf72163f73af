"""What no command can read is named by its files, wherever a model or a run is expected."""

import pytest

from megatron_alum.convert.foreign import instead_of_a_model, instead_of_a_run

# a file of the folder: what it is called
KINDS = {
    "adapter_config.json": "a PEFT adapter",
    "bert_config.json": "Google's TensorFlow release",
    "model.ckpt.index": "a TensorFlow checkpoint",
    "tf_model.h5": "a TensorFlow model",
    "flax_model.msgpack": "a Flax model",
    "model.onnx": "an ONNX export",
    "model-q8.gguf": "a GGUF export",
    "0_Transformer/config.json": "a sentence-transformers model",
    "dict.txt": "a model of fairseq",
    "model.fp16.safetensors": "a Hugging Face model whose weights are a variant",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_is_named_by_its_file(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    for said in (instead_of_a_model(tmp_path), instead_of_a_run(tmp_path)):
        assert said is not None and f"but is {KINDS[name]}" in said and said.endswith(".")


def test_what_is_not_known_is_left_to_the_command(tmp_path):
    assert instead_of_a_model(tmp_path) is None and instead_of_a_run(tmp_path) is None
    assert "there is no such folder" in instead_of_a_run(tmp_path / "none")
