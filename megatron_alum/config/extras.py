"""Which libraries belong to which extra of the package, and the error that says so when one is missing.

Pre-training and conversion need only the package's own dependencies; pyproject.toml lists the extras. Call
`require("name")` before importing a library of an extra.
"""

from __future__ import annotations

import importlib.util
import sys

EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("nltk", "mwparserfromhell", "pyarrow", "zstandard", "charset_normalizer"),
    "finetune": ("accelerate", "scipy", "sklearn", "seqeval"),
    "report": ("matplotlib", "jinja2"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "dask": ("distributed",),
    "flash": ("flash_attn",),
}
"""Extra -> the modules that it installs, by import name."""


class MissingExtraError(ModuleNotFoundError):
    """A library of an extra is not installed; the message says how to install it."""


def require(*modules: str) -> None:
    """Do nothing if all `modules` are installed; each must belong to an extra.

    Raises: MissingExtraError, an ImportError, naming the first missing one and its extra.
    """
    for module in modules:
        if not _is_installed(module):
            extra = next(name for name, members in EXTRAS.items() if module in members)
            raise MissingExtraError(
                f"{module} must be installed for this, but is not. Run: pip install 'megatron_alum[{extra}]'.",
                name=module,
            )


def missing_extras() -> dict[str, list[str]]:
    """{extra: its modules that are not installed}, for extras that lack any."""
    missing = {extra: [name for name in names if not _is_installed(name)] for extra, names in EXTRAS.items()}
    return {extra: names for extra, names in missing.items() if names}


def _is_installed(module: str) -> bool:
    return sys.modules.get(module) is not None or importlib.util.find_spec(module) is not None
