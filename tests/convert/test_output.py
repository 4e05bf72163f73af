"""Output folders appear only when complete."""

from pathlib import Path

import pytest

from megatron_alum.convert import commands
from megatron_alum.convert.output import atomic_folder, require_free


def test_the_folder_takes_its_name_at_the_end(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as partial:
        (partial / "file").write_text("x")
        assert not target.exists() and partial.parent == target.parent
    assert (target / "file").read_text() == "x" and [p.name for p in target.parent.iterdir()] == ["out"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "out") as partial:
        (partial / "half").write_text("x")
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_be_filled_and_nothing_else(tmp_path):
    (tmp_path / "empty").mkdir()
    require_free(tmp_path / "empty", "--output")
    with atomic_folder(tmp_path / "empty") as partial:
        (partial / "file").write_text("x")
    assert (tmp_path / "empty" / "file").is_file()
    for taken in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with pytest.raises(ValueError, match="--output must name a new or empty folder"):
            require_free(taken, "--output")


def test_an_empty_folder_may_be_named_by_a_link(tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "empty")
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "file").write_text("x")
    assert (tmp_path / "disk" / "empty" / "file").is_file() and (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["empty"]


def test_the_current_folder_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    """It would be replaced by a new folder of the same name, which the shell in the old one would not see."""
    monkeypatch.chdir(tmp_path)
    for current in (Path(), tmp_path):
        with pytest.raises(ValueError, match="--output must be another folder than the current one"):
            commands.to_hf("absent", current)
        with pytest.raises(ValueError, match="--save must be another folder than the current one"):
            commands.from_hf("absent", current)
