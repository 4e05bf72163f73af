"""Word substitution with the real TextAttack library, where it is installed, against a model that one word decides."""

import importlib.util
import json

import pytest

from tests.finetune.test_tools import encoder, flags, run_tool, sentiment  # noqa: F401  fixtures

needs_textattack = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None, reason="no TextAttack: pip install textattack"
)


@needs_textattack
@pytest.mark.filterwarnings("ignore")
def test_deepwordbug_fools_a_word_model(encoder, sentiment, tmp_path, monkeypatch):  # noqa: F811
    """A changed character makes the one decisive word unknown; NLTK's stop words are the only data the recipe needs."""
    import nltk

    stop_words = tmp_path / "nltk_data" / "corpora" / "stopwords"
    stop_words.mkdir(parents=True)
    (stop_words / "english").write_text("the\na\nof\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    monkeypatch.setenv("TA_CACHE_DIR", str(tmp_path / "cache"))
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "out"), "--seeds", 1)
    run_tool(
        *("attack", "--model", tmp_path / "out" / "model", "--task", "sst2", "--data-dir", sentiment),
        *("--output", tmp_path / "attack", "--word-attack", "deepwordbug", "--max-eval-samples", 16, "--radii", 0),
    )
    rows = [json.loads(line) for line in (tmp_path / "attack" / "attack.jsonl").read_text().splitlines()]
    (clean,), (attacked,) = ([row for row in rows if row["attack"] == name] for name in ("pgd", "deepwordbug"))
    assert attacked["clean_accuracy"] == pytest.approx(clean["accuracy"]) and attacked["clean_accuracy"] > 0.9
    assert attacked["robust_accuracy"] < attacked["clean_accuracy"]
