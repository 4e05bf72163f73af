"""tools/finetune.py, tools/attack.py and tools/make_report.py from end to end on a 1-layer encoder, in this process."""

import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from megatron_alum.compat import precision
from megatron_alum.config.cli import build_config
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.finetune.runs import grid
from megatron_alum.finetune.runs.prepare import prepare

TOOLS = Path(__file__).parents[3] / "tools"
WORDS = ["good", "fine", "nice", "great", "bad", "poor", "ugly", "awful", "film", "plot", "cast", "scene"]


def run_tool(name, *arguments, expect_error=False):
    """Run a tool's main as a user would; its exit code."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, [f"{name}.py", *map(str, arguments)]
    try:
        module.main_guard(module.main)
    except SystemExit as error:
        assert expect_error, "the tool failed"
        return error.code
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A 1-layer, 32-wide BERT with a word vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    assert len(tokenizer) == 5 + len(WORDS)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    """SST-2's layout: a sentence is positive when its one adjective is."""
    folder = tmp_path_factory.mktemp("glue") / "SST-2"
    folder.mkdir()
    rng = random.Random(0)
    for split, count in (("train", 192), ("dev", 48)):
        rows = ["sentence\tlabel"]
        for _ in range(count):
            index = rng.randrange(8)
            words = [WORDS[index], *rng.sample(WORDS[8:], 2)]
            rng.shuffle(words)
            rows.append(f"{' '.join(words)}\t{int(index < 4)}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "test.tsv").write_text("index\tsentence\n0\tgood film\n1\tbad plot\n")
    return folder.parent


def flags(encoder, sentiment, output, *more):
    return [
        *("--model", encoder, "--task", "sst2", "--data-dir", sentiment, "--output", output),
        *("--num-train-epochs", 3, "--learning-rate", 5e-3, "--per-device-train-batch-size", 16),
        *("--seeds", 1, 2, *more),
    ]


@pytest.fixture(scope="module")
def finished(encoder, sentiment, tmp_path_factory):
    """Output folder of a grid of two seeds with ALUM."""
    output = tmp_path_factory.mktemp("out") / "sst2"
    assert run_tool("finetune", *flags(encoder, sentiment, output, "--alum", "--alum-epsilon", 0.01)) == 0
    return output


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_rows_and_files(finished, encoder):
    rows = rows_of(finished / "results.jsonl")
    keys = [
        "task",
        "split",
        "metric",
        "value",
        "n",
        "seed",
        "model",
        "method",
        "learning_rate",
        "batch_size",
        "epochs",
        "seconds",
    ]
    assert [list(row) for row in rows] == [keys] * 2
    assert [(row["seed"], row["split"], row["metric"], row["n"]) for row in rows] == [
        (s, "dev", "accuracy", 48) for s in (1, 2)
    ]
    assert rows[0]["method"] == "alum" and rows[0]["model"] == str(encoder) and rows[0]["epochs"] == 3.0
    assert all(row["value"] > 0.9 for row in rows), "one adjective decides: this is learnable"
    run = finished / "runs" / "lr0.005-bs16-seed1"
    assert (run / "SST-2.tsv").read_text().splitlines()[0] == "index\tprediction"
    assert (run / "dev.tsv").is_file() and not list(run.glob("checkpoint-*"))
    assert (finished / "model" / "config.json").is_file() and (finished / "best.json").is_file()


def test_a_second_call_repeats_nothing(finished, encoder, sentiment, capsys):
    before = (finished / "results.jsonl").read_text()
    run_tool("finetune", *flags(encoder, sentiment, finished, "--alum", "--alum-epsilon", 0.01))
    assert (finished / "results.jsonl").read_text() == before
    out = capsys.readouterr().out
    assert "not repeated" in out and "(2 seeds)" in out and "+-" in out


def test_a_folder_of_other_settings_is_refused(finished, encoder, sentiment, capsys):
    assert run_tool("finetune", *flags(encoder, sentiment, finished), expect_error=True) == 2
    assert "was made with --alum True and is now given False" in capsys.readouterr().err


def test_early_stop(encoder, sentiment, tmp_path):
    """A run that cannot improve (learning rate 1e-12) stops one epoch after its first, and keeps that one."""
    more = ("--learning-rate", 1e-12, "--num-train-epochs", 10, "--early-stopping-patience", 1, "--seeds", 1)
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "out", "--max-train-samples", 16), *more)
    assert [row["epochs"] for row in rows_of(tmp_path / "out" / "results.jsonl")] == [2.0]


@pytest.mark.parametrize("grouped", ["true", "false"])
def test_bf16_on_a_cpu_and_the_dev_set_run_once(encoder, sentiment, tmp_path, grouped, monkeypatch, capsys):
    """--bf16 needs no GPU, and one line for both runs says where it is slow; the best checkpoint's own predictions are
    used, not computed again.
    """

    predicted = []
    original = grid._outputs
    monkeypatch.setattr(
        grid, "_outputs", lambda trainer, split: predicted.append(split.name) or original(trainer, split)
    )
    monkeypatch.setattr(precision, "has_bf16_instructions", lambda: grouped == "true")
    run_tool("finetune", *flags(encoder, sentiment, tmp_path, "--bf16", "--group-by-length", grouped))
    assert capsys.readouterr().err.count("this CPU has no bfloat16 instructions") == int(grouped == "false")
    assert predicted == ["test", "test"] and all(row["value"] > 0.9 for row in rows_of(tmp_path / "results.jsonl"))


