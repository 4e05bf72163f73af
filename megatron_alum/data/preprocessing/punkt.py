"""Punkt sentence splitting (Kiss and Strunk 2006) through nltk, from a local folder or trained on the corpus itself.

The folder is nltk's `punkt_tab` layout (abbrev_types.txt, collocations.tab, sent_starters.txt, ortho_context.tab):
the one nltk 3.9 and later read, since they refuse the old pickles. Nothing is downloaded. `train_punkt` writes the
same layout.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_alum.config.extras import require
from megatron_alum.data.preprocessing.languages import primary

_FILES = ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab")
_FOLDERS = dict(
    pair.split("=")
    for pair in (
        "cs=czech da=danish nl=dutch en=english et=estonian fi=finnish fr=french de=german el=greek it=italian "
        "ml=malayalam no=norwegian nb=norwegian pl=polish pt=portuguese ru=russian sl=slovene es=spanish sv=swedish "
        "tr=turkish"
    ).split()
)
"""nltk's folder names by language code."""


class PunktSplitter:
    """`--sentence-splitter punkt`, with the parameters in `folder`."""

    def __init__(self, folder: str | Path) -> None:
        self._tokenizer = _load(find_punkt(folder))

    def split(self, line: str) -> list[str]:
        """The sentences of `line` in order, without white space around them, none empty."""
        return [line[start:stop] for start, stop in self.spans(line)]

    def spans(self, line: str) -> list[tuple[int, int]]:
        """Character offsets [start, stop) of the sentences of `line`, ascending and disjoint."""
        return list(self._tokenizer.span_tokenize(line)) if line.strip() else []


def find_punkt(folder: str | Path, language: str = "en") -> Path:
    """The folder that holds the parameter files: `folder` itself or, for `language` (a code), the usual places below
    an nltk_data folder."""
    base = Path(folder)
    name = _FOLDERS.get(primary(language), language)
    above = [base, base / "punkt_tab", base / "tokenizers" / "punkt_tab"]
    for place in [base, *(parent / name for parent in above)]:
        if all((place / file).is_file() for file in _FILES):
            return place
    others = sorted({path.parent.name for parent in above for path in parent.glob(f"*/{_FILES[0]}")})
    if others:
        raise ValueError(
            f"`--punkt-dir` must hold the Punkt parameters of --language {language}, but {base} has those of "
            f"{', '.join(others)} alone. Add them, or use --sentence-splitter rule."
        )
    raise ValueError(
        f"`--punkt-dir` must hold the Punkt parameters ({', '.join(_FILES)}), but {base} does not. "
        "Give nltk's punkt_tab folder, or train one with --train-punkt, or use --sentence-splitter rule."
    )


def _load(folder: Path) -> Any:
    """nltk's tokenizer with the parameters in `folder`; its own loader takes no plain path since 3.10."""
    require("nltk")
    from nltk.tabdata import PunktDecoder
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    decoder, params = PunktDecoder(), PunktParameters()
    with (folder / "collocations.tab").open(encoding="utf-8") as stream:
        params.collocations = set(decoder.tab2tups(stream))
    with (folder / "sent_starters.txt").open(encoding="utf-8") as stream:
        params.sent_starters = decoder.txt2set(stream)
    with (folder / "abbrev_types.txt").open(encoding="utf-8") as stream:
        params.abbrev_types = decoder.txt2set(stream)
    with (folder / "ortho_context.tab").open(encoding="utf-8") as stream:
        params.ortho_context = decoder.tab2intdict(stream)
    tokenizer = PunktSentenceTokenizer()
    tokenizer._params = params
    return tokenizer


def _save(params: Any, folder: Path) -> None:
    """The layout `_load` reads, sorted: equal parameters give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "collocations.tab": sorted("\t".join(pair) for pair in params.collocations),
        "sent_starters.txt": sorted(params.sent_starters),
        "abbrev_types.txt": sorted(params.abbrev_types),
        "ortho_context.tab": sorted(f"{word}\t{flags}" for word, flags in params.ortho_context.items()),
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8", newline="\n")


def train_punkt(documents: Iterable[str], folder: Path) -> int:
    """Learn Punkt parameters from `documents`, one text each, into `folder`; returns the number of abbreviations found.

    Raises ValueError when the text is too little to learn anything. Memory grows with the vocabulary of the text, not
    with its length; a few hundred MB of text are plenty.
    """
    require("nltk")
    from nltk.tokenize.punkt import PunktTrainer

    trainer = PunktTrainer()
    count = 0
    for text in documents:
        trainer.train(text, finalize=False)
        count += 1
        if count % 1000 == 0:
            trainer.freq_threshold()
    if count == 0:
        raise ValueError("`--input` must hold text to train Punkt on, but holds no document.")
    trainer.finalize_training()
    params = trainer.get_params()
    _save(params, folder)
    return len(params.abbrev_types)
