"""CoLeCLIP's scores and losses, and its choice of earlier classes as negatives.

Li et al. 2024, arXiv 2403.10245, sections 3.3 and 3.4. Logits are cosines times the scale t. Energies use log-sum-exp,
which stays finite when sums of exponentials overflow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from everclip.distributed import concatenate


def token_scores(tokens: torch.Tensor, bank: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
    """Return cosines `(N, C)`: for each class, the best cosine with the tokens of its tasks.

    Args:
        tokens: unit features `(N, T + 1, D)`, one per task and the class token last.
        bank: unit class embeddings `(C, D)`.
        membership: `(C, T)` bool, whether a class belongs to a task; a class of no task is compared with the class
            token.
    """
    scores = tokens[:, -1] @ bank.T
    none = ~membership.any(dim=1)
    best = scores.masked_fill(~none, -torch.inf)
    for task in range(tokens.shape[1] - 1):
        of_task = (tokens[:, task] @ bank.T).masked_fill(~membership[:, task], -torch.inf)
        best = torch.maximum(best, of_task)
    return best


def local(
    token: torch.Tensor, whole: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return the loss of stage one: `1/2 [CE(t v_task e, y) + CE(t v_cls e, y)]` over the task's own classes.

    Args:
        token: the task's merged feature `(N, D)`, unit.
        whole: the class token `(N, D)`, unit, frozen: this half only trains the text side.
        bank: unit class embeddings `(C, D)`.
        labels: `(N,)`.
        scale: t.
    """
    both = [F.cross_entropy((scale * v @ bank.T).float(), labels) for v in (token, whole)]
    return 0.5 * (both[0] + both[1])


def energies(logits: torch.Tensor, members: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `1/t LSE` over each group of columns `(N, G)`; -inf for an empty group.

    Args:
        logits: `(N, K)`.
        members: `(G, K)` bool, whether a column belongs to a group.
        scale: t.
    """
    groups = [logits.masked_fill(~row, -torch.inf).logsumexp(dim=1) for row in members]
    return torch.stack(groups, dim=1) / scale if groups else logits.new_zeros(len(logits), 0)


def admitted(
    visual: torch.Tensor, current: int, earlier: torch.Tensor, scale: torch.Tensor, quantile: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the earlier classes that are negatives of each sample; without gradient.

    Task j's classes are admitted for a sample if `E_cur - E_j` exceeds `max(0, Q_quantile)` of that difference over the
    global batch. A class of several earlier tasks is admitted if all of them are.

    Args:
        visual: visual logits `(N, C + M)`, the task's own classes first.
        current: C.
        earlier: `(J, M)` bool, whether a class belongs to an earlier task.
        scale: t.
        quantile: in [0, 1], linearly interpolated.

    Returns:
        The columns `(N, C + M)` that count for a sample if it is misclassified, bool; and the thresholds `(J,)`,
        infinite for a task without columns because all its classes recur.
    """
    with torch.no_grad():
        logits = visual.detach().float()
        own_energy = energies(
            logits[:, :current], torch.ones(1, current, dtype=torch.bool, device=logits.device), scale
        )
        # A task without columns has energy -inf and so an infinite lead; it must not enter a threshold.
        empty = ~earlier.any(dim=1)
        lead = (own_energy - energies(logits[:, current:], earlier, scale)).masked_fill(empty, 0.0)
        limits = torch.quantile(concatenate(lead), quantile, dim=0).clamp(min=0)
        refused = (lead <= limits) & ~empty
        kept = ~(refused.float() @ earlier.float()).bool()
        return torch.cat([kept.new_ones(len(kept), current), kept], dim=1), limits.masked_fill(
            empty, torch.inf
        )


def with_negatives(
    visual: torch.Tensor, whole: torch.Tensor, current: int, labels: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Return the loss of stage two: for misclassified samples, admitted earlier classes are negatives as well.

    Args:
        visual, whole: logits `(N, C + M)` of task tokens and of the class token; the task's own classes first.
        current: C.
        labels: `(N,)`.
        kept: `(N, C + M)` bool, the columns that count for a misclassified sample.

    Returns:
        `1/2` of both cross entropies, mean over samples.
    """
    wrong = visual.gather(1, labels[:, None])[:, 0] < visual.max(dim=1).values
    columns = torch.arange(visual.shape[1], device=visual.device) < current
    hidden = ~(kept & (wrong[:, None] | columns))
    both = [F.cross_entropy(x.float().masked_fill(hidden, -torch.inf), labels) for x in (visual, whole)]
    return 0.5 * (both[0] + both[1])


def distance(moved: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the regulariser `1/C sum_c ||e_c - V0_c||_2` of class embeddings `(C, D)`.

    A constant under the root keeps the gradient small if both are equal except for rounding; without it, the gradient
    would be a unit vector in the direction of the rounding error.
    """
    return ((moved - start).square().sum(dim=1) + 1e-12).sqrt().mean()
