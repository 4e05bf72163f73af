"""The model card's sentences, against sentences written by hand for the same records."""

import shlex

import pytest
import yaml

from megatron_alum.config.cli import build_config, config_to_dict, parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.convert.card_words import CardWish, corpus_sentences, recipe_sentences, training_command
from megatron_alum.convert.model_card import CardFacts, model_card, with_evaluation

MANIFEST = {
    "made_by": "megatron_alum 0.1.0",
    "num_documents": 105769,
    "num_sentences": 1375710,
    "num_tokens": 30600000,
    "text_bytes": 123_456_789,
    "skipped": {"redirect": {"count": 1200}, "too short": {"count": 34}},
    "inputs": {"num_files": 300, "files": [{"path": f"some/folder/wiki_{i:02d}.bz2"} for i in range(100)]},
    "settings": {"language": "en"},
}


def run(**changes):
    """The options of the paper's first recipe, changed."""
    given = {"data_path": ("data/wiki",), "save": "run", "model_size": "base", "train_iters": 1_000_000}
    return config_to_dict(build_config(RunConfig, [{**given, **changes}]))


def test_the_papers_recipe():
    given = {"global_batch_size": 256, "seq_length": 512, "alum_start_fraction": 0.5, "micro_batch_size": 8}
    assert " ".join(recipe_sentences(run(**given), 1_000_000)) == (
        "It learned to predict masked words and whether the second text follows the first. "
        "It was trained for 1,000,000 iterations with 256 sequences of at most 512 tokens each. "
        "The share of masked tokens rose from 5 % to 25 %. "
        "It was trained adversarially for the last 50 % of the iterations, with weight 10 on the divergence of the "
        "predictions. "
        "The perturbation took one step of size 0.001 within the radius 1e-05: as in the paper, a gradient step "
        "clipped to the radius."
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alum_start_fraction": 0.0}, "adversarially throughout, with weight 10"),
        ({"alum_start_fraction": 1.0}, "No part of the training was adversarial."),
        ({"alum_num_ascent_steps": 0}, "The perturbation was random"),
        ({"alum_num_ascent_steps": 3}, "took 3 steps of size 0.001 within the radius 1e-05: as in the paper"),
        ({"alum_projection": "normalize"}, "took one step of size 0.001: as in the released code"),
        ({"mask_rate_start": 0.15, "mask_rate_end": 0.15}, "The share of masked tokens was 15 %."),
        ({"objective": "none"}, "It learned to predict masked words."),
        ({"model_type": "roberta"}, "It learned to predict masked words."),
        ({"objective": "sop"}, "It learned to predict masked words and the order of two texts."),
    ],
)
def test_other_recipes(changes, sentence):
    assert sentence in " ".join(recipe_sentences(run(**changes), None))


def test_an_earlier_checkpoint_states_its_progress():
    assert "for 400,000 of 1,000,000 iterations" in " ".join(recipe_sentences(run(), 400_000))


def test_options_that_a_run_lacks_are_not_spoken_of():
    """A run of another version: whatever is missing, the rest is printed, and no None."""
    whole = run()
    for name in whole:
        text = " ".join(recipe_sentences({key: value for key, value in whole.items() if key != name}, 5))
        assert text and "None" not in text
    assert list(recipe_sentences({}, 5)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alum_nsp": False, "bf16": True, "alum_epsilon": 1e-3, "save": "elsewhere", "init_from": "my folder/bert"},
        {"data_path": ("0.3", "a", "0.7", "b"), "tensor_model_parallel_size": 2, "model_size": "large"},
    ],
)
def test_the_command_of_the_card_is_the_run(changes):
    """Read as a shell would and parsed, it gives the options of the run, but for where that run saved."""
    command = training_command(run(**changes))
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["torchrun", "-m", "megatron_alum.pretrain"] and "elsewhere" not in words
    parsed = parse_config(RunConfig, [*words[3:], "--save", changes.get("save", "run")])
    assert config_to_dict(parsed) == run(**changes)


def test_a_corpus_in_words():
    assert corpus_sentences(MANIFEST) == (
        "105,769 documents, 1,375,710 sentences and 30,600,000 tokens (123 MB of text). Source: 300 files, among them "
        "wiki_00.bz2, wiki_01.bz2 and wiki_02.bz2. 1,234 records of the source were left out. Prepared by "
        "megatron_alum 0.1.0."
    )
    one = {"num_tokens": 1000, "inputs": {"num_files": 1, "files": [{"path": "a/b.jsonl"}]}}
    assert corpus_sentences(one) == "1,000 tokens. Source: b.jsonl."
    assert corpus_sentences({}) == "A corpus whose manifest contains no counts."


def test_the_header_is_yaml_with_licence_and_language():
    def header(**wish):
        card = model_card(CardFacts(name="m", class_name="BertModel", manifests=(MANIFEST,), wish=CardWish(**wish)))
        return yaml.safe_load(card.split("---")[1])

    assert header()["license"] == "unknown" and header()["language"] == ["en"]
    assert header(license="mit", languages=("de", "fr"))["license"] == "mit"
    assert header(languages=("de", "fr"))["language"] == ["de", "fr"]


def test_an_evaluation_takes_the_place_of_the_one_before():
    card = model_card(CardFacts(name="m", class_name="BertModel", manifests=(MANIFEST,)))
    once = with_evaluation(card, "| a | 1 |")
    assert "None was recorded" not in once and once.count("## Evaluation\n\n| a | 1 |\n\n## Limits") == 1
    assert with_evaluation(once, "| a | 1 |") == once
    assert with_evaluation(with_evaluation(card, "| b | 2 |"), "| a | 1 |") == once
    assert with_evaluation("# of another hand\n", "| a | 1 |") == "# of another hand\n\n## Evaluation\n\n| a | 1 |\n\n"
