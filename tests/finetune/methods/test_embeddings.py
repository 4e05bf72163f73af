"""Encoders of many families from embeddings: the logits of the token ids exactly, or one sentence."""

import pytest
import torch
import transformers

from megatron_alum.finetune.methods.embeddings import EmbeddingSplit

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
    "DebertaV2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "Albert": {"embedding_size": 8},
    "Esm": {"pad_token_id": 1, "mask_token_id": 4},  # its inputs_embeds leave positions out, its table does not
}
LONGFORMER = {"attention_window": 4, "max_position_embeddings": 64, "sep_token_id": 2}
REFUSED = {"IBert": {}}  # returns pairs


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
        with split.clean_pass(inputs) as entered:
            found = model(**entered.inputs).logits
        again = split.forward(entered.x, inputs, entered.noted).logits
        for logits in (found, again):
            torch.testing.assert_close(logits, model(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", EXACT)
def test_words_give_the_logits_of_the_token_ids(name):
    model = encoder(name, **EXACT[name])
    assert_exact(model, "word", padded(model))


@pytest.mark.parametrize("name", ["MPNet", "Yoso", "Mra", "Esm", "IBert"])
def test_the_encoders_input_gives_the_logits_of_the_token_ids(name):
    model = encoder(name, **{**EXACT, **REFUSED}[name])
    assert_exact(model, "encoder_input", padded(model))


# Those whose layers get more than the hidden state: relative positions, rotary embeddings, a convolution beside them.
LAYERED = {
    "Bert": {},
    "Roberta": {},
    "Electra": {},
    "MPNet": {},
    "DebertaV2": EXACT["DebertaV2"],
    "IBert": {},
    "Longformer": {"attention_window": 4, "max_position_embeddings": 64, "sep_token_id": 2},
    "ModernBert": dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0) | {"eos_token_id": 2},
    "DistilBert": {"dim": 16, "hidden_dim": 32},
}


@pytest.mark.parametrize("name", LAYERED)
def test_a_layer_gives_the_logits_of_the_token_ids(name):
    model = encoder(name, **{**LAYERED[name], "num_hidden_layers": 3})
    for layer in (1, 2):
        assert_exact(model, layer, padded(model))


def test_longformer_which_pads_by_its_token_ids_is_entered_at_its_table():
    split = EmbeddingSplit(encoder("Longformer", **LONGFORMER), "word")
    assert not split.by_argument
    with pytest.raises(ValueError, match=r"one for each of \[2, 9\] tokens, but .* with \[2, 12, 16\] instead"):
        with split.clean_pass(inputs := padded(split.model, (9, 5))) as entered:
            split.model.eval()(**entered.inputs)
    assert inputs["input_ids"].shape == (2, 9)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_upper_layers_run_as_those_of_an_independent_implementation(layer):
    """BERT's own modules called one by one from a hidden state of ours; the lower ones are not called at all."""
    model = encoder("Bert", num_hidden_layers=3).eval()
    inputs = padded(model)
    split = EmbeddingSplit(model, layer)
    with split.clean_pass(inputs) as entered:
        hidden = model(**entered.inputs, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(entered.x, hidden, rtol=0, atol=0)
    x = torch.randn(hidden.shape)
    blank = (1.0 - inputs["attention_mask"][:, None, None, :]) * torch.finfo(torch.float32).min
    expected = x
    for module in model.bert.encoder.layer[layer:]:
        expected = module(expected, blank)
    expected = model.classifier(model.bert.pooler(expected))
    calls = []
    handles = [
        m.register_forward_pre_hook(lambda *_: calls.append(1))
        for m in model.bert.encoder.layer[:layer].modules()
        if isinstance(m, torch.nn.Linear)
    ]
    found = split.forward(x, inputs, entered.noted).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not calls, "a lower layer ran"
    with torch.no_grad():
        model(**inputs)
    assert len(calls) == len(handles), "the model is as it was"


def test_an_output_that_does_not_come_from_the_level_is_refused():
    model = encoder("Bert", num_hidden_layers=3)
    model.bert.pooler.forward = lambda hidden: torch.zeros(len(hidden), 16)
    with pytest.raises(ValueError, match="does not compute them from there"):
        EmbeddingSplit(model, 1)


def test_lengths_that_a_model_pads_inside_are_refused_when_they_come():
    """Longformer rounds up to its window: 8 tokens fit windows of 4, 9 do not."""
    model = encoder("Longformer", **LAYERED["Longformer"]).eval()
    split = EmbeddingSplit(model, 1)
    inputs = padded(model, (9, 5))
    with pytest.raises(ValueError, match=r"one for each of \[2, 9\] tokens, but .* with \[2, 12, 16\] instead"):
        with split.clean_pass(inputs) as entered:
            model(**entered.inputs)


def test_choices_of_a_model_that_counts_from_the_pads():
    model = encoder("MPNet", "ForMultipleChoice")
    inputs = {name: value.view(2, 2, -1) for name, value in padded(model, (12, 8, 5, 7)).items()}
    assert_exact(model, "word", inputs)


def test_a_model_without_a_word_table_is_refused():
    with pytest.raises(ValueError, match=r"must have one table of word embeddings .* but CanineFor"):
        EmbeddingSplit(encoder("Canine"), "word")


@pytest.mark.parametrize("name", REFUSED)
def test_models_whose_two_passes_differ_are_refused(name):
    with pytest.raises(ValueError, match=r"`model` must give the same outputs from word embeddings .* but \w+ "):
        EmbeddingSplit(encoder(name, **REFUSED[name]), "word")


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("Canine", "encoder_input", "must have an `embeddings` module to perturb the encoder's input"),
        ("Albert", 1, "must have one list of its layers .* but AlbertForSequenceClassification has none or several"),
        ("XLM", 1, "must have one list of its layers .* but XLMForSequenceClassification has none or several"),
        ("SqueezeBert", 1, "must put out the hidden state after layer 1 once, one for each of"),  # [B, H, S] inside
        ("MPNet", 0, r"--alum-perturb-layer must be at least 1 and below the number of layers \(2\), but is 0"),
        ("MPNet", 2, r"--alum-perturb-layer must be at least 1 and below the number of layers \(2\), but is 2"),
    ],
)
def test_a_level_that_the_model_lacks_is_refused(name, level, message):
    changes = {"XLM": {"emb_dim": 16, "n_layers": 2, "n_heads": 2}, "SqueezeBert": {"embedding_size": 16}}
    with pytest.raises(ValueError, match=message):
        EmbeddingSplit(encoder(name, **{**EXACT, **REFUSED, **changes}.get(name, {})), level)


def test_the_trial_leaves_mode_and_random_state_alone():
    model = encoder("MPNet").train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    EmbeddingSplit(model, "word")
    assert model.training and torch.equal(torch.rand(4), expected)
