"""Predict with experts: decide the route of each image, and compare it with the class texts of its route."""

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
    """Encode images in one pass for all routes.

    Args:
        backbone: with experts.
        pixels: `(N, 3, S, S)`.
        routers: the available routers; route 1 + i uses the i-th.
        route: the route of all images if it is known; `None`: the selector decides.
        selector: decides routes; `None` = route 0.

    Returns:
        `embedding` `(N, D)`, `route` `(N,)`, and, if there are experts, `experts` `(N, blocks * k)`, -1 for none.
    """
    routing = Pass(routers, route or 0)
    if route is None and selector is not None and routers:
        if selector.early is None or not any(experts_in(backbone.clip, "image")):
            routing.route = selector.decide(selector.features(backbone, pixels))
        else:  # from the tokens of the same pass
            routing.decide = lambda tokens: selector.decide(selector.features_of(tokens))
    with passing({"image": routing}):
        features = {"embedding": backbone.encode_image(pixels)}
    features["route"] = _per_image(routing.route, len(pixels), pixels.device)
    choices = [e.settings.active for _, e in experts_in(backbone.clip, "image")]
    if choices:
        none = torch.full((len(pixels), sum(choices)), -1, device=pixels.device)
        features["experts"] = torch.cat(routing.chosen, dim=1) if routing.chosen else none
    return features


def _per_image(route: int | torch.Tensor, count: int, device: torch.device) -> torch.Tensor:
    return route if isinstance(route, torch.Tensor) else torch.full((count,), route, device=device)


@contextmanager
def texts_through(routers: tuple[str, ...], route: int, same: bool) -> Iterator[None]:
    """Encode texts on a route; 0 is the model without experts.

    Args:
        routers: as in `encode_images`.
        route: of all texts inside the context.
        same: whether all texts begin with the same token in a causal tower, so that one gate per block serves all.
    """
    with passing({"text": Pass(routers, route, same=same)}):
        yield


def scores_by_route(images: Features, bank: Features, make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Return cosines `(N, C)` of each image with the class texts of its route.

    Args:
        images: `embedding` and `route`.
        bank: `embedding` `(C, D)` holds the texts of route 0; those of other routes are added on first use.
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
