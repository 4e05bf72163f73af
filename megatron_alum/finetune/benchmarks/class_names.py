"""Names of classes as people write them: in a model's configuration, in the table of tasks, in files of the user's own.

Case, blanks, dashes and underscores do not count, a task's synonyms do, and LABEL_0, LABEL_1 or 0, 1 name nothing but
their place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

PLACE = re.compile(r"(?:label_?|class_?)?(\d+)")
ALIASES = {
    **{"non_entailment": "not_entailment", "entails": "entailment", "contradicts": "contradiction"},
    **{"pos": "positive", "neg": "negative"},
}


def class_names(config: Any) -> list[str]:
    """The names of a configuration's classes, in the order of their ids."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def order_of(
    found: Sequence[str], wanted: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> list[int] | None:
    """The id in `found` of each class in `wanted`; None where the names cannot be matched one to one."""
    if len(found) != len(wanted):
        return None
    left, right = (_canonical(names, synonyms) for names in (found, wanted))
    if sorted(left) == sorted(right) and len(set(left)) == len(left):
        return [left.index(name) for name in right]
    if left == [str(index) for index in range(len(left))]:
        return list(range(len(found)))
    return None


def id_of(name: str, names: Sequence[str], synonyms: Mapping[str, str] | None = None) -> int | None:
    """The id of a class in `names` however it is written; None for no class of these, or more than one."""
    wanted, *known = _canonical([name, *names], synonyms)
    return known.index(wanted) if known.count(wanted) == 1 else None


def _canonical(names: Sequence[str], synonyms: Mapping[str, str] | None) -> list[str]:
    """One spelling for all that mean the same."""
    known = {**ALIASES, **{_spelling(name): _spelling(other) for name, other in (synonyms or {}).items()}}
    found = []
    for name in names:
        text = _spelling(name)
        text = known.get(text, text)
        text = known.get(text, text)  # an alias of a synonym
        place = PLACE.fullmatch(text)
        found.append(place[1] if place else text)
    return found


def _spelling(name: str) -> str:
    """Lower case, with one underscore in the place of blanks and punctuation; a leading minus is a sign."""
    text = name.strip().lower()
    sign = "-" if re.match(r"-\d", text) else ""
    return sign + re.sub(r"[\W_]+", "_", text).strip("_")
