"""The pages of a run: its report, and the models before and after it side by side. The result is whole without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from everclip.config import RunConfig
from everclip.errors import EverclipError, Interrupted
from everclip.evaluation.set_features import Tick
from everclip.files import optional_write
from everclip.learner.core import Learner
from everclip.report.diagnosis_link import PAGE
from everclip.scenarios.base import ListScenario

REPORT = "report.html"


def remove_outdated(folder: Path, report: bool) -> None:
    """Remove pages about an earlier end of a run: killed before the new ones are written, it would leave them.

    Args:
        folder: the run folder.
        report: whether the run writes its report, so that it will be there again.
    """
    page = folder / PAGE
    for path in (page, page.with_suffix(".json"), *([folder / REPORT] if report else [])):
        with optional_write(path, "it shows an earlier end of the run"):
            path.unlink(missing_ok=True)


def write_before_and_after(
    scenario: ListScenario, learner: Learner, config: RunConfig, tick: Tick, say: Callable[[str], None]
) -> None:
    """Compare the model before a run with the model now; say why where that is not possible.

    Args:
        scenario: what the run measures.
        learner: the model now.
        config: of the run.
        tick: called with (images done, all images); may raise to stop.
        say: called with a line for people.
    """
    from everclip.diagnosis.of_run import write_run_diagnosis

    folder = config.folder
    later = f"`everclip diagnose {config.output}` compares the models later"
    try:
        with optional_write(folder / PAGE, later):
            write_run_diagnosis(folder, scenario, learner, config, tick)
    except Interrupted:
        raise
    except (EverclipError, torch.OutOfMemoryError) as error:
        say(f"the models before and after are not compared: {error}\n{later}")


def write_report_page(folder: Path) -> None:
    """Write the report of a run."""
    from everclip.report import write_report

    with optional_write(folder / REPORT, f"`everclip report {folder}` writes the report later"):
        write_report(folder)