def test_an_interrupted_run_resumes_from_its_checkpoint(encoder, sentiment, tmp_path, monkeypatch):
    """Stopped in the second epoch, a run ends with the uninterrupted one's result."""
    from transformers import TrainerCallback

    more = ("--optim", "radam", "--max-train-samples", 64, "--seeds", 3)
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "a", *more))

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    original = grid.build_trainer

    def interrupted(*arguments):
        trainer = original(*arguments)
        trainer.add_callback(Interrupt())
        return trainer

    monkeypatch.setattr(grid, "build_trainer", interrupted)
    assert run_tool("finetune", *flags(encoder, sentiment, tmp_path / "b", *more), expect_error=True) == 130
    monkeypatch.setattr(grid, "build_trainer", original)
    assert list((tmp_path / "b").rglob("checkpoint-4")) and not (tmp_path / "b" / "results.jsonl").exists()
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "b", *more))
    results = [rows_of(tmp_path / name / "results.jsonl") for name in "ab"]
    assert [row["value"] for row in results[0]] == [row["value"] for row in results[1]]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("limit", "question"), [(64, 5), (2, 2)])
def test_questions_are_cut_after_max_query_length(encoder, tmp_path, limit, question):
    answers = [{"text": "film", "answer_start": 5}]
    asked = {"id": "q", "question": "good fine nice great bad", "answers": answers}
    paragraph = {"context": "good film plot", "qas": [asked]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    data = {"model": str(encoder), "task": "squad-v1.1", "output": "unused", "data_dir": str(tmp_path)}
    (feature,) = prepare(build_config(FinetuneConfig, [{**data, "max_query_length": limit}])).train
    assert len(feature["input_ids"]) == 1 + question + 1 + 3 + 1  # [CLS] question [SEP] context [SEP]


def test_attack_lowers_accuracy_with_the_radius(finished, sentiment, tmp_path):
    radii = (0.0, 0.001, 1.0)
    run_tool(
        "attack",
        "--model",
        finished / "model",
        "--task",
        "sst2",
        "--data-dir",
        sentiment,
        "--output",
        tmp_path,
        "--radii",
        *radii,
        "--num-steps",
        4,
    )
    rows = rows_of(tmp_path / "attack.jsonl")
    assert [row["radius"] for row in rows] == list(radii)
    clean, near, far = (row["accuracy"] for row in rows)
    assert clean == max(row["value"] for row in rows_of(finished / "results.jsonl"))
    assert clean >= near >= far and far < 0.2
    assert (tmp_path / "attack.png").stat().st_size > 1000


def test_word_attack_counts_textattacks_results(monkeypatch):
    """A stand-in with TextAttack's names: two of four examples withstand, one is wrong before the attack."""
    from megatron_alum.finetune.benchmarks.tasks import TASKS
    from megatron_alum.finetune.runs import attack

    kinds = ["FailedAttackResult", "SuccessfulAttackResult", "SkippedAttackResult", "FailedAttackResult"]
    seen = {}

    class Attacker:
        def __init__(self, recipe, dataset, arguments):
            seen.update(recipe=recipe, dataset=dataset)

        def attack_dataset(self):
            return [type(name, (), {})() for name in kinds]

    recipe = types.SimpleNamespace(build=lambda wrapper: "bae")
    modules = {
        "textattack": types.SimpleNamespace(AttackArgs=lambda **options: options, Attacker=Attacker),
        "textattack.attack_recipes": types.SimpleNamespace(BAEGarg2019=recipe),
        "textattack.models.wrappers": types.SimpleNamespace(HuggingFaceModelWrapper=lambda *pair: pair),
        "textattack.datasets": types.SimpleNamespace(Dataset=lambda rows, columns: (rows, columns)),
    }
    monkeypatch.setattr(attack.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(attack.importlib, "import_module", lambda name: modules[name])
    examples = [{"first": "a", "second": "b", "label": 1}] * 4
    result = attack.word_attack(types.SimpleNamespace(eval=lambda: None), None, TASKS["rte"], examples, "bae")
    assert result == {"clean_accuracy": 0.75, "robust_accuracy": 0.5}
    assert seen["recipe"] == "bae" and seen["dataset"][1] == ["premise", "hypothesis"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--task", "imdb"), "--task must be one of cola"),
        (("--data-dir", "nowhere"), "--data-dir must be an existing folder, but nowhere does not exist"),
        (("--model", "bert-base-uncased"), "--model must be a local Hugging Face folder"),
        (("--learning-rate", "fast"), "--learning-rate must be a number"),
        (("--alum", "--method", "smart"), "--alum must not be combined"),
        (("--bf16", "--fp16"), "must not be combined"),
        (("--max-train-samples", "0"), "--max-train-samples must be at least 1"),
        (("--task", "custom"), "--train-file and --validation-file must be given"),
        (("--alum-epsilon", "-1"), "--alum-epsilon must be at least 0"),
        (("--early-stopping-patience", "-1"), "--early-stopping-patience must be at least 0"),
        (("--warmup-ratio", "1"), "--warmup-ratio must be at least 0 and below 1"),
        pytest.param(
            ("--fp16",),
            "--fp16 must be used on a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, where --fp16 works"),
        ),
    ],
)
def test_a_users_error_is_one_sentence(encoder, sentiment, tmp_path, capsys, changes, message):
    code = run_tool("finetune", *flags(encoder, sentiment, tmp_path / "out"), *changes, expect_error=True)
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_tokenizer_with_words_that_the_model_lacks_is_refused(encoder, sentiment, tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "more"]) + "\n"
    )
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    command = flags(encoder, sentiment, tmp_path / "out", "--tokenizer", tmp_path / "tokenizer")
    assert run_tool("finetune", *command, expect_error=True) == 2
    assert f"the tokenizer must have at most the {5 + len(WORDS)} words of" in capsys.readouterr().err


