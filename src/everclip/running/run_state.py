"""The state of a run: everything that a checkpoint stores besides the learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from everclip.training.run_folder import differences

EVALUATE = "evaluate"


@dataclass
class RunState:
    """The state of a run, JSON, stored in every checkpoint under the key `place`.

    `task` is the number of the task and `stage` what comes next for it. Task -1 is only evaluated: row 0, before
    training. `tasks` are the names of the run's tasks, `parts` the size and hash of its data; neither may change, but
    tasks may be added (`everclip.running.extending`). `start` holds the fingerprints of the start model.
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

    def adopt(self, environment: dict[str, Any]) -> str | None:
        """Store the environment of this process; return what the run has to say if it differs from that before."""
        before, self.environment = self.environment, environment
        # What a checkpoint of an earlier version does not know has not changed.
        known = {key: value for key, value in environment.items() if key in before}
        changes = differences(before, known)
        return f"{'; '.join(changes)}: bit-identity is not promised" if changes else None
