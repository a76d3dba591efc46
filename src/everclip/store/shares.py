"""How far the weights go from the parent's to the learned ones: an interpolation, chosen on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from everclip.config import EvaluationConfig
from everclip.contracts import EvalSet
from everclip.diagnosis.seen import see
from everclip.learner.core import Learner
from everclip.store.update_data import UpdateData, measured

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""How far the weights may go from the parent's (0) to the learned ones (1); after WiSE-FT (arXiv 2109.01903)."""

Tell = Callable[[str], None]


def choose_share(
    old: Learner, new: Learner, data: UpdateData, tolerance: float | None, tell: Tell = lambda line: None
) -> dict[float, tuple[float, float]]:
    """Move the learned weights towards the parent's as far as the known needs it; return what each share gave.

    Of the shares whose loss on the known is within the tolerance (half of it, since choosing is optimistic), the one
    with the largest gain is taken; if there is none, the one with the smallest loss. `new` holds these weights then.

    Returns:
        share -> (loss, gain), the chosen one first; empty for a method that grows, whose weights have no parent's.
    """
    start, learned = _floats(old), _floats(new)
    if start.keys() != learned.keys() or any(start[k].shape != learned[k].shape for k in start):
        tell(
            f"{new.method.preset} added weights that the version that serves does not have, so it cannot go only part "
            "of the way: the learned weights are taken whole"
        )
        return {}
    kept, fresh = data.half("choose")
    sets = [s for s in [*kept, fresh] if len(s.data)]
    if fresh not in sets or len(sets) < 2:
        tell("there is no held-out data to choose a share with: the learned weights are taken whole")
        return {}
    first = _means(old, sets)
    found: dict[float, tuple[float, float]] = {}
    for share in SHARES:
        _put(new, start, learned, share)
        now_ = _means(new, sets)
        losses = [first[s.name] - now_[s.name] for s in sets if s is not fresh]
        found[share] = (sum(losses) / len(losses), now_[fresh.name] - first[fresh.name])
        tell(
            f"share {share:g}: known {0 - 100 * found[share][0]:+.1f} points, new {100 * found[share][1]:+.1f}"
        )
    limit = 1.0 if tolerance is None else tolerance / 2
    within = [share for share in SHARES if found[share][0] <= limit]
    chosen = max(within, key=lambda s: (found[s][1], s)) if within else min(SHARES, key=lambda s: found[s][0])
    _put(new, start, learned, chosen)
    return {chosen: found[chosen], **found}


def _floats(learner: Learner) -> dict[str, torch.Tensor]:
    state = learner.method.state_dict()
    return {name: values.detach().clone() for name, values in state.items() if values.is_floating_point()}


def _put(
    learner: Learner, start: dict[str, torch.Tensor], learned: dict[str, torch.Tensor], share: float
) -> None:
    state = learner.method.state_dict()
    with torch.no_grad():
        for name, values in learned.items():
            state[name].copy_(values if share == 1 else start[name].lerp(values, share))


def _means(learner: Learner, sets: Sequence[EvalSet]) -> dict[str, float]:
    seen = see(learner, measured(sets), (), EvaluationConfig(), 0)
    return {name: float(one.outcomes[one.metric].mean()) for name, one in seen.items()}
