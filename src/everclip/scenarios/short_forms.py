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
    # Each set among its own classes; nobody is told which set a picture is of.
    "mtil": {**_OWN, "merge_classes": True},
    # As mtil, and the method is told the task.
    "odcl-til": {
        "protocols": [{"name": "own", "space": "own", "known_task": True}],
        "headline": {"protocol": "own", "metric": "auto"},
        "merge_classes": True,
        "merge_templates": "joined",
    },
    # What was learned among the union of its classes, equal names as one; the rest among its own.
    "odcl-cil": {
        "protocols": [{"name": "seen", "space": "seen", "unseen": "own"}],
        "headline": {"protocol": "seen", "metric": "auto"},
        "merge_classes": True,
        "merge_templates": "joined",
    },
    # Everything among all names of all sets at every stage; equal names of two sets stay two.
    "x-tail": {
        "protocols": [{"name": "all", "space": "all", "same_texts": "apart"}],
        "headline": {"protocol": "all", "metric": "auto"},
        "merge_classes": False,
    },
    # What was learned among the classes learned so far; the rest is not scored.
    "cil": {
        "protocols": [{"name": "seen", "space": "seen", "unseen": "skip"}],
        "headline": {"protocol": "seen", "metric": "accuracy"},
    },
}
"""What a short form stands for; a key that the document gives itself wins."""


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Return the retention suites by name."""
    folder = resources.files("everclip.scenarios.suites")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {str(document["name"]): document for document in (read_yaml(file) for file in files)}


def spelled_out(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scenario document without short forms.

    Raises:
        ValueError: for a protocol or a suite that does not exist.
    """
    whole = dict(document)
    form = whole.get("protocol")
    if form is not None:
        if form not in PROTOCOLS:
            raise ValueError(f"protocol: {form!r} is not known.{did_you_mean(str(form), PROTOCOLS)}")
        whole = {**PROTOCOLS[form], **whole}
    given = whole.get("retention")
    if isinstance(given, str | Mapping):
        given = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        whole["retention"] = [part for one in given for part in _retained(one)]
    return whole


def _retained(given: Any) -> list[Any]:
    """Return the sets that an entry of `retention` stands for: itself, or those of a suite."""
    if isinstance(given, str):
        given = {"suite": given}
    if not isinstance(given, Mapping) or "suite" not in given:
        return [given]
    name = str(given["suite"])
    if name not in suites():
        raise ValueError(f"retention: no suite is called {name!r}.{did_you_mean(name, suites())}")
    changes = {key: value for key, value in given.items() if key != "suite"}
    return [{**part, **changes} for part in suites()[name]["sets"]]
