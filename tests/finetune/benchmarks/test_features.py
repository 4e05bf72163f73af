"""Tokens, windows and answers by hand: what the model sees, and how its outputs become answers again."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_alum.finetune.benchmarks.decoding import SpanOptions, best_span, decode
from megatron_alum.finetune.benchmarks.features import Collator, Encoder, answer_tokens
from megatron_alum.finetune.benchmarks.predictions import write_predictions
from megatron_alum.finetune.benchmarks.tasks import TASKS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop", "##x"]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter; `ax` is a and ##x."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def ids(text):
    return [WORDS.index(word) for word in text.split()]


def test_pairs_and_padding(tokenizer):
    examples = [
        {"id": "0", "first": "a b", "second": "c", "label": 1},
        {"id": "1", "first": "a", "second": "b", "label": None},
    ]
    features = Encoder(tokenizer, "classification").encode(examples)
    batch = Collator(tokenizer, "classification")(features)
    assert batch["input_ids"].tolist() == [ids("[CLS] a b [SEP] c [SEP]"), ids("[CLS] a [SEP] b [SEP] [PAD]")]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["labels"].tolist() == [1, 0]


def test_regression_labels_are_floats(tokenizer):
    features = Encoder(tokenizer, "regression").encode([{"id": "0", "first": "a", "second": "b", "label": 2.5}])
    assert Collator(tokenizer, "regression")(features)["labels"].dtype == torch.float32


def test_choice_stacks_its_candidates(tokenizer):
    example = {"id": "0", "first": "a", "second": "b", "endings": ["c", "d e", "f", "g"], "label": 2}
    batch = Collator(tokenizer, "choice")(Encoder(tokenizer, "choice").encode([example, example]))
    assert batch["input_ids"].shape == (2, 4, 7)
    assert batch["input_ids"][0, 1].tolist() == ids("[CLS] a [SEP] b d e [SEP]")
    assert batch["labels"].tolist() == [2, 2]


CONTEXT = "a b c d e f g h"
QUESTION = {
    "id": "q",
    "question": "p",
    "context": CONTEXT,
    "answers": [{"text": "e f", "answer_start": 8}],
    "is_impossible": False,
}


def test_span_windows_cover_the_context_and_hold_the_answer_once_each(tokenizer):
    features = Encoder(tokenizer, "spans", max_tokens=8, stride=2).encode([QUESTION])
    # 8 tokens less [CLS] p [SEP] ... [SEP] leave 4 words; each window begins 2 words later.
    words = [[CONTEXT[o[0] : o[1]] for o in f["offsets"] if o] for f in features]
    assert words == [["a", "b", "c", "d"], ["c", "d", "e", "f"], ["e", "f", "g", "h"]]
    positions = [(f["start_positions"], f["end_positions"]) for f in features]
    assert positions == [(0, 0), (5, 6), (3, 4)]


def test_long_questions_are_cut_and_leave_room_for_the_context(tokenizer):
    long = {**QUESTION, "question": " ax p ax p"}  # six tokens: a ##x p a ##x p
    encoder = Encoder(tokenizer, "spans", max_tokens=12, stride=2, max_question_tokens=5)
    feature = encoder.encode([long])[0]
    assert feature["input_ids"] == ids("[CLS] a ##x p a ##x [SEP] a b c d [SEP]")
    assert [pair for pair in feature["offsets"] if pair] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    # Google's maximum by default: 64 of 70 tokens, [CLS] and two [SEP] leave one token of 68.
    features = Encoder(tokenizer, "spans", max_tokens=68, stride=17).encode([{**QUESTION, "question": "p " * 70}])
    assert features[0]["input_ids"] == ids("[CLS] " + "p " * 64 + "[SEP] a [SEP]") and len(features) == 8


def test_windows_overlap_less_where_the_question_leaves_little_room(tokenizer):
    # Four tokens of context a window, fewer than the overlap asked for: half of them are shared.
    features = Encoder(tokenizer, "spans", max_tokens=8, stride=4).encode([QUESTION])
    words = [[CONTEXT[o[0] : o[1]] for o in f["offsets"] if o] for f in features]
    assert words == [["a", "b", "c", "d"], ["c", "d", "e", "f"], ["e", "f", "g", "h"]]


@pytest.mark.parametrize("max_tokens", [1, 2, 4, 5])
def test_a_question_that_does_not_fit_is_one_sentence(tokenizer, max_tokens):
    example = {**QUESTION, "question": "p p"}  # [CLS] p p [SEP] a [SEP] are six
    message = rf"--max-seq-length must be at least 6 tokens to hold question q .* but is {max_tokens} instead\."
    with pytest.raises(ValueError, match=message):
        Encoder(tokenizer, "spans", max_tokens=max_tokens, stride=max_tokens // 4).encode([example])
    assert len(Encoder(tokenizer, "spans", max_tokens=6, stride=1).encode([example])) == 8


def test_answers_that_do_not_align_with_tokens_take_the_covering_ones():
    offsets = [None, (0, 3), (4, 9), (10, 12), None]
    example = {"answers": [{"text": "bcd", "answer_start": 5}]}
    assert answer_tokens(offsets, example) == (2, 2)
    assert answer_tokens(offsets, {"answers": []}) == (0, 0)
    assert answer_tokens(offsets, {"answers": [{"text": "abcdefg", "answer_start": 8}]}) == (0, 0), "ends outside"


def test_best_span_obeys_order_length_and_context():
    offsets = [None, (0, 1), (2, 3), (4, 5), None]
    start, end = np.array([9.0, 1.0, 5.0, 0.0, 9.0]), np.array([9.0, 4.0, 0.0, 3.0, 9.0])
    # Best pair would be start 2, end 1 (9): not in order. Then 2..3 (8); with length 1: 1..1 (5) and 2..2 (5), 3..3
    # (3).
    assert best_span(start, end, offsets, SpanOptions()) == (8.0, (2, 5))
    assert best_span(start, end, offsets, SpanOptions(max_answer_tokens=1))[0] == 5.0
    assert best_span(start, end, [None] * 5, SpanOptions())[0] == -np.inf


def span_outputs(features, peaks):
    """Logits that are 0 but 10 at each window's (start, end)."""
    length = max(len(feature["offsets"]) for feature in features) + 2  # the Trainer pads with -100
    outputs = np.full((2, len(features), length), -100.0)
    for row, (feature, peak) in enumerate(zip(features, peaks, strict=True)):
        outputs[:, row, : len(feature["offsets"])] = 0.0
        for side in (0, 1):
            outputs[side, row, peak[side]] = peak[2]
    return outputs[0], outputs[1]


