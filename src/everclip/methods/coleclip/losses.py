"""CoLeCLIP's scores and losses: which token a class is compared with, and which earlier classes are negatives.

Li et al. 2024, arXiv 2403.10245, sections 3.3 and 3.4. Logits are cosines times the scale t. Energies are means of
log-sum-exp, which stays finite where summed exponentials of scaled cosines overflow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from everclip.distributed import concatenate


def token_scores(tokens: torch.Tensor, bank: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
    """Return cosines `(N, C)`: a class is compared with the tokens of its tasks and takes the highest.

    Args:
        tokens: unit features `(N, T + 1, D)`, one per task and the class token last.
        bank: unit class embeddings `(C, D)`.
        owned: `(C, T)` bool, whose class is whose task's; a class of no task is compared with the class token.
    """
    scores = tokens[:, -1] @ bank.T
    none = ~owned.any(dim=1)
    best = scores.masked_fill(~none, -torch.inf)
    for task in range(tokens.shape[1] - 1):
        own = (tokens[:, task] @ bank.T).masked_fill(~owned[:, task], -torch.inf)
        best = torch.maximum(best, own)
    return best


def local(
    token: torch.Tensor, whole: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Stage one: `1/2 [CE(t v_task e, y) + CE(t v_cls e, y)]` over the task's own classes.

    Args:
        token: the task's merged feature `(N, D)`, unit.
        whole: the class token `(N, D)`, unit, frozen: this half trains the text side only.
        bank: unit class embeddings `(C, D)`.
        labels: `(N,)`.
        scale: t.
    """
    both = [F.cross_entropy((scale * v @ bank.T).float(), labels) for v in (token, whole)]
    return 0.5 * (both[0] + both[1])


def energies(logits: torch.Tensor, members: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `1/t LSE` over each group of columns `(N, G)`; -inf for a group without any.

    Args:
        logits: `(N, K)`.
        members: `(G, K)` bool, which column belongs to which group.
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
        earlier: `(J, M)` bool, whose class is which earlier task's.
        scale: t.
        quantile: in [0, 1], linearly interpolated.

    Returns:
        Which columns `(N, C + M)` count for each sample before it is known who is misclassified, and the
        thresholds `(J,)`; infinite for a task all of whose classes recur.
    """
    with torch.no_grad():
        logits = visual.detach().float()
        own = energies(
            logits[:, :current], torch.ones(1, current, dtype=torch.bool, device=logits.device), scale
        )
        # A task without a column has energy -inf: an infinite lead, which no threshold may come from.
        empty = ~earlier.any(dim=1)
        lead = (own - energies(logits[:, current:], earlier, scale)).masked_fill(empty, 0.0)
        limits = torch.quantile(concatenate(lead), quantile, dim=0).clamp(min=0)
        refused = (lead <= limits) & ~empty
        kept = ~(refused.float() @ earlier.float()).bool()
        return torch.cat([kept.new_ones(len(kept), current), kept], dim=1), limits.masked_fill(
            empty, torch.inf
        )


def with_negatives(
    visual: torch.Tensor, whole: torch.Tensor, current: int, labels: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Stage two: misclassified samples are told apart from admitted earlier classes too, the others as in stage one.

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
    """The regulariser `1/C sum_c ||e_c - V0_c||_2` of class embeddings `(C, D)`.

    With a floor under the root: where both are equal but for rounding, the norm's gradient would be a unit vector in
    the direction of the rounding.
    """
    return ((moved - start).square().sum(dim=1) + 1e-12).sqrt().mean()
