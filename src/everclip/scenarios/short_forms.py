"""Short forms of a scenario document: `protocol: odcl-cil`, and suites of retention sets by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from everclip.errors import did_you_mean
from everclip.registry import read_yaml

_OWN = {"protocols": [{"name": "own", "space": "own"}], "headline": {"protocol": "own", "metric": "auto"}}

PROTOCOLS: dict[str, dict[str, Any]] = {
    # Each set among its own classes; the method is not told which set an image is from.
    "mtil": {**_OWN, "merge_classes": True},
    # As mtil, and the method is told the task.
    "odcl-til": {
        "protocols": [{"name": "own", "space": "own", "known_task": True}],
        "headline": {"protocol": "own", "metric": "auto"},
        "merge_classes": True,
        "merge_templates": "joined",
    },
    # Learned sets among the union of their classes, equal names merged; other sets among their own classes.
    "odcl-cil": {
        "protocols": [{"name": "seen", "space": "seen", "unseen": "own"}],
        "headline": {"protocol": "seen", "metric": "auto"},
        "merge_classes": True,
        "merge_templates": "joined",
    },
    # All sets among all class names of all sets at every row; equal names of two sets stay two classes.
    "x-tail": {
        "protocols": [{"name": "all", "space": "all", "same_texts": "apart"}],
        "headline": {"protocol": "all", "metric": "auto"},
        "merge_classes": False,
    },
    # Each language among its own captions, once it is learned; the default of kind `languages`.
    "cll": {
        "protocols": [{"name": "learned", "space": "learned"}],
        "headline": {"protocol": "learned", "metric": "mean_r1"},
    },
    # Learned sets among the classes learned so far; other sets are not scored.
    "cil": {
        "protocols": [{"name": "seen", "space": "seen", "unseen": "skip"}],
        "headline": {"protocol": "seen", "metric": "accuracy"},
    },
}
"""The settings that each short form stands for; keys of the document take precedence."""


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Return the retention suites by name."""
    folder = resources.files("everclip.scenarios.suites")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {str(document["name"]): document for document in (read_yaml(file) for file in files)}


def expand_short_forms(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scenario document with its short forms written out.

    Raises:
        ValueError: for an unknown protocol or suite.
    """
    whole = dict(document)
    form = whole.get("protocol")
    if form is None and whole.get("kind") == "languages" and "protocols" not in whole:
        whole = {**PROTOCOLS["cll"], **whole}
    if form is not None:
        if form not in PROTOCOLS:
            raise ValueError(f"protocol: {form!r} is not known.{did_you_mean(str(form), PROTOCOLS)}")
        whole = {**PROTOCOLS[form], **whole}
    given = whole.get("retention")
    if isinstance(given, str | Mapping):
        given = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        whole["retention"] = [part for one in given for part in _sets_of(one)]
    return whole


def _sets_of(given: Any) -> list[Any]:
    """Return the sets that an entry of `retention` stands for: itself, or those of a suite."""
    if isinstance(given, str):
        given = {"suite": given}
    if not isinstance(given, Mapping) or "suite" not in given:
        return [given]
    name = str(given["suite"])
    if name not in suites():
        raise ValueError(f"retention: {name!r} is not a suite.{did_you_mean(name, suites())}")
    changes = {key: value for key, value in given.items() if key != "suite"}
    return [{**part, **changes} for part in suites()[name]["sets"]]
