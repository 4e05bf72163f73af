"""Hub names: `org/name` from a cache of the hub's own layout, offline, and the refusal of a name that it lacks."""

import os
import subprocess
import sys
from pathlib import Path

from tests.convert.models import save_hf_model, tokenizer_folder

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached_model(home, source):
    """`source` as repository lab/tiny in the cache below `home`: refs, blobs, and a snapshot of links to them."""
    repository = home / "hub" / "models--lab--tiny"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (repository / "snapshots" / COMMIT / path.name).symlink_to(Path("../../blobs") / str(number))


TWICE = """
import sys
from megatron_alum.cli.convert import main
from megatron_alum.config.cli import main_guard
for save in sys.argv[1:]:
    sys.argv = ["convert", "from-hf", "--model", save.rpartition("/")[2].replace("--", "/"), "--save", save, "--verify"]
    try:
        main_guard(main)
    except SystemExit as exit:
        print("exit", exit.code)
"""
"""converts the hub's name at the end of each folder's, in one process: what is imported reads the variables below"""


def test_a_cached_name_is_converted_offline_and_another_is_refused_in_one_sentence(tmp_path):
    tokenizer_folder(save_hf_model("bert", tmp_path / "hf"))
    cached_model(tmp_path / "home", tmp_path / "hf")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    saved, refused = tmp_path / "lab--tiny", tmp_path / "lab--large"
    command = [sys.executable, "-c", TWICE, str(refused), str(saved)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stdout.startswith("exit 2\n") and done.stdout.count("exit") == 1
    assert "lab/large must be a model folder or the name of a hub repository" in done.stderr
    assert not refused.exists()
    assert "verified: largest difference of hidden states" in done.stdout
    written = saved / "iter_0000000" / "tokenizer" / "tokenizer.json"
    assert written.is_file() and not written.is_symlink()
