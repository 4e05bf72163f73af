"""`megatron-alum`: it finds its commands, answers --help at once, and the scripts in tools/ are the same commands."""

import ast
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_alum import __version__
from megatron_alum.cli import main as console
from megatron_alum.config.cli import main_guard

ROOT = Path(__file__).parents[2]
FRONTS = {
    "tools/preprocess_data.py": "preprocess",
    "tools/train_tokenizer.py": "train-tokenizer",
    "tools/inspect_shards.py": "inspect",
    "tools/merge_shards.py": "merge",
    "tools/convert_checkpoint.py": "convert",
    "tools/finetune.py": "finetune",
    "tools/attack.py": "attack",
    "tools/make_report.py": "report",
    "tools/doctor.py": "doctor",
    "tools/estimate_memory.py": "estimate",
    "pretrain_bert_alum.py": "pretrain",
    "megatron_alum/pretrain.py": "pretrain",
}
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "tools/*.py", "benchmarks/*.py", "examples/**/*.py")
    for path in ROOT.glob(pattern)
    if '__name__ == "__main__"' in path.read_text()
)
"""every script that a user may start with --help"""
SLOW = {"torch", "transformers", "megatron", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "datasets", "nltk"}
"""packages whose import takes more than a tenth of a second"""
HELP_OF_SCRIPTS = """
import contextlib, io, json, runpy, sys
answers = {}
for script in sys.argv[1:]:
    before, sys.argv, out = sys.argv, [script, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    sys.argv = before
    answers[script] = [out.getvalue()[:6], sorted({name.partition(".")[0] for name in sys.modules})]
json.dump(answers, sys.stdout)
"""
HELP_OF_ALL = """
import contextlib, io, json, runpy, sys
from megatron_alum.cli.main import COMMANDS, run
def help_of(start, *words):
    sys.argv, out = [*words, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        start()
    return out.getvalue()
commands = [[name] for name in COMMANDS] + [["convert", "to-hf"], ["convert", "from-hf"]]
printed = {" ".join(words): help_of(run, "megatron-alum", *words) for words in commands}
compared = help_of(lambda: runpy.run_path("tools/compare_runs.py", run_name="__main__"), "compare_runs.py")
assert compared.startswith("usage: compare_runs.py ["), compared
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
foreign = loaded - set(sys.stdlib_module_names)
json.dump([printed, sorted(foreign - {"megatron_alum", "yaml", "__main__"})], sys.stdout)
"""


def alum(monkeypatch, capsys, *words):
    """(exit status, stdout, stderr) of the console command in this process."""
    monkeypatch.setattr(sys, "argv", ["megatron-alum", *words])
    status = 0
    try:
        console.main()
    except SystemExit as error:
        status = error.code or 0
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def answered():
    """{command: its --help} and what one fresh interpreter had to import from outside for all of them."""
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys\nsys.path[:0] = {_search_path()!r}\n{HELP_OF_ALL}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def _search_path():
    """The repository and the installed packages, without what their .pth files would import."""
    import yaml

    return [str(ROOT), str(Path(yaml.__file__).parents[1])]


def test_help_imports_nothing_that_takes_time(answered):
    """Nothing but the standard library and yaml: torch takes seconds. Scripts in tools/ call the commands."""
    assert answered[1] == []


def test_every_script_answers_help_before_it_imports_what_takes_time():
    """All in one interpreter: a package that one imports would be seen in the next, too."""
    code = f"import sys\nsys.path[:0] = {_search_path()!r}\n{HELP_OF_SCRIPTS}"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)
    assert {"pretrain_bert_alum.py", "examples/demo.py", "benchmarks/bench_ops.py"} <= answers.keys() == set(SCRIPTS)
    assert {script: found for script, (found, _) in answers.items() if found != "usage:"} == {}
    assert {script: SLOW & set(loaded) for script, (_, loaded) in answers.items() if SLOW & set(loaded)} == {}


def test_every_command_has_help_under_its_own_name(answered):
    for name, text in answered[0].items():
        assert text.startswith(f"usage: megatron-alum {name} "), text[:200]
    assert set(console.COMMANDS) < set(answered[0])


