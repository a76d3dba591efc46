"""What methods are called in a comparison: short, and different from each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from everclip.report.mixing import flatten
from everclip.report.runs import Run

LONG = 24
"""Characters from which on a name is cut where others share a part of it."""

MOST_SETTINGS = 2
"""Settings that a label may name; where more are needed, the run's folder says it shorter."""

LONGEST = 44

_EDGE = re.compile(r"[-_./\\ ,=]")


def settings_of(run: Run) -> dict[str, Any]:
    """Return everything that decides a run's result but its seed, as dotted keys."""
    ignored = ("seed", "output", "checkpoint", "trackers", "report", "scenario", "evaluation")
    config = {key: value for key, value in run.config.items() if key not in ignored}
    training = config.get("training")
    if isinstance(training, Mapping):  # where a run was carried out does not make it another method
        config["training"] = {k: v for k, v in training.items() if k not in ("workers", "threads", "device")}
    described = {"method": run.results.method, "backbone": run.results.backbone}
    return flatten({"benchmark": run.results.benchmark, **(config or described), "name": run.name})


def labels_of(teams: Sequence[Sequence[Run]]) -> tuple[list[str], list[str]]:
    """Return a label per team, and notes on what the labels leave out.

    Args:
        teams: the runs of each method with the same settings.
    """
    runs = [team[0] for team in teams]
    settings = [settings_of(run) for run in runs]
    short = _cut_long([run.name for run in runs])
    labels, notes = list(short), []
    for name in dict.fromkeys(run.name for run in runs):
        places = [place for place, run in enumerate(runs) if run.name == name]
        if len(places) < 2:
            continue
        found = _distinguished([settings[place] for place in places])
        if found is None or max(map(len, found[0])) + len(short[places[0]]) > LONGEST:
            found = _folders([runs[place] for place in places]), _all_differences(settings, places)
        told, left = found
        for place, text, more in zip(places, told, left, strict=True):
            labels[place] = f"{short[place]} ({text})"
            notes += (
                [f"{labels[place]} differs from the others of its name in: {_listed(more)}."] if more else []
            )
    return _unique(labels), notes


def _distinguished(settings: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """Return for each variant the few settings that distinguish it, and all differing settings if there are more.

    `None` where a few settings do not distinguish all variants.
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
    told = [", ".join(parts) for parts in zip(*(_spoken(settings, key) for key in chosen), strict=True)]
    return told, [[f"{_short(key)}={one[key]}" for key in rest if key in one] for one in settings]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({_text(one, key) for one in settings}) > 1]


def _texts(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    return [json.dumps([_text(one, key) for key in keys]) for one in settings]


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], default=str, sort_keys=True) if key in settings else "absent"


def _spoken(settings: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    values = _without_common([str(one[key]) if key in one else "" for one in settings])
    return [
        f"{_short(key)}={value}" if key in one else f"no {_short(key)}"
        for one, value in zip(settings, values, strict=True)
    ]


def _folders(runs: Sequence[Run]) -> list[str]:
    return _without_common([str(run.folder.resolve()) for run in runs], at_least=0)


def _all_differences(settings: Sequence[Mapping[str, Any]], places: Sequence[int]) -> list[list[str]]:
    mine = [settings[place] for place in places]
    return [[f"{_short(key)}={one[key]}" for key in _differing(mine) if key in one] for one in mine]


def _listed(parts: Sequence[str], most: int = 6) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def _short(key: str) -> str:
    return key.removeprefix("method.settings.").removeprefix("training.")


def _cut_long(names: Sequence[str]) -> list[str]:
    """Cut what all long names share."""
    long = list(dict.fromkeys(name for name in names if len(name) > LONG))
    cut = dict(zip(long, _without_common(long), strict=True))
    found = [cut.get(name, name) for name in names]
    return found if len(set(found)) == len(set(names)) else list(names)


def _without_common(texts: Sequence[str], at_least: int = LONG) -> list[str]:
    """Cut the beginning and the end that all texts share, at the edges of words; short ones stay whole."""
    if len(set(texts)) < 2 or max(map(len, texts)) <= at_least:
        return list(texts)
    start = _common_start(texts)
    start = start[: max((match.end() for match in _EDGE.finditer(start)), default=0)]
    rest = [text[len(start) :] for text in texts]
    end = _common_start([text[::-1] for text in rest])[::-1]
    first = _EDGE.search(end)
    end = end[first.start() :] if first else ""
    found = [text.removesuffix(end) if end else text for text in rest]
    return found if all(found) and len(set(found)) == len(set(texts)) else list(texts)


def _common_start(texts: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def _unique(labels: Sequence[str]) -> list[str]:
    """Number what is still called alike."""
    found: list[str] = []
    for label in labels:
        number, name = 1, label
        while name in found:
            number += 1
            name = f"{label} #{number}"
        found.append(name)
    return found
