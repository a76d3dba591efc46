"""The kinds of modules that can be grown: one entry each, so that a new kind is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from everclip.models.clip import Clip
from everclip.models.modules import adapters, experts, lora, prompts, task_prompts
from everclip.models.modules.base import Context
from everclip.models.modules.towers import Tower


@dataclass(frozen=True)
class Kind:
    """How one kind of module comes into a tower and leaves the model.

    Attributes:
        module: what there is one of per place it stands at.
        insert: grows it in one tower, for settings of its own type; the model's other parameters keep their values.
        remove: takes everything of this kind out of a model, which is then what it was before.
        merge: puts its effect into the model's own weights; `None` where weights cannot hold it.
        cost: says what it costs for each image beyond the model itself; empty for nothing.
        identity: whether the model computes what it did until something is learned.
    """

    module: type[nn.Module]
    insert: Callable[[Tower, Any, Context], None]
    remove: Callable[[Clip], object]
    merge: Callable[[Clip], object] | None = None
    cost: Callable[[Clip], str] = lambda clip: ""
    identity: bool = True


KINDS: dict[str, Kind] = {
    "lora": Kind(lora.LowRank, lora.insert, lora.remove, lora.merge),
    "adapter": Kind(adapters.Adapter, adapters.insert, adapters.remove, cost=adapters.cost),
    "prompt": Kind(prompts.Prompt, prompts.insert, prompts.remove, cost=prompts.cost, identity=False),
    "experts": Kind(experts.Experts, experts.insert, experts.remove, cost=experts.cost),
    "task-prompts": Kind(
        task_prompts.TaskPrompts, task_prompts.insert, task_prompts.remove, cost=task_prompts.cost
    ),
}
"""name in the slot `trainable` -> kind; `settings.MODULES` holds the settings of each."""
