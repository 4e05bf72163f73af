"""from-hf and then to-hf gives back every tensor bit for bit and every config field, for every class and file form."""

import json

import pytest
import safetensors.torch
import torch
import transformers

from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.to_hf import export_folder
from tests.convert.models import CASES, SIZES, edit_config, random_hf_model, save_hf_model, tokenizer_folder


def tensors(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def config(folder):
    return json.loads((folder / "config.json").read_text())


def round_trip(folder, tmp_path, **options):
    """The exported folder after an import and an export."""
    import_folder(str(folder), tmp_path / "run", **options)
    return export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*has no weights for")
@pytest.mark.parametrize("name", CASES)
def test_every_tensor_and_every_field(name, tmp_path):
    folder = save_hf_model(name, tmp_path / "hf")
    tokenizer_folder(folder, roberta=name.startswith("roberta"))
    again = round_trip(folder, tmp_path)
    before, after = tensors(folder), tensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert config(folder) == config(again)
    assert (folder / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()
    said, written = (json.loads((f / "tokenizer_config.json").read_text()) for f in (folder, again))
    assert written == said | {"model_max_length": SIZES["max_position_embeddings"]}  # it said 1e30


FORMS = {
    "sharded safetensors": {"max_shard_size": "20KB"},
    "whole safetensors": {},
}


@pytest.mark.parametrize("form", [*FORMS, "pytorch_model.bin", "sharded .bin", "old LayerNorm names"])
def test_every_file_form_gives_the_same_model(form, tmp_path):
    reference = random_hf_model("bert")
    folder = tmp_path / "hf"
    if form in FORMS:
        reference.save_pretrained(folder, **FORMS[form])
        assert (len(list(folder.glob("*.safetensors"))) > 1) == ("sharded" in form)
    else:
        reference.config.architectures = ["BertForPreTraining"]
        reference.config.save_pretrained(folder)
        save_pickled(reference.state_dict(), folder, form)
    again = transformers.BertForPreTraining.from_pretrained(round_trip(folder, tmp_path))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in reference.state_dict().items())


def save_pickled(state, folder, form):
    """pytorch_model.bin as older versions wrote it: tied copies and position buffers inside, perhaps old names."""
    state = {**state, "bert.embeddings.position_ids": torch.arange(SIZES["max_position_embeddings"])[None]}
    if form == "old LayerNorm names":
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            state = {name.replace(new, old): value for name, value in state.items()}
    if form != "sharded .bin":
        torch.save(state, folder / "pytorch_model.bin")
        return
    files = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_cast_on_request_and_kept_otherwise(dtype, tmp_path):
    folder = save_hf_model("roberta", tmp_path / "hf")
    import_folder(str(folder), tmp_path / "run", dtype=dtype)
    source = read_checkpoint_source(tmp_path / "run")
    kept = export_folder(source, tmp_path / "kept")
    widened = export_folder(source, tmp_path / "wide", dtype="float32")
    expected = {name: value.to(getattr(torch, dtype)) for name, value in tensors(folder).items()}
    for key, value in expected.items():
        assert torch.equal(tensors(kept)[key], value) and torch.equal(tensors(widened)[key], value.float())
    assert config(kept)["dtype"] == dtype and config(widened)["dtype"] == "float32"


# name: (dtype of the weights, config.json's words for it, file form)
STORED = {
    "float32 said to be float16": (torch.float32, {"dtype": "float16"}, "safetensors"),
    "float32 said to be float16 in the old word": (torch.float32, {"torch_dtype": "float16"}, "safetensors"),
    "float16 that nothing names": (torch.float16, {}, "safetensors"),
    "bfloat16 said to be float32, pickled": (torch.bfloat16, {"dtype": "float32"}, "bin"),
}


@pytest.mark.parametrize("name", STORED)
def test_the_dtype_is_that_of_the_tensors_whatever_config_says(name, tmp_path):
    dtype, said, form = STORED[name]
    model = random_hf_model("bert").to(dtype)
    model.save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", without=("dtype",), **said)
    if form == "bin":
        (tmp_path / "hf" / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    again = round_trip(tmp_path / "hf", tmp_path)
    for key, value in tensors(again).items():
        assert value.dtype == dtype and torch.equal(value, model.state_dict()[key])
    assert config(again)["dtype"] == str(dtype).removeprefix("torch.") and "torch_dtype" not in config(again)


def test_weights_of_two_dtypes_lose_nothing(tmp_path):
    path = save_hf_model("bert", tmp_path / "hf") / "model.safetensors"
    edit_config(tmp_path / "hf", dtype="float16")
    stored = tensors(tmp_path / "hf")
    halved = {name: value.half() if value.ndim == 2 else value for name, value in stored.items()}
    safetensors.torch.save_file(halved, path)
    again = tensors(round_trip(tmp_path / "hf", tmp_path))
    assert again.keys() == halved.keys() and all(torch.equal(again[n], v.float()) for n, v in halved.items())


@pytest.mark.parametrize(("kind", "missing"), [("masked-lm", "seq_relationship"), ("encoder", "cls.")])
def test_an_export_may_leave_heads_out(kind, missing, tmp_path):
    folder = save_hf_model("bert", tmp_path / "hf")
    import_folder(str(folder), tmp_path / "run")
    exported = export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out", kind=kind)
    assert not any(missing in name for name in tensors(exported))
    loader = transformers.AutoModelForMaskedLM if kind == "masked-lm" else transformers.AutoModel
    model, info = loader.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in tensors(exported).items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_class_that_does_not_exist_is_refused(tmp_path):
    import_folder(str(save_hf_model("roberta", tmp_path / "hf")), tmp_path / "run")
    with pytest.raises(ValueError, match="--architecture of roberta must be one of masked-lm, encoder"):
        export_folder(read_checkpoint_source(tmp_path / "run"), tmp_path / "out", kind="pretraining")
