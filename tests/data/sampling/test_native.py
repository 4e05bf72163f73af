"""The C++ sampler against the Python reference: every row and every byte of every batch, over all options."""

import numpy as np
import pytest
import torch

from megatron_alum.data.native import choose_sampler
from tests.data.sampling.builders import (
    open_train,
    random_documents,
    toy_bert_tokenizer,
    toy_roberta_tokenizer,
    write_shards,
)

TOKENIZERS = {"bert": toy_bert_tokenizer, "roberta": toy_roberta_tokenizer}
FIELDS = ("tokens", "token_types", "padding_mask", "masked_positions", "masked_labels", "nsp_labels", "sample_index")


def assert_same_batches(a, b):
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and torch.equal(x, y), name


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    made = {
        (kind, dtype): write_shards(folder / f"{kind}-{dtype.__name__}", random_documents(40), tokenizer(), dtype=dtype)
        for kind, tokenizer in TOKENIZERS.items()
        for dtype in (np.uint16, np.int32)
    }
    made["second"] = write_shards(folder / "second", random_documents(15, seed=9), toy_bert_tokenizer())
    return made


def test_the_extension_is_built():
    assert choose_sampler("cpp") == "cpp"


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
@pytest.mark.parametrize("objective", ["nsp", "sop", "none"])
@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram"])
def test_batches_are_bit_equal(shards, tmp_path, dtype, model_type, objective, masking):
    prefix = shards[model_type, dtype]
    common = dict(model_type=model_type, objective=objective, masking=masking, train_samples=700, short_seq_prob=0.5)
    for seq_length in (16, 129):
        cpp, python = (
            open_train(prefix, **common, seq_length=seq_length, sampler=impl, data_cache_path=str(tmp_path / impl))
            for impl in ("cpp", "python")
        )
        assert cpp.native and not python.native
        # 800 samples pass the end of the curriculum and, at 129, of the first epoch and its successors.
        for begin in range(0, 800, 160):
            indices = range(begin, begin + 32)
            assert_same_batches(cpp.batch(indices), python.batch(indices))
        for a, b in zip(cpp.shards[0].epochs, python.shards[0].epochs, strict=True):
            assert a.rows.tobytes() == b.rows.tobytes()
