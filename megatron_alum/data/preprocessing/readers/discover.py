"""From the words after --input to a list of files: files, folders (searched below) and globs, sorted, none twice.

Hidden files, and files whose suffix says that they are no text (checksums, indexes of multistream dumps), are left
out of folders, and counted by reason. What preprocessing itself writes is left out of folders and globs: the output
may lie beside the input, and a later run, a resumed one and the other shards must see the files that the first one
saw. A file named by the user is taken as it is.
"""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_alum.data.shards.names import INDEX_CACHE, LOCK_FILE, PARTIAL_SUFFIX, PUNKT_SUFFIX
from megatron_alum.data.tokenizers.vocabulary import CONFIG_FILE, MODEL_FILE

_NO_TEXT = {".md5", ".sha1", ".sha256", ".idx", ".bin", ".log", ".html", ".yaml", ".yml", ".md", ".py", ".png", ".pdf"}
_MANIFEST_BYTES = 4 << 20
_OUTPUT_FOLDERS = {PARTIAL_SUFFIX: LOCK_FILE, PUNKT_SUFFIX: "ortho_context.tab"}
"""How the folders of a corpus end, and what each of them holds: the name alone could be a user's."""


def find_inputs(inputs: Sequence[str]) -> tuple[list[Path], dict[Path, str]]:
    """The files that `inputs` name, in order of the arguments and sorted within one, and those in their folders that
    are left out, with the reason.

    Raises ValueError when a word names nothing.
    """
    found: dict[Path, None] = {}
    left_out: dict[Path, str] = {}
    for word in inputs:
        for path in _files_of(word, left_out):
            found.setdefault(path)
    files = list(found)
    if not files:
        raise ValueError("`--input` must name at least one file, but names none. Give files, folders or globs.")
    if all(path.stat().st_size == 0 for path in files):
        raise ValueError(f"`--input` must hold text, but is empty: {', '.join(map(str, files[:3]))} has 0 bytes.")
    left_out |= {path: "empty" for path in files if path.stat().st_size == 0}
    return files, {path: reason for path, reason in left_out.items() if reason == "empty" or path not in found}


def _files_of(word: str, left_out: dict[Path, str]) -> list[Path]:
    path = Path(word)
    if path.is_file():
        return [path]
    if path.is_dir():
        below = _without_outputs(file for file in sorted(path.rglob("*")) if file.is_file())
        reasons = {file: reason for file in below if (reason := _why_no_text(file, path))}
        left_out |= reasons
        files = [file for file in below if file not in reasons]
        if not files:
            raise ValueError(f"`--input` must hold files, but the folder {word} holds none that can be text.")
        return files
    matches = sorted(Path(match) for match in glob.glob(word, recursive=True))
    files = _without_outputs(match for match in matches if match.is_file())
    if not files:
        raise ValueError(f"`--input` must be an existing file, folder or glob, but {word} matches nothing.")
    return files


def _why_no_text(file: Path, folder: Path) -> str | None:
    """Why `file` below `folder` is not read, or None."""
    if any(part.startswith((".", "_")) for part in file.relative_to(folder).parts):
        return "hidden"
    if file.suffix.lower() in _NO_TEXT:
        return f"named {file.suffix.lower()}"
    return "index of a multistream dump" if "multistream-index" in file.name else None


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
    if file.suffix not in (".bin", ".idx", ".json"):
        return False
    is_corpus = all(file.with_suffix(suffix).is_file() for suffix in (".bin", ".idx"))
    return is_corpus and (file.suffix != ".json" or _is_manifest(file))


def _is_manifest(file: Path) -> bool:
    """Whether a .json beside a .bin and an .idx is ours: it may be the text that another program made those from."""
    with file.open("rb") as stream:
        return b'"manifest_version":' in stream.read(_MANIFEST_BYTES)
