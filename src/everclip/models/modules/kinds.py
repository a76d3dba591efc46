"""The kinds of modules that can be grown, one entry each: a new kind is a file and a line here."""

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
    """The functions of one kind of module.

    Attributes:
        module: the class; one instance per place in a model.
        insert: grows it in one tower, with settings of its own type; the model's other parameters keep their values.
        remove: removes all modules of this kind; the model is then as it was before them.
        merge: merges it into the model's own weights; `None` if that is impossible.
        cost: describes the cost per image beyond the model itself; empty without cost.
        identity: whether the model's outputs stay the same until something is learned.
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
