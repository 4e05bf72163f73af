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


def from_hf(home, name, save):
    """The tool on a hub name, with this cache and no network."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [
        sys.executable,
        "tools/convert_checkpoint.py",
        "from-hf",
        "--model",
        name,
        "--save",
        str(save),
        "--verify",
    ]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_a_cached_name_is_converted_offline(tmp_path):
    tokenizer_folder(save_hf_model("bert", tmp_path / "hf"))
    cached_model(tmp_path / "home", tmp_path / "hf")
    done = from_hf(tmp_path / "home", "lab/tiny", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "verified: largest difference of hidden states" in done.stdout
    written = tmp_path / "run" / "iter_0000000" / "tokenizer" / "tokenizer.json"
    assert written.is_file() and not written.is_symlink()


def test_a_name_outside_the_cache_is_refused_in_one_sentence(tmp_path):
    done = from_hf(tmp_path / "home", "lab/tiny", tmp_path / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "lab/tiny must be a model folder or the name of a hub repository" in done.stderr
    assert not (tmp_path / "run").exists()
