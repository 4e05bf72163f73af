"""The documents of the project in the form that the tests of this folder need: commands, flags in prose, links."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))  # program_options.py knows the programs

DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "csrc/README.md")),
        *(ROOT / "examples").glob("*.md"),
        *DOCS.rglob("*.md"),
    ]
)


def name_of(path: Path) -> str:
    """Path below the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language, indented ones included."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def commands(text: str) -> list[str]:
    """Lines of the bash blocks, continuations joined, comments left out."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^ *(```|:::).*?^ *\1", "", text, flags=re.DOTALL | re.MULTILINE)
