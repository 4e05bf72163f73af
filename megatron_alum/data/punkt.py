"""Punkt sentence splitting (Kiss and Strunk 2006) through nltk, from a local folder or trained on the corpus itself.

The folder is nltk's `punkt_tab` layout (abbrev_types.txt, collocations.tab, sent_starters.txt, ortho_context.tab):
the one nltk 3.9 and later read, since they refuse the old pickles. Nothing is downloaded. `train_punkt` writes the
same layout.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FILES = ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab")


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


def find_punkt(folder: str | Path, language: str = "english") -> Path:
    """The folder that holds the parameter files: `folder` itself or the usual places below an nltk_data folder."""
    base = Path(folder)
    places = [base, base / language, base / "punkt_tab" / language, base / "tokenizers" / "punkt_tab" / language]
    for place in places:
        if all((place / name).is_file() for name in _FILES):
            return place
    raise ValueError(
        f"`--punkt-dir` must hold the Punkt parameters ({', '.join(_FILES)}), but {base} does not. "
        "Give nltk's punkt_tab folder, or train one with --train-punkt, or use --sentence-splitter rule."
    )


def _load(folder: Path) -> Any:
    from nltk.tokenize.punkt import PunktSentenceTokenizer, load_punkt_params

    tokenizer = PunktSentenceTokenizer()
    tokenizer._params = load_punkt_params(str(folder))
    return tokenizer


def train_punkt(documents: Iterable[str], folder: Path) -> int:
    """Learn Punkt parameters from `documents`, one text each, into `folder`; returns the number of abbreviations found.

    Raises ValueError when the text is too little to learn anything. Memory grows with the vocabulary of the text, not
    with its length; a few hundred MB of text are plenty.
    """
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

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
    folder.mkdir(parents=True, exist_ok=True)
    save_punkt_params(params, dir=str(folder))
    return len(params.abbrev_types)