def test_the_best_window_answers_the_question(tokenizer, tmp_path):
    features = Encoder(tokenizer, "spans", max_tokens=8, stride=2).encode([QUESTION])
    outputs = span_outputs(features, [(3, 3, 2.0), (5, 6, 10.0), (5, 5, 3.0)])
    decoded = decode(TASKS["squad-v1.1"], "dev", [QUESTION], features, outputs)
    assert decoded.predictions == {"q": "e f"} and decoded.metrics == {"exact_match": 100.0, "f1": 100.0}
    path = write_predictions(TASKS["squad-v1.1"], "dev", [QUESTION], decoded, tmp_path)
    assert path.name == "dev.json" and path.read_text() == '{"q": "e f"}'


def test_adversarial_scores_count_the_original_questions(tokenizer):
    """Two originals, one with two variants: the means are over two, and so is n."""
    examples = [{**QUESTION, "id": key} for key in ("q", "q-turk0", "q-turk1", "r")]
    features = Encoder(tokenizer, "spans", max_tokens=16).encode(examples)
    outputs = span_outputs(features, [(7, 8, 1.0), (7, 8, 1.0), (3, 3, 1.0), (7, 8, 1.0)])
    decoded = decode(TASKS["adv-squad"], "add_sent", examples, features, outputs)
    assert decoded.metrics["exact_match"] == 50.0 and decoded.num_examples == 2
    assert len(decoded.predictions) == 4
    assert decode(TASKS["adv-squad"], "dev", examples, features, outputs).num_examples == 4


