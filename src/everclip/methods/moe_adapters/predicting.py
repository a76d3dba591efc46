"""Predicting with experts: which route a picture takes, and class texts under the route of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from everclip.contracts import Features
from everclip.methods.selectors.base import Selector
from everclip.models.backbone import Backbone
from everclip.models.modules.experts import experts_in
from everclip.models.modules.routing import Pass, passing


def encode_images(
    backbone: Backbone,
    pixels: torch.Tensor,
    routers: tuple[str, ...],
    route: int | None,
    selector: Selector[Any] | None,
) -> Features:
    """Encode pictures in one pass, whichever routes they take.

    Args:
        backbone: with experts.
        pixels: `(N, 3, S, S)`.
        routers: the routers that may be taken; route 1 + i is the i-th.
        route: of all of them, where it is known; `None` lets the selector decide.
        selector: decides; `None` = route 0.

    Returns:
        `embedding` `(N, D)`, `route` `(N,)`, and `experts` `(N, blocks * k)`, -1 for none, where there are experts.
    """
    told = Pass(routers, route or 0)
    if route is None and selector is not None and routers:
        if selector.early is None or not any(experts_in(backbone.clip, "image")):
            told.route = selector.decide(selector.features(backbone, pixels))
        else:  # from the tokens of this very pass
            told.decide = lambda tokens: selector.decide(selector.features_of(tokens))
    with passing({"image": told}):
        found = {"embedding": backbone.encode_image(pixels)}
    found["route"] = _each(told.route, len(pixels), pixels.device)
    choices = [e.settings.active for _, e in experts_in(backbone.clip, "image")]
    if choices:
        none = torch.full((len(pixels), sum(choices)), -1, device=pixels.device)
        found["experts"] = torch.cat(told.chosen, dim=1) if told.chosen else none
    return found


def _each(route: int | torch.Tensor, count: int, device: torch.device) -> torch.Tensor:
    return route if isinstance(route, torch.Tensor) else torch.full((count,), route, device=device)


@contextmanager
def texts_through(routers: tuple[str, ...], route: int, same: bool) -> Iterator[None]:
    """Let texts take a route; 0 is none.

    Args:
        routers: as in `encode_images`.
        route: of all texts inside the context.
        same: whether all texts begin with the same token and see none after it: then one gate per block serves all.
    """
    with passing({"text": Pass(routers, route, same=same)}):
        yield


def scores_by_route(images: Features, bank: Features, make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Return cosines `(N, C)` of each picture with the class texts of its own route.

    Args:
        images: `embedding` and `route`.
        bank: `embedding` `(C, D)` are the texts of route 0; those of others are added as `route 1`... once asked for.
        make: route -> texts `(C, D)`.
    """
    embedding, route = images["embedding"], images["route"].long()
    scores = embedding.new_empty(len(embedding), len(bank["embedding"]))
    for number in sorted(set(route.tolist())):
        name = f"route {number}" if number else "embedding"
        if name not in bank:
            bank[name] = make(number)
        rows = route == number
        scores[rows] = embedding[rows] @ bank[name].to(embedding).T
    return scores
