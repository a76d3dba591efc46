"""The link from a report to the diagnosis of its run: the model before the first task against the model now."""

from __future__ import annotations

import json
from pathlib import Path

from everclip.report.runs import Run

PAGE = "diagnosis.html"


def diagnosis_link(folder: Path, run: Run) -> dict[str, str] | None:
    """Return the page and its first sentence; `None` if the run is not finished or has none."""
    numbers = folder / PAGE.replace(".html", ".json")
    if run.results.status != "finished" or not (folder / PAGE).is_file():
        return None
    try:
        sentence = json.loads(numbers.read_text(encoding="utf-8"))["verdict"]["sentence"]
    except (OSError, ValueError, KeyError, TypeError):
        sentence = ""  # the page itself says it
    return {"page": PAGE, "sentence": str(sentence)}
