"""The diagnosis of a run: the model before its first task against the model now, on the run's own data."""

from __future__ import annotations

from pathlib import Path

from everclip.config import (
    BackboneConfig,
    MethodConfig,
    RunConfig,
    resolve_config,
    validated,
)
from everclip.diagnosis.diagnose import Target, diagnose, target_of_stream
from everclip.diagnosis.diagnosis_page import write_diagnosis
from everclip.errors import ConfigError
from everclip.evaluation.set_features import Tick
from everclip.learner.core import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.registry import read_yaml
from everclip.report.diagnosis_link import PAGE
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.training.run_folder import CONFIG
from everclip.training.run_place import local_run

NAMES = ("before", "after")


def start_learner(
    after: Learner, method: MethodConfig, backbone: BackboneConfig, directory: str | None
) -> Learner:
    """Return the learner that a run started from, on the device and in the precision of the learner after it.

    Args:
        after: the learner of the run.
        method, backbone: its settings.
        directory: where relative paths of the backbone begin.
    """
    built = build_method(method, load_backbone(backbone, after.seed, directory), after.seed)
    return Learner(built, after.training, after.seed, after.accelerator)


def before_and_after(
    folder: str, read_stream: bool
) -> tuple[tuple[Learner, Learner], tuple[str, str], list[Target]]:
    """Return the models before and after a run, their names, and the run's own sets.

    Args:
        folder: a run folder, or the URL of one.
        read_stream: whether to read the run's data.

    Raises:
        ConfigError: if it is no run folder.
    """
    path = local_run(folder, "diagnose")
    document = read_yaml(path / CONFIG) if (path / CONFIG).is_file() else {}
    if "scenario" not in document:
        raise ConfigError(
            f"diagnose: {folder} is not the folder of a run, so it does not say which model it started from; name an "
            "old and a new model."
        )
    after = Learner.load(path)
    directory = document.get("directory")
    before = start_learner(
        after,
        validated(MethodConfig, document["method"], f"{path / CONFIG}: method"),
        validated(BackboneConfig, document["backbone"], f"{path / CONFIG}: backbone"),
        directory,
    )
    targets = []
    if read_stream:
        scenario = load_scenario(resolve_config(path / CONFIG).scenario, directory=directory)
        targets = [target_of_stream(scenario.name, scenario)]
    return (before, after), (f"{path.name} before", f"{path.name} after"), targets


def write_run_diagnosis(
    folder: Path,
    scenario: ListScenario,
    after: Learner,
    config: RunConfig,
    tick: Tick = lambda done, total: None,
) -> Path:
    """Write `diagnosis.html` and `diagnosis.json` into a run folder.

    Args:
        folder: the run folder.
        scenario: what the run measures.
        after: the model now.
        config: names the model that the run started from.
        tick: called with (images done, all images).

    Returns:
        The path of the page.
    """
    before = start_learner(after, config.method, config.backbone, config.directory)
    compared = diagnose(
        before,
        after,
        NAMES,
        [target_of_stream(scenario.name, scenario)],
        config=config.evaluation,
        tick=lambda model, done, total: tick(done, total),
    )
    page, _ = write_diagnosis(compared, folder / PAGE)
    return page
