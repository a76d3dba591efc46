"""The sigmoid loss over several processes without gathering their embeddings (SigLIP, arXiv 2303.15343, section 3.3).

The loss is a sum over pairs, so a process needs one block of texts at a time. The blocks travel around a ring of
processes; the gradient of a block is known as soon as its pairs are computed, and travels with it until both are home.
A process holds its own block and one that passes by, `(N, D)` each, and logits `(N, N)`; gathered embeddings would take
`(W N, D)` and `(N, W N)` for W processes. open_clip's `SigLipLoss` passes blocks on in the same way, but knows no pair
besides the diagonal as positive, and autograd keeps every block for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from everclip.distributed import concatenate, pass_on, rank, world


def sigmoid_in_ring(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    image_key: torch.Tensor | None = None,
    text_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `everclip.methods.losses.sigmoid_contrastive` over the processes; all must call it, with equal N.

    The factor on the loss (a loss scale) must be equal on all processes, because a text's gradient is the sum of what
    all processes computed with their own.

    Args:
        image, text: unit embeddings `(N, D)` of this process.
        scale, bias: scalars.
        image_key, text_key: `(N,)` int64 keys of this process's rows.

    Returns:
        Scalar: sum over the pairs of this process's rows, divided by N.
    """
    keys = [(key, concatenate(key)) for key in (image_key, text_key) if key is not None]
    loss: torch.Tensor = _Ring.apply(image, text, scale, bias, keys)
    return loss


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        keys: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        count, wide = len(image), torch.promote_types(image.dtype, torch.float32)
        loss, of_scale, of_bias = (torch.zeros((), dtype=wide, device=image.device) for _ in range(3))
        of_image = torch.zeros_like(image, dtype=wide)
        block, of_block = text, torch.zeros_like(text, dtype=wide)
        for step in range(world()):
            owner = (rank() - step) % world()
            positive = _positives(count, owner, keys, image.device)
            cosines = image @ block.T
            signed = torch.where(positive, 1.0, -1.0) * (scale * cosines + bias).to(wide)
            loss = loss - F.logsigmoid(signed).sum() / count
            pull = torch.where(positive, -1.0, 1.0) * torch.sigmoid(-signed) / count
            of_scale = of_scale + (pull * cosines).sum()
            of_bias = of_bias + pull.sum()
            of_image += scale * (pull.to(block.dtype) @ block)
            of_block += scale * (pull.to(image.dtype).T @ image)
            of_block = pass_on(of_block)
            if step + 1 < world():
                block = pass_on(block)
        ctx.save_for_backward(
            of_image.to(image.dtype),
            of_block.to(text.dtype),
            of_scale.to(scale.dtype),
            of_bias.to(bias.dtype),
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor | None, ...]:
        return (*(outer[0].to(gradient.dtype) * gradient for gradient in ctx.saved_tensors), None)


def _positives(
    count: int, owner: int, keys: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> torch.Tensor:
    """Return which pairs of this process's images and the owner's texts are positive, bool `(N, N)`."""
    positive = torch.zeros(count, count, dtype=torch.bool, device=device)
    if owner == rank():
        positive.fill_diagonal_(True)
    for own, everyone in keys:
        positive |= own[:, None] == everyone[None, owner * count : (owner + 1) * count]
    return positive
