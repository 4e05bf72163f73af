"""Processes that start in milliseconds: forked from a server that has imported torch and megatron-core once.

    process = start(my_function, argument)             # a separate process, like multiprocessing.Process
    done = run_script(path, "--flag", "value")         # a script, with its own standard output, error and exit code

A new interpreter needs 3 to 9 seconds of CPU time for these imports alone. A test of an interpreter's start-up itself
(what is imported, variables read at import) needs `subprocess` instead.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = (
    "megatron_alum.training.loop",
    "megatron_alum.training.dry_run",
    "megatron_alum.convert",
    "megatron_alum.finetune.runs.grid",
    "torch.testing",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.roberta.tokenization_roberta",
)
"""modules that are not installed are skipped; transformers would import its parts, a second each, at their first use"""
_environment: dict[str, str] = {}


def keep_environment() -> None:
    """Keep this process's environment for the server: what a test sets later does not reach it."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    _environment.update({**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def context() -> multiprocessing.context.BaseContext:
    """Start the server unless it runs; returns the context that creates processes with it, like
    `get_context("spawn")`."""
    _CONTEXT.set_forkserver_preload(list(_IMPORTED))
    if not _environment:
        keep_environment()
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(_environment)  # inherited by the server, and by its processes from it
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return _CONTEXT


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A running process that calls `function(*arguments)`, both picklable; it ends when the function returns."""
    process = context().Process(target=function, args=arguments)
    process.start()
    return process


def run_script(
    path: Path | str,
    *arguments: object,
    folder: Path = ROOT,
    timeout_seconds: float = 300.0,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a Python file of the project (or elsewhere) as `python path arguments` would in `folder`, with these
    environment variables beside those of the server.

    Raises: TimeoutError.
    """
    words = [str(ROOT / path), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as outputs:
        files = [str(Path(outputs) / name) for name in ("stdout", "stderr")]
        process = start(_run_script, words, folder, dict(environment or {}), *files)
        process.join(timeout_seconds)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{path} did not end within {timeout_seconds} s")
        printed = [Path(file).read_text(encoding="utf-8") for file in files]
    return subprocess.CompletedProcess(words, process.exitcode, *printed)


def run_code(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python source as `run_script` runs a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code_of_a_test.py"
        path.write_text(code, encoding="utf-8")
        return run_script(path, *arguments, environment=environment)


def _run_script(words: list[str], folder: Path, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """The new process: redirect its streams to files, set its arguments to `words`, and run the script."""
    gc.freeze()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
