"""Models with experts that have something to say, and the way through them."""

from __future__ import annotations

from typing import Any

import module_models as models
import torch

from everclip.models.modules import insert
from everclip.models.modules.experts import experts_in
from everclip.models.modules.routing import Pass, passing
from everclip.models.modules.settings import ExpertsSettings

SMALL = ExpertsSettings(count=5, active=2, width=4, dropout=0.0)


def model(name: str = "vit", batch_first: bool = True, routers: tuple[str, ...] = ("0",), **more: Any) -> Any:
    clip = models.build(name, batch_first)
    insert(clip, "experts", SMALL.model_copy(update=more))
    for _, experts in experts_in(clip):
        for router in routers:
            experts.add_router(router)
    return clip


def shaken(*given: Any, **more: Any) -> Any:
    clip = model(*given, **more)
    models.shake(clip, tuple(n for n, _ in clip.named_parameters() if ".experts." in n))
    return clip


def through(clip: Any, route: Any = 1, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    names = tuple(next(experts_in(clip))[1].routers)
    with passing({"image": Pass(names, route, **more), "text": Pass(names, route, **more)}):
        return models.embeddings(clip)
