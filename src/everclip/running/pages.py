"""The pages of a run: its report, and the models before and after it side by side. The result is whole without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from everclip.config import RunConfig
from everclip.errors import EverclipError, Interrupted
from everclip.files import optional_write
from everclip.learner.core import Learner
from everclip.report.diagnosis_link import PAGE
from everclip.scenarios.base import ListScenario
from everclip.training.progress import Progress

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
    scenario: ListScenario,
    learner: Learner,
    config: RunConfig,
    progress: Progress,
    stop: Callable[[], None],
) -> None:
    """Compare the model before a run with the model now; say why where that is not possible.

    Args:
        scenario: what the run measures.
        learner: the model now.
        config: of the run.
        progress: shows the progress.
        stop: called after each batch of images; may raise to stop.
    """
    from everclip.diagnosis.of_run import write_run_diagnosis

    if config.training.shard:
        progress.say(f"sharded towers are not compared here; `everclip diagnose {config.output}` does it")
        return

    def tick(done: int, total: int) -> None:
        progress.update(done, "images", total)
        stop()

    later = f"`everclip diagnose {config.output}` compares the models later"
    progress.start("diagnose (before and after)", 0)
    try:
        with optional_write(config.folder / PAGE, later):
            write_run_diagnosis(config.folder, scenario, learner, config, tick)
    except Interrupted:
        raise
    except (EverclipError, torch.OutOfMemoryError) as error:
        progress.say(f"the models before and after are not compared: {error}\n{later}")
    progress.finish()


def write_report_page(config: RunConfig) -> None:
    """Write the report of a run."""
    from everclip.report import write_report

    page = config.folder / REPORT
    with optional_write(page, f"`everclip report {config.output}` writes the report later"):
        write_report(page.parent)
