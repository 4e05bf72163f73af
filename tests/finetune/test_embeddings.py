"""Encoders of many families from embeddings: the logits of the token ids exactly, or one sentence."""

import pytest
import torch
import transformers

from megatron_alum.finetune.embeddings import EmbeddingSplit

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}
# Those that count positions from the pads without a method that says so, and those that begin at 2.
EXACT = {
    "MPNet": {},
    "Luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "Yoso": {},
    "Mra": {},
    "XLMRoberta": {},
    "DebertaV2": {},
    "Albert": {"embedding_size": 8},
}
# Canine has no word embeddings, Longformer pads by its token ids, IBert returns pairs, ESM leaves positions out.
REFUSED = {
    "Longformer": {"attention_window": 4, "max_position_embeddings": 64, "sep_token_id": 2},
    "IBert": {},
    "Canine": {},
    "Esm": {"pad_token_id": 1, "mask_token_id": 4},
}


def encoder(name, head="ForSequenceClassification", **changes):
    settings = {**SIZES, **changes}
    if name == "Canine":
        del settings["vocab_size"]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}{head}")(config)


def padded(model, lengths=(12, 8, 5)):
    """Ids and mask of sequences with pads on the right."""
    pad = model.config.pad_token_id or 0
    ids = torch.randint(5, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids.where(mask, pad), "attention_mask": mask.long()}


def assert_exact(model, level, inputs):
    model.eval()
    split = EmbeddingSplit(model, level)
    with torch.no_grad():
        expected = model(**inputs).logits
        found = split.forward(split.embed(inputs), inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", EXACT)
def test_words_give_the_logits_of_the_token_ids(name):
    model = encoder(name, **EXACT[name])
    assert_exact(model, "word", padded(model))


@pytest.mark.parametrize("name", ["MPNet", "Yoso", "Mra", "Esm", "IBert"])
def test_the_encoders_input_gives_the_logits_of_the_token_ids(name):
    model = encoder(name, **{**EXACT, **REFUSED}[name])
    assert_exact(model, "encoder_input", padded(model))


def test_choices_of_a_model_that_counts_from_the_pads():
    model = encoder("MPNet", "ForMultipleChoice")
    inputs = {name: value.view(2, 2, -1) for name, value in padded(model, (12, 8, 5, 7)).items()}
    assert_exact(model, "word", inputs)


@pytest.mark.parametrize("name", REFUSED)
def test_models_whose_two_passes_differ_are_refused(name):
    with pytest.raises(ValueError, match=r"`model` must give the same outputs from word embeddings .* but \w+ "):
        EmbeddingSplit(encoder(name, **REFUSED[name]), "word")


def test_a_level_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"from encoder_input embeddings .* Try --alum-perturb word"):
        EmbeddingSplit(encoder("Luke", **EXACT["Luke"]), "encoder_input")


def test_the_trial_leaves_mode_and_random_state_alone():
    model = encoder("MPNet").train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    EmbeddingSplit(model, "word")
    assert model.training and torch.equal(torch.rand(4), expected)
