"""The progress bar of preprocessing: input bytes done, documents, MB of text per second, time left."""

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A tqdm bar over input bytes as stored; silent when `show` is false."""

    def __init__(self, total_bytes: int, *, show: bool, what: str = "preprocess") -> None:
        self._bar = tqdm(
            total=total_bytes,
            desc=what,
            unit="B",
            unit_scale=True,
            disable=not show,
            file=sys.stderr,
            mininterval=0.5,
        )
        self._begun = time.monotonic()
        self._documents = 0
        self._text_bytes = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        if kind is None and self._bar.total is not None:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()

    def step(self, num_bytes: int) -> None:
        """Advance by `num_bytes`, for input without documents to count."""
        self._bar.update(num_bytes)

    def advance(self, position_bytes: int, *, documents: int, text_bytes: int) -> None:
        """The input is done up to `position_bytes`; `documents` and `text_bytes` came since the last call."""
        self._documents += documents
        self._text_bytes += text_bytes
        seconds = max(1e-9, time.monotonic() - self._begun)
        rate = self._text_bytes / 1e6 / seconds
        self._bar.set_postfix_str(f"{self._documents:,} documents, {rate:.1f} MB/s of text", refresh=False)
        self._bar.update(max(0, position_bytes - self._bar.n))
