"""The package as a stranger gets it: built, installed into a fresh environment, used from a folder of its own.

The distributions are built from a copy of the tree, the wheel from the sdist, so that nothing left in the tree helps.
The fresh environment has the wheel alone; the libraries it depends on come from this one's folder by a path entry,
which makes no package of the tree importable (an editable installation acts only in its own environment).
"""

import importlib
import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from megatron_alum.config.extras import EXTRAS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
LEFT_OUT = (
    ".git",
    ".venv",
    "build",
    "dist",
    "*.egg-info",
    "*.so",
    "__pycache__",
    "demo_output",
    ".*_cache",
    ".hypothesis",
    ".tmp",
)
# Read by every interpreter of the environment at its start: takes modules away, as if they were not installed.
SITECUSTOMIZE = """
import os, sys
for name in os.environ.get("WITHOUT_MODULES", "").split():
    sys.modules[name] = None
"""
LABELLED = [("The value is true.", "yes"), ("The list is empty.", "no"), ("A call returns it.", "yes"), ("None.", "no")]


def copy_of_the_tree(target):
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    return target


def clean_environment(**more):
    """This process's environment without what points at the tree."""
    names = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COVERAGE"))}
    return {**names, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **more}


def build(root):
    """(sdist, wheel) as `python -m build --no-isolation` makes them."""
    tree = copy_of_the_tree(root / "megatron_alum")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(root / "dist"), str(tree)]
    environment = clean_environment(MAX_JOBS="1", USE_CUDA="0")
    run = subprocess.run(command, capture_output=True, text=True, timeout=2400, env=environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    (sdist,), (wheel,) = (root / "dist").glob("*.tar.gz"), (root / "dist").glob("*.whl")
    return sdist, wheel


class Installed:
    """A fresh environment with the wheel, and a folder of its own to work in."""

    def __init__(self, root, wheel):
        self.bin, self.folder = root / "environment" / "bin", root / "work"
        self.folder.mkdir()
        venv.create(root / "environment", with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--no-deps", "--no-index"]
        subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=300)
        (packages,) = (root / "environment" / "lib").glob("python*/site-packages")
        (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        (packages / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def __call__(self, *words, without=(), status=0):
        """Runs a command of the environment, `megatron-alum` where it begins with no path; returns its stdout."""
        command = [str(self.bin / words[0]), *map(str, words[1:])]
        environment = clean_environment(WITHOUT_MODULES=" ".join(without))
        run = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600, env=environment)
        assert run.returncode == status, f"{words}: {(run.stdout + run.stderr)[-3000:]}"
        return run.stdout if status == 0 else run.stderr


def test_built_installed_and_used(tmp_path):
    """In one test, since each step stands on the one before."""
    sdist, wheel = build(tmp_path)
    the_sdist_holds_what_builds_and_tests_it(sdist)
    the_wheel_holds_both_extensions_and_the_data(wheel)
    installed = Installed(tmp_path, wheel)
    the_chain_from_another_folder(installed)
    pretraining_and_conversion_need_no_extra(installed)


def the_sdist_holds_what_builds_and_tests_it(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder, pattern in (("csrc", "*"), ("tests", "*.py"), ("tools", "*.py"), ("megatron_alum", "*.py")):
        missing = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob(pattern) if p.is_file()} - names
        assert not {name for name in missing if "__pycache__" not in name and not name.endswith(".so")}
    assert {"setup.py", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "CITATION.cff"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def the_wheel_holds_both_extensions_and_the_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("megatron_alum/_C.", "megatron_alum/_data.", "megatron_alum/data/preprocessing/languages/de.toml"):
        assert any(name.startswith(wanted) for name in names), wanted
    assert {"megatron_alum/py.typed", "megatron_alum/report/paper.toml", "megatron_alum/report/page.html"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"megatron_alum"}


def the_chain_from_another_folder(installed):
    """Doctor, preprocess, two processes of pre-training, convert, AutoModel, fine-tune, report."""
    folder = installed.folder
    where = installed("python", "-c", "import megatron_alum; print(megatron_alum.__file__)")
    assert str(installed.bin.parent) in where
    assert "one step of a tiny BERT ran" in installed("megatron-alum", "doctor")
    topics = importlib.import_module("pydoc_data.topics").topics
    lines = [json.dumps({"text": text}) for text in topics.values()]
    (folder / "text.jsonl").write_text("\n".join(lines))
    installed("megatron-alum", *"train-tokenizer --input text.jsonl --output vocabulary --vocab-size 1000".split())
    words = "preprocess --input text.jsonl --output-prefix data/text --tokenizer vocabulary --workers 2"
    assert "documents" in installed("megatron-alum", *words.split())
    assert "document 0" in installed("megatron-alum", "inspect", "data/text", "--verify")
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m megatron_alum.pretrain --data-path data/text "
    words += "--save run --model-size tiny --seq-length 64 --micro-batch-size 4 --global-batch-size 8 --train-iters 4 "
    words += "--tensor-model-parallel-size 2 --eval-interval 0"
    installed("python", *words.split())
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["standard", "standard", "alum", "alum"]
    assert "verified" in installed("megatron-alum", *"convert to-hf --load run --output model --verify".split())
    code = "from transformers import AutoModel, AutoTokenizer; AutoTokenizer.from_pretrained('model'); "
    assert "MegatronBertModel" in installed("python", "-c", f"{code}print(type(AutoModel.from_pretrained('model')))")
    table = "text\tlabel\n" + "\n".join(f"{text}\t{label}" for text, label in LABELLED * 4)
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(table + "\n")
    words = "finetune --model model --task custom --train-file train.tsv --validation-file dev.tsv --text-column text "
    words += "--label-column label --labels yes no --output tuned --alum --max-steps 2 --seeds 1"
    installed("megatron-alum", *words.split())
    words = "report --output report --results tuned/results.jsonl --model-card model"
    assert "report.html" in installed("megatron-alum", *words.split())
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    assert "| custom | dev | accuracy |" in (folder / "model" / "README.md").read_text()


def pretraining_and_conversion_need_no_extra(installed):
    """With every library of the extras taken away; what needs one says which extra to install.

    On the shards that the chain above has left: preprocessing them is what the data extra is for.
    """
    absent = [module for modules in EXTRAS.values() for module in modules]
    words = "--data-path data/text --save run-of-core --model-size tiny --seq-length 64 --micro-batch-size 4 "
    words += "--global-batch-size 4 --train-iters 2 --eval-interval 0"
    installed("python", "-m", "megatron_alum.pretrain", *words.split(), without=absent)
    words = "convert to-hf --load run-of-core --output model-of-core --verify"
    installed("megatron-alum", *words.split(), without=absent)
    for words, extra in (
        ("report --output report-of-core", "report"),
        ("finetune --model model --task sst2 --data-dir . --output x", "finetune"),
    ):
        error = installed("megatron-alum", *words.split(), without=absent, status=2)
        assert error.startswith("error: ") and f"pip install 'megatron_alum[{extra}]'" in error, error


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler was found (no-such-compiler is not on PATH; install g++"),
        ({"CXX": "false"}, "(the compiler's output is above)"),
    ],
)
def test_a_failed_compilation_ends_in_a_sentence(environment, sentence, tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    run = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, timeout=300, env=clean_environment(**environment)
    )
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode != 0 and last.startswith("error: the extensions could not be compiled: ")
    assert sentence in last and "MEGATRON_ALUM_NO_EXTENSIONS=1" in last


def test_without_extensions_the_wheel_is_for_every_machine(tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    environment = clean_environment(MEGATRON_ALUM_NO_EXTENSIONS="1", CXX="no-such-compiler")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(tree)]
    run = subprocess.run(pip, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    used = Installed(tmp_path, wheel)
    code = "from megatron_alum.ops import build_info; print(build_info()['built'])"
    assert used("python", "-c", code) == "False\n"
    assert "the torch reference is used" in used("megatron-alum", "doctor")
