"""Losses shared by methods: contrastive with several positives, and cross entropy against class texts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from everclip.distributed import concatenate, rank, world
from everclip.methods.ring import sigmoid_in_ring


def contrastive(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    image_key: torch.Tensor | None = None,
    text_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the symmetric contrastive loss over the global batch (CLIP, arXiv 2103.00020, figure 3).

    Pair (i, j) is positive if i = j, or if the images or the captions of i and j are equal (equal keys). The target of
    a row is distributed evenly over its positives (as in supervised contrastive learning, Khosla et al. 2020, arXiv
    2004.11362, the outer-sum form). Without repeats this is exactly CLIP's loss. Each process computes its own rows
    against the columns of all processes; with averaged gradients, this equals one process on the whole batch.

    Args:
        image, text: unit embeddings `(N, D)` of this process.
        scale: factor on cosines, scalar.
        image_key, text_key: `(N,)` int64; equal keys mark the same image (or concept) and the same caption.

    Returns:
        Scalar: mean over both directions and over this process's rows.
    """
    all_image, all_text = concatenate(image, gradient=True), concatenate(text, gradient=True)
    per_image = scale * image @ all_text.T
    per_text = scale * text @ all_image.T
    targets = _targets(len(image), len(all_image), image_key, text_key, image.device)
    return 0.5 * (_soft_cross_entropy(per_image, targets) + _soft_cross_entropy(per_text, targets))


def sigmoid_contrastive(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    image_key: torch.Tensor | None = None,
    text_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the pairwise sigmoid loss over the global batch (SigLIP, arXiv 2303.15343, equation 1).

    `-1/N sum_ij log sigmoid(z_ij (c x_i y_j + b))` with z = 1 for positives, else -1. Positives are those of
    `contrastive`; each process computes its own rows, against one block of texts after the other
    (`everclip.methods.ring`).

    Args:
        image, text: unit embeddings `(N, D)` of this process.
        scale, bias: factor c on cosines and the constant b, scalars.
        image_key, text_key: `(N,)` int64; equal keys mark the same image (or concept) and the same caption.

    Returns:
        Scalar: sum over the pairs of this process's rows, divided by their number.
    """
    if world() > 1:
        return sigmoid_in_ring(image, text, scale, bias, image_key, text_key)
    logits = scale * image @ text.T + bias
    positive = positives(len(image), len(text), image_key, text_key, image.device)
    signs = 2.0 * positive - 1.0
    return -F.logsigmoid(signs * logits.float()).sum(dim=1).mean()


def _targets(
    rows: int,
    columns: int,
    image_key: torch.Tensor | None,
    text_key: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    positive = positives(rows, columns, image_key, text_key, device)
    return positive / positive.sum(dim=1, keepdim=True)


def positives(
    rows: int,
    columns: int,
    image_key: torch.Tensor | None,
    text_key: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """Return which pairs are positive: this process's `rows` against the `columns` of all processes, bool `(R, C)`.

    `image_key` and `text_key` are those of `contrastive`, of this process's rows.
    """
    index = torch.arange(rows, device=device) + rank() * rows
    positive = index[:, None] == torch.arange(columns, device=device)[None, :]
    for key in (image_key, text_key):
        if key is not None:
            positive = positive | (key[:, None] == concatenate(key)[None, :])
    return positive


def _soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def class_cross_entropy(
    image: torch.Tensor,
    bank: torch.Tensor,
    labels: torch.Tensor,
    scale: torch.Tensor,
    smoothing: float = 0.0,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cross entropy of scaled cosines with class texts (ZSCL, arXiv 2303.06628; smoothing 0.2 there).

    Classes with the same text count as one answer, so that no class is a negative of its own text.

    Args:
        image: unit embeddings `(N, D)`.
        bank: unit class embeddings `(C, D)`, with gradient if the text tower trains.
        labels: `(N,)` positions in the bank.
        scale: factor on cosines, scalar.
        smoothing: label smoothing in [0, 1].
        same: `(C,)` int64, for each class the first class with the same text; `None` if all texts differ.
    """
    labels, (bank,) = without_copies(labels, same, bank)
    if not len(labels):  # a process without samples, at the end of a stream seen once: a mean would be NaN
        return (image.sum() + bank.sum()) * 0.0
    return F.cross_entropy((scale * image @ bank.T).float(), labels, label_smoothing=smoothing)


def without_copies(
    labels: torch.Tensor, same: torch.Tensor | None, *banks: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return labels and banks `(C', D)` of the classes with different texts; see `class_cross_entropy`."""
    if same is None:
        return labels, banks
    kept = torch.unique(same)
    return torch.searchsorted(kept, same[labels]), tuple(bank[kept] for bank in banks)


def distillation(
    teacher: torch.Tensor, student: torch.Tensor, temperature: float = 2.0, floored: bool = True
) -> torch.Tensor:
    """Return the distillation loss of rows of logits (arXiv 1503.02531, section 2; ZSCL, arXiv 2303.06628).

    `T^2 mean_i -sum_j p_ij log q_ij` with `p = softmax(teacher / T)` and `q = softmax(student / T)`.

    Args:
        teacher, student: logits `(M, K)`; only the student's receive gradients.
        temperature: T.
        floored: subtract the teacher's entropy, so that the loss is `T^2 KL(p || q)`: 0 if both agree, same gradient.

    Returns:
        Scalar: mean over rows.
    """
    target = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    output = F.log_softmax(student.float() / temperature, dim=1)
    gap = target - output if floored else -output
    return temperature**2 * (target.exp() * gap).sum(dim=1).mean()


def squared_distance(now: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of squared differences between the tensors of `now` and `start` (ZSCL, equation 6)."""
    return torch.stack([(tensor - start[name]).square().sum() for name, tensor in now.items()]).sum()
