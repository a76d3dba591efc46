"""Make short and distinct labels for the methods of a comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from everclip.config import GuardConfig, TrainingConfig
from everclip.report.comparable import flatten
from everclip.report.runs import Run
from everclip.urls import is_remote

LONG = 24
"""Longer names lose what they share with others."""

MOST_SETTINGS = 2
"""Most settings in a label. If more are needed, the label names the run's folder instead."""

LONGEST = 44
"""Most characters of a label with settings."""

_TRAINING = TrainingConfig(steps=0).model_dump(mode="json", exclude={"steps"})
_GUARD = GuardConfig().model_dump(mode="json")

_EDGE = re.compile(r"[-_./\\ ,=]")


def settings_of(run: Run) -> dict[str, Any]:
    """Return everything except the seed that decides the result of a run, as dotted keys.

    A setting that the file of an older version does not hold has its default, and a guard that is off is one, whatever
    its other settings are: a new setting does not make another method of an old run.
    """
    ignored = ("seed", "output", "directory", "checkpoint", "trackers", "report", "scenario", "evaluation")
    config = {key: value for key, value in run.config.items() if key not in ignored}
    training = config.get("training")
    if isinstance(training, Mapping):  # the machine of a run does not make it another method
        machine = ("workers", "threads", "device", "memory_check")
        config["training"] = {
            k: v for k, v in ({"steps": None} | _TRAINING | dict(training)).items() if k not in machine
        }
    guard = config.get("guard")
    if isinstance(guard, Mapping):
        config["guard"] = {**_GUARD, **guard} if guard.get("max_drop") else {"max_drop": None}
    described = {"method": run.results.method, "backbone": run.results.backbone}
    return flatten({"benchmark": run.results.benchmark, **(config or described), "name": run.name})


def labels_of(groups: Sequence[Sequence[Run]]) -> tuple[list[str], list[str]]:
    """Return a label per group, and notes on differences that the labels do not show.

    Args:
        groups: the runs of each method with the same settings.
    """
    runs = [group[0] for group in groups]
    settings = [settings_of(run) for run in runs]
    short = _cut_long([run.name for run in runs])
    labels, notes = list(short), []
    for name in dict.fromkeys(run.name for run in runs):
        variants = [index for index, run in enumerate(runs) if run.name == name]
        if len(variants) < 2:
            continue
        distinguished = _distinguished([settings[index] for index in variants])
        if distinguished is None or max(map(len, distinguished[0])) + len(short[variants[0]]) > LONGEST:
            distinguished = (
                _folders([runs[i] for i in variants]),
                _all_differences([settings[i] for i in variants]),
            )
        for index, text, differences in zip(variants, *distinguished, strict=True):
            labels[index] = f"{short[index]} ({text})"
            if differences:
                notes.append(f"{labels[index]} differs from other runs of {name} in: {_listed(differences)}.")
    return _unique(labels), notes


def _distinguished(settings: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """Return for each variant a text of the settings that distinguish it, and all differences if there are more.

    Return `None` if it takes too many settings to distinguish all variants.
    """
    keys = _differing(settings)
    chosen: list[str] = []
    while len(chosen) < len(keys) and len(set(_texts(settings, chosen))) < len(settings):
        chosen.append(
            max(
                (key for key in keys if key not in chosen),
                key=lambda key: (len(set(_texts(settings, [*chosen, key]))), -len(key)),
            )
        )
    if len(chosen) > MOST_SETTINGS:
        return None
    rest = keys if len(keys) > len(chosen) else []
    texts = [
        ", ".join(parts) for parts in zip(*(_setting_texts(settings, key) for key in chosen), strict=True)
    ]
    return texts, [[f"{_short(key)}={one[key]}" for key in rest if key in one] for one in settings]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({_text(one, key) for one in settings}) > 1]


def _texts(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    return [json.dumps([_text(one, key) for key in keys]) for one in settings]


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], default=str, sort_keys=True) if key in settings else "absent"


def _setting_texts(settings: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    values = _without_common([str(one[key]) if key in one else "" for one in settings])
    return [
        f"{_short(key)}={value}" if key in one else f"no {_short(key)}"
        for one, value in zip(settings, values, strict=True)
    ]


def _folders(runs: Sequence[Run]) -> list[str]:
    places = [run.place if is_remote(run.place) else str(run.folder.resolve()) for run in runs]
    return _without_common(places, at_least=0)


def _all_differences(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[f"{_short(key)}={one[key]}" for key in _differing(settings) if key in one] for one in settings]


def _listed(parts: Sequence[str], most: int = 6) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def _short(key: str) -> str:
    return key.removeprefix("method.settings.").removeprefix("training.")


def _cut_long(names: Sequence[str]) -> list[str]:
    """Shorten long names by the parts that they share."""
    long = list(dict.fromkeys(name for name in names if len(name) > LONG))
    cut = dict(zip(long, _without_common(long), strict=True))
    shortened = [cut.get(name, name) for name in names]
    return shortened if len(set(shortened)) == len(set(names)) else list(names)


def _without_common(texts: Sequence[str], at_least: int = LONG) -> list[str]:
    """Remove the beginning and the end that all texts share, at word boundaries; leave short texts whole."""
    if len(set(texts)) < 2 or max(map(len, texts)) <= at_least:
        return list(texts)
    start = _common_start(texts)
    start = start[: max((match.end() for match in _EDGE.finditer(start)), default=0)]
    rest = [text[len(start) :] for text in texts]
    end = _common_start([text[::-1] for text in rest])[::-1]
    first = _EDGE.search(end)
    end = end[first.start() :] if first else ""
    cut = [text.removesuffix(end) if end else text for text in rest]
    return cut if all(cut) and len(set(cut)) == len(set(texts)) else list(texts)


def _common_start(texts: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def _unique(labels: Sequence[str]) -> list[str]:
    """Number labels that are still equal."""
    unique: list[str] = []
    for label in labels:
        number, name = 1, label
        while name in unique:
            number += 1
            name = f"{label} #{number}"
        unique.append(name)
    return unique
