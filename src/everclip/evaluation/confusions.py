"""Count right answers per class, and how often one class was confused with another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from everclip.contracts import ClassEntry
from everclip.errors import DataError

MANY_CLASSES = 100
"""With more classes than this, only the most frequent confusions are kept."""

MOST_PAIRS = 200
"""The number of confusions that are then kept."""


class ClassCount(BaseModel):
    """One class of a set: its test images and how many were answered right; `tasks` is empty for a known class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    name: str
    tasks: list[int]
    n: int
    right: int


class Confusions(BaseModel):
    """The answers of one evaluation set at one row.

    Attributes:
        protocol: the protocol.
        answers: the number of classes to choose from.
        classes: the classes with test images, and those that were given as wrong answers.
        wrong: `(truth, answer, count)` as indices into `classes`, most frequent first.
        whole: whether `wrong` holds all wrong answers, or only the most frequent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    answers: int
    classes: list[ClassCount]
    wrong: list[tuple[int, int, int]]
    whole: bool = True


_FILE = TypeAdapter(dict[str, Confusions])


def count_confusions(
    protocol: str, predictions: torch.Tensor, labels: torch.Tensor, entries: Sequence[ClassEntry]
) -> Confusions:
    """Count right and wrong answers.

    Args:
        protocol: the protocol.
        predictions: `(N,)` class indices.
        labels: `(N,)` class indices.
        entries: the classes in the order of the indices.
    """
    classes = len(entries)
    n = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[predictions == labels], minlength=classes).tolist()
    missed = predictions != labels
    codes, counts = torch.unique(labels[missed] * classes + predictions[missed], return_counts=True)
    pairs = [(int(c) // classes, int(c) % classes, int(k)) for c, k in zip(codes, counts, strict=True)]
    pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    kept = pairs if classes <= MANY_CLASSES else pairs[:MOST_PAIRS]
    used = sorted({i for i in range(classes) if n[i]} | {index for pair in kept for index in pair[:2]})
    position = {index: i for i, index in enumerate(used)}
    return Confusions(
        protocol=protocol,
        answers=classes,
        classes=[
            ClassCount(
                key=entries[i].key, name=entries[i].name, tasks=list(entries[i].tasks), n=n[i], right=right[i]
            )
            for i in used
        ],
        wrong=[(position[truth], position[answer], count) for truth, answer, count in kept],
        whole=len(kept) == len(pairs),
    )


def confusions_file(folder: Path, row: int) -> Path:
    """Return the path of a row's answers in a run folder."""
    return folder / "rows" / f"{row:03d}.classes.json"


def to_json(confusions: dict[str, Confusions]) -> str:
    """Return the text of the file: evaluation set -> its answers."""
    return json.dumps({name: one.model_dump() for name, one in confusions.items()}, ensure_ascii=False) + "\n"


def read_confusions(folder: Path, row: int) -> dict[str, Confusions]:
    """Read the answers of a row; empty if the run wrote none.

    Raises:
        DataError: if the file is damaged.
    """
    path = confusions_file(folder, row)
    if not path.is_file():
        return {}
    try:
        return _FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path}: the answers per class cannot be read ({error}). Remove the file: the report then shows no single "
            "classes; all other results remain."
        ) from error


def merge_confusions(parts: Sequence[Confusions]) -> Confusions:
    """Merge the confusions of several sets that were scored in the same label space."""
    counts: dict[str, ClassCount] = {}
    wrong: dict[tuple[str, str], int] = {}
    for part in parts:
        for one in part.classes:
            old = counts.get(one.key)
            added = {} if old is None else {"n": old.n + one.n, "right": old.right + one.right}
            counts[one.key] = one.model_copy(update=added)
        for truth, answer, count in part.wrong:
            pair = (part.classes[truth].key, part.classes[answer].key)
            wrong[pair] = wrong.get(pair, 0) + count
    position = {key: i for i, key in enumerate(counts)}
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], position[item[0][0]], position[item[0][1]]))
    return Confusions(
        protocol=parts[0].protocol,
        answers=max(part.answers for part in parts),
        classes=list(counts.values()),
        wrong=[(position[truth], position[answer], count) for (truth, answer), count in ordered],
        whole=all(part.whole for part in parts),
    )