def test_attack_refuses_unsuitable_models_and_tasks(finished, sentiment, tmp_path, capsys):
    common = ("--model", finished / "model", "--data-dir", sentiment, "--output", tmp_path)
    for more, message in (
        (("--task", "squad-v1.1"), "classification or multiple-choice"),
        (("--task", "sst2", "--split", "test"), "must have labels"),
        (("--task", "sst2", "--radii", "-1"), "--radii must be at least 0"),
        (("--task", "sst2", "--max-eval-samples", "4", "--word-attack", "pwws"), "pip install textattack"),
    ):
        assert run_tool("attack", *common, *more, expect_error=True) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir()), "refused before the first attack"


def test_custom_task_from_files(encoder, tmp_path, capsys):
    lines = [
        json.dumps({"body": f"{word} film", "verdict": "up" if i < 4 else "down"}) for i, word in enumerate(WORDS[:8])
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    run_tool(
        "finetune",
        "--model",
        encoder,
        "--task",
        "custom",
        "--train-file",
        tmp_path / "train.jsonl",
        "--validation-file",
        tmp_path / "dev.jsonl",
        "--text-column",
        "body",
        "--label-column",
        "verdict",
        "--labels",
        "down",
        "up",
        "--output",
        tmp_path / "out",
        "--max-steps",
        2,
        "--save-model",
        "false",
    )
    row = rows_of(tmp_path / "out" / "results.jsonl")[0]
    assert (row["task"], row["metric"], row["n"], row["method"]) == ("custom", "accuracy", 8, "none")
    assert not (tmp_path / "out" / "model").exists()


def test_a_new_row_of_the_table_is_a_new_task(encoder, sentiment, tmp_path, monkeypatch):
    """Another layout, other labels, a further split: everything follows from the row."""
    from megatron_alum.finetune.benchmarks.tasks import TASKS, Task

    folder = tmp_path / "films"
    folder.mkdir()
    names = {"0": "rotten", "1": "fresh"}
    for split, source in (("learn", "train"), ("check", "dev"), ("late", "dev")):
        lines = (sentiment / "SST-2" / f"{source}.tsv").read_text().splitlines()[1:]
        pairs = [line.split("\t") for line in lines]
        records = [{"review": text, "verdict": names[label]} for text, label in pairs]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    row = Task(
        name="films",
        kind="classification",
        metrics=("f1_binary", "accuracy"),
        files={"train": ("learn.jsonl",), "dev": ("check.jsonl",), "late": ("late.jsonl",)},
        folders=("films",),
        first=("review",),
        label=("verdict",),
        labels=("rotten", "fresh"),
    )
    monkeypatch.setitem(TASKS, "films", row)
    command = flags(encoder, tmp_path, tmp_path / "out", "--method", "r-drop", "--seeds", 1)
    run_tool("finetune", *("films" if word == "sst2" else word for word in command))
    rows = rows_of(tmp_path / "out" / "results.jsonl")
    assert [(row["split"], row["metric"]) for row in rows] == [
        (split, metric) for split in ("dev", "late") for metric in ("f1_binary", "accuracy")
    ]
    assert all(row["value"] > 0.9 and row["task"] == "films" for row in rows)
    predicted = (tmp_path / "out" / "runs" / "lr0.005-bs16-seed1" / "late.tsv").read_text()
    assert predicted.splitlines()[0] == "index\tprediction" and "fresh" in predicted


@pytest.mark.parametrize(
    ("given", "found"), [("nope", "nope does not exist"), ("A=nope", "nope does not exist"), (".", ". is a folder")]
)
def test_a_report_without_results_is_one_sentence(given, found, tmp_path, capsys):
    assert run_tool("make_report", "--results", given, "--output", tmp_path / "out", expect_error=True) == 2
    assert f"--results must be results.jsonl files or SYSTEM=FILE, but {found}." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
