"""Where a run stands: everything that a checkpoint must know besides the learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LEARN, EVALUATE = "learn", "evaluate"


@dataclass
class Place:
    """Where a run stands. `task` counts tasks; `stage` is what comes next for it (row 0 is the stage before task 0).

    Everything here is JSON and goes into every checkpoint. `tasks` are the names of the run's tasks and `parts` what
    its numbers rest on; neither may change, but tasks may be added (`everclip.running.extending`).
    """

    task: int = -1
    stage: str = EVALUATE
    step: int = 0
    samples: int = 0
    log_size: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoints: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)
