"""From the words after --input to a list of files: files, folders (searched below) and globs, sorted, none twice.

Hidden files, and files whose suffix says that they are no text (checksums, indexes of multistream dumps), are left
out of folders. What preprocessing itself writes is left out of folders and globs: the output may lie beside the
input, and a later run, a resumed one and the other shards must see the files that the first one saw. A file named by
the user is taken as it is.
"""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_alum.data.names import CONFIG_FILE, INDEX_CACHE, LOCK_FILE, MODEL_FILE, PARTIAL_SUFFIX, PUNKT_SUFFIX

_NO_TEXT = {".md5", ".sha1", ".sha256", ".idx", ".bin", ".log", ".html", ".yaml", ".yml", ".md", ".py", ".png", ".pdf"}
_OUTPUT_FOLDERS = {PARTIAL_SUFFIX: LOCK_FILE, PUNKT_SUFFIX: "ortho_context.tab"}
"""How the folders of a corpus end, and what each of them holds: the name alone could be a user's."""


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` name, in order of the arguments and sorted within one; ValueError when one names
    nothing."""
    found: dict[Path, None] = {}
    for word in inputs:
        for path in _files_of(word):
            found.setdefault(path)
    files = list(found)
    if not files:
        raise ValueError("`--input` must name at least one file, but names none. Give files, folders or globs.")
    if all(path.stat().st_size == 0 for path in files):
        raise ValueError(f"`--input` must hold text, but is empty: {', '.join(map(str, files[:3]))} has 0 bytes.")
    return files


def _files_of(word: str) -> list[Path]:
    path = Path(word)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (below for below in sorted(path.rglob("*")) if below.is_file() and _is_candidate(below, path))
        files = _without_outputs(found)
        if not files:
            raise ValueError(f"`--input` must hold files, but the folder {word} holds none that can be text.")
        return files
    matches = sorted(Path(match) for match in glob.glob(word, recursive=True))
    files = _without_outputs(match for match in matches if match.is_file())
    if not files:
        raise ValueError(f"`--input` must be an existing file, folder or glob, but {word} matches nothing.")
    return files


def _is_candidate(path: Path, folder: Path) -> bool:
    below = path.relative_to(folder)
    hidden = any(part.startswith((".", "_")) for part in below.parts)
    return not hidden and path.suffix.lower() not in _NO_TEXT and "multistream-index" not in path.name


def _without_outputs(files: Iterable[Path]) -> list[Path]:
    """`files` less the parts of corpora, finished or not: OUT.partial, OUT.json, OUT-tokenizer and so on."""
    known: dict[Path, bool] = {}  # most files share their folder with many others
    kept = []
    for file in files:
        folder = file.parent
        if folder not in known:
            known[folder] = any(map(_is_output_folder, (folder, *folder.parents)))
        if not known[folder] and not _is_output_file(file):
            kept.append(file)
    return kept


def _is_output_folder(folder: Path) -> bool:
    if folder.name == INDEX_CACHE:
        return True
    return any(folder.name.endswith(end) and (folder / mark).exists() for end, mark in _OUTPUT_FOLDERS.items())


def _is_output_file(file: Path) -> bool:
    if file.name in (MODEL_FILE, CONFIG_FILE):
        return True
    return file.suffix in (".bin", ".idx", ".json") and all(
        file.with_suffix(suffix).is_file() for suffix in (".bin", ".idx")
    )
