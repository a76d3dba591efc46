"""Fit the text tower of a small CLIP to given embeddings of texts: the first step of building a base.

The targets are fixed (features of images averaged by name, or a larger encoder's embeddings carried into the joint
space), so that the image tower can then learn against a text tower that no longer moves. A part of a build script;
`scripts/tiny_targets.py` calls it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from everclip.models.backbone import Backbone
from everclip.models.modules.short_texts import needed_tokens, short_texts

SCALE = 30.0
"""Factor on cosines in the softmax over names; the image tower is trained with the same."""


@dataclasses.dataclass(frozen=True)
class TextGroup:
    """Texts with the embeddings that they must have.

    Attributes:
        texts: N texts.
        targets: their unit embeddings `(N, D)`.
        share: the share of a batch that is drawn from this group.
        templates: one of them is put around each text, drawn anew each time: `an emoji of {}`.
        names: whether the texts are names that must also be told apart from each other: a softmax over them.
    """

    texts: Sequence[str]
    targets: torch.Tensor
    share: float
    templates: Sequence[str] = ("{}",)
    names: bool = False


def fit_text_tower(
    backbone: Backbone,
    groups: Sequence[TextGroup],
    steps: int,
    *,
    batch: int = 192,
    lr: float = 2e-3,
    weight_decay: float = 0.01,
    softmax_weight: float = 0.2,
    seed: int = 0,
) -> float:
    """Train the text tower so that each text gets its target; return the mean loss of the last tenth of the steps.

    The loss is `mean(1 - cos)` plus, for groups of names, `softmax_weight` times the cross-entropy over all names of
    the group. AdamW, 200 steps of warm-up, then a cosine to zero.

    Raises:
        ValueError: if a target's width is not that of the joint space, or the shares do not sum to 1.
    """
    width = backbone.embedding_width()
    for group in groups:
        if group.targets.shape != (len(group.texts), width):
            raise ValueError(
                f"targets: found {tuple(group.targets.shape)}, expected {(len(group.texts), width)}"
            )
    if not math.isclose(sum(group.share for group in groups), 1.0, abs_tol=1e-6):
        raise ValueError(f"shares: found a sum of {sum(g.share for g in groups)}, expected 1")
    generator = torch.Generator().manual_seed(seed)
    tokens = [
        [backbone.tokenise([template.format(text) for text in group.texts]) for template in group.templates]
        for group in groups
    ]
    trained = _text_parameters(backbone)
    optimiser = torch.optim.AdamW(trained, lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    backbone.train()
    losses: list[float] = []
    for step in range(steps):
        rows = [torch.randint(len(g.texts), (round(batch * g.share),), generator=generator) for g in groups]
        forms = [int(torch.randint(len(g.templates), (1,), generator=generator)) for g in groups]
        chosen = [t[f][r] for t, f, r in zip(tokens, forms, rows, strict=True)]
        wanted = torch.cat([g.targets[r] for g, r in zip(groups, rows, strict=True)])
        found = torch.cat([_encode_short(backbone, part) for part in chosen])
        loss = (1 - (found * wanted).sum(dim=1)).mean()
        for group, row, part in zip(groups, rows, torch.split(found, [len(r) for r in rows]), strict=True):
            if group.names:
                loss = loss + softmax_weight * F.cross_entropy(SCALE * part @ group.targets.T, row)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 20) == 0:
            print(f"text tower: step {step + 1} of {steps}, loss {losses[-1]:.3f}", flush=True)
    backbone.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _encode_short(backbone: Backbone, tokens: torch.Tensor) -> torch.Tensor:
    """Encode the texts of one group at the length of its longest: names do not wait for captions."""
    with short_texts(backbone.clip, needed_tokens(backbone.clip, tokens)):
        return backbone.encode_text(tokens)


def _text_parameters(backbone: Backbone) -> list[torch.nn.Parameter]:
    """Return everything that trains in the text tower."""
    return [
        parameter
        for name, parameter in backbone.clip.named_parameters()
        if not name.startswith("visual") and name not in ("logit_scale", "logit_bias")
    ]


@torch.no_grad()
def encoded(backbone: Backbone, texts: Sequence[str], batch: int = 256) -> torch.Tensor:
    """Return the unit embeddings `(N, D)` of texts."""
    parts = [
        backbone.encode_text(backbone.tokenise(list(texts[i : i + batch])))
        for i in range(0, len(texts), batch)
    ]
    return torch.cat(parts)