def test_inspect_takes_one_corpus_as_its_first_word(answered, monkeypatch, capsys):
    text = " ".join(answered[0]["inspect"].split())
    assert text.startswith("usage: megatron-alum inspect CORPUS [options]")
    assert "(required)" not in text and "--prefetch-batches" not in text  # which training alone uses
    for words in (("a", "b"), ("--data-path", "a", "b", "--verify")):
        status, _out, err = alum(monkeypatch, capsys, "inspect", *words)
        assert status == 2
        assert err == "error: The corpus must be one prefix, but is a b instead. Inspect one at a time.\n"


def test_estimate_requires_only_what_it_needs(answered):
    assert re.findall(r"\(required\)", answered[0]["estimate"]) == ["(required)"]  # --vocab-size
    assert "entries of the tokenizer (required)" in " ".join(answered[0]["estimate"].split())


def test_headings_of_help_are_not_sentences(answered):
    """argparse puts a colon after a section's title: "What is read.:" is what a docstring's full stop would give."""
    headings = {line for text in answered[0].values() for line in text.splitlines() if re.match(r"\S.*:$", line)}
    assert {"What is read:", "The network:", "Adversarial regularisation (ALUM):"} <= headings
    assert [line for line in headings if not line[-2].isalnum() and line[-2] not in ")\"'"] == []


def test_importing_the_package_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import megatron_alum; print(sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "['megatron_alum']"


@pytest.mark.parametrize(("front", "command"), FRONTS.items())
def test_a_script_is_its_command(front, command, answered, monkeypatch, capsys):
    """The same help, under the script's name; and the script itself holds no logic of its own."""
    monkeypatch.setattr(sys, "argv", [front, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / front), run_name="__main__")
    words = [" ".join(text.split()) for text in (capsys.readouterr().out, answered[0][command])]
    assert words[0].replace(Path(front).name, f"megatron-alum {command}") == words[1]
    body = ast.parse((ROOT / front).read_text()).body
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)


def test_every_tool_of_the_set_is_a_front():
    """A new tool in the package must be listed here; only compare_runs.py is for developers."""
    tools = {f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")} - {"tools/compare_runs.py"}
    assert tools == {name for name in FRONTS if name.startswith("tools/")}
    assert set(FRONTS.values()) == set(console.COMMANDS)


def test_messages_name_commands_and_not_scripts():
    """The installed package has no tools/ folder, so errors must name commands that exist there."""
    for path in (ROOT / "megatron_alum").rglob("*.py"):
        named = [front for front in FRONTS if front.startswith("tools/") and front in path.read_text()]
        assert not named, f"{path.name} names {named}"


def test_without_a_command_it_lists_them(monkeypatch, capsys):
    for words in ((), ("--help",), ("-h",)):
        status, out, err = alum(monkeypatch, capsys, *words)
        assert status == 0 and not err
        assert all(f"\n  {name} " in out for name in console.COMMANDS)
    assert alum(monkeypatch, capsys, "--version") == (0, f"megatron_alum {__version__}\n", "")


def test_an_unknown_command_names_the_nearest(monkeypatch, capsys):
    status, out, err = alum(monkeypatch, capsys, "finetun", "--alum")
    assert status == 2 and not out
    assert err.startswith("error: the command must be one of preprocess, ") and "Did you mean finetune?" in err


def test_a_commands_error_is_a_sentence(monkeypatch, capsys):
    status, _, err = alum(monkeypatch, capsys, "preprocess", "--inptu", "x")
    assert status == 2 and err == "error: --inptu is not an option of this program. Did you mean --input?\n"


def test_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "megatron_alum", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == f"megatron_alum {__version__}\n"


def test_a_missing_extra_is_a_sentence_too(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(sys, "argv", ["megatron-alum", "report", "--output", "x"])
    from megatron_alum.config.extras import require

    with pytest.raises(SystemExit) as stopped:
        main_guard(lambda: require("matplotlib", "jinja2"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error == "error: jinja2 must be installed for this, but is not. Run: pip install 'megatron_alum[report]'.\n"