def test_each_score_of_version_2_counts_its_own_questions(tokenizer):
    examples = [QUESTION, *({**QUESTION, "id": key, "answers": [], "is_impossible": True} for key in "mn")]
    features = Encoder(tokenizer, "spans", max_tokens=16, stride=2).encode(examples)
    decoded = decode(TASKS["squad-v2"], "dev", examples, features, span_outputs(features, [(7, 8, 1.0)] * 3))
    metrics = ("f1", "has_answer_f1", "no_answer_exact_match", "best_f1")
    assert [decoded.count_of(metric) for metric in metrics] == [3, 1, 2, 3]


def test_no_answer_needs_the_margin(tokenizer, tmp_path):
    impossible = {**QUESTION, "id": "n", "answers": [], "is_impossible": True}
    features = Encoder(tokenizer, "spans", max_tokens=16, stride=2).encode([QUESTION, impossible])
    starts, ends = span_outputs(features, [(7, 8, 10.0), (7, 8, 4.0)])
    starts[:, 0] = ends[:, 0] = 5.0  # no answer scores 10: less than 20, more than 8
    decoded = decode(TASKS["squad-v2"], "dev", [QUESTION, impossible], features, (starts, ends))
    assert decoded.predictions == {"q": "e f", "n": ""}
    assert decoded.no_answer_score == {"q": -10.0, "n": 2.0}
    assert decoded.metrics["f1"] == 100.0 and decoded.metrics["no_answer_f1"] == 100.0
    strict = SpanOptions(no_answer_threshold=3.0)
    answered = decode(TASKS["squad-v2"], "dev", [QUESTION, impossible], features, (starts, ends), spans=strict)
    assert answered.predictions["n"] == "e f" and answered.metrics["f1"] == 50.0
    assert answered.metrics["best_f1"] == 100.0
    write_predictions(TASKS["squad-v2"], "dev", [QUESTION, impossible], decoded, tmp_path)
    assert (tmp_path / "dev_null_odds.json").is_file()


def test_tags_sit_on_first_sub_words_and_every_word_is_labelled_once(tokenizer, tmp_path):
    names = ("O", "B-A", "I-A")
    example = {"id": "0", "tokens": ["ax", *"bcdefghij"], "tags": ["B-A", "I-A", *["O"] * 7, "B-A"]}
    features = Encoder(tokenizer, "tags", max_tokens=8, tags=names).encode([example])
    assert features[0]["labels"] == [-100, 1, -100, 2, 0, 0, 0, -100]
    labelled = [word for feature in features for word in feature["words"] if word is not None]
    assert labelled == list(range(10)) and len(features) > 1
    batch = Collator(tokenizer, "tags")(features)
    assert batch["labels"].shape == batch["input_ids"].shape and (batch["labels"][-1] == -100).any()
    logits = np.zeros((len(features), 8, 3))
    for row, feature in enumerate(features):
        for token, label in enumerate(feature["labels"]):
            logits[row, token, max(label, 0)] = 1.0
    decoded = decode(TASKS["bc2gm"], "dev", [example], features, logits, tags=names)
    assert decoded.predictions == [example["tags"]] and decoded.metrics["entity_f1"] == 1.0
    text = write_predictions(TASKS["bc2gm"], "dev", [example], decoded, tmp_path).read_text()
    assert text.startswith("ax\tB-A\tB-A\nb\tI-A\tI-A\n") and text.endswith("\n\n")


def test_glue_submission_files(tmp_path):
    examples = [{"id": str(i), "label": None} for i in range(2)]
    features = [{"example": 1}, {"example": 0}]  # evaluated in another order than written
    decoded = decode(TASKS["mnli"], "test", examples, features, np.array([[3.0, 0, 0], [0, 2.0, 1]]))
    assert decoded.metrics == {}
    path = write_predictions(TASKS["mnli"], "test", examples, decoded, tmp_path)
    assert path.name == "MNLI-m.tsv" and path.read_text() == "index\tprediction\n0\tneutral\n1\tentailment\n"
    assert write_predictions(TASKS["mnli"], "test_mismatched", examples, decoded, tmp_path).name == "MNLI-mm.tsv"
    scores = decode(TASKS["stsb"], "test", examples, features, np.array([[5.0], [1.23456]]))
    assert (
        write_predictions(TASKS["stsb"], "test", examples, scores, tmp_path)
        .read_text()
        .endswith("0\t1.235\n1\t5.000\n")
    )
