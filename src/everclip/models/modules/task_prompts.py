"""Task prompts: tokens before the class token that read the picture and that nothing of the picture reads.

One set of tokens per task stands before the class token, without a position, and goes through every block. An additive
mask lets a prompt attend to earlier prompts, to itself and to the picture, and lets the picture attend to no prompt.
Hence class token and patches come out as without prompts, and a prompt's output never changes when later ones are added
(CoLeCLIP, Li et al. 2024, arXiv 2403.10245, section 3.2).

Unlike VPT's (`prompts.py`) they leave the tower's own forward pass alone: whoever wants them asks `encode`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from everclip.models.clip import Clip
from everclip.models.modules.base import Context, generator
from everclip.models.modules.towers import Tower

NAME = "task_prompts"
"""What they are called inside the image tower."""

BOUND = 0.01
"""They start uniform in [0, BOUND), as the reference draws them."""


class TaskPrompts(nn.Module):
    """The prompts of all tasks so far.

    Args:
        width: size of a token, W.
        count: tokens per task, P.

    Parameters:
        tokens: one `(P, W)` per task, in the order of learning.
    """

    def __init__(self, width: int, count: int = 1) -> None:
        super().__init__()
        self.width, self.count = width, count
        self.tokens = nn.ParameterList()

    def __len__(self) -> int:
        return len(self.tokens)

    def extra_repr(self) -> str:
        """Say what `str` must tell apart."""
        return f"tasks={len(self)}, count={self.count}, width={self.width}"

    def add(self, seed: int, like: torch.Tensor) -> str:
        """Add the prompts of one more task and return their name; what they start from depends on seed and number.

        Args:
            seed: decides initial values.
            like: decides device and type.
        """
        draw = generator(seed, "task-prompt", len(self))
        values = BOUND * torch.rand(self.count, self.width, generator=draw)
        self.tokens.append(nn.Parameter(values.to(like.device, like.dtype)))
        return f"tokens.{len(self) - 1}"

    def joined(self) -> torch.Tensor:
        """Return all tokens `(T * P, W)`."""
        return torch.cat(list(self.tokens))


def insert(tower: Tower, count: int = 1, context: Context | None = None) -> None:
    """Put an empty set of task prompts into an image tower; what the tower computes stays as it is.

    Args:
        tower: of open_clip's own blocks.
        count: tokens per task.
        context: what other modules start from; nothing is drawn here before a task is added.
    """
    tower.root.add_module(NAME, TaskPrompts(tower.width, count))


def of(clip: Clip) -> TaskPrompts:
    """Return the task prompts in a model's image tower."""
    return _prompts_in(clip.visual)


def _prompts_in(visual: VisionTransformer) -> TaskPrompts:
    found = visual.get_submodule(NAME)
    assert isinstance(found, TaskPrompts)
    return found


def remove(clip: Clip) -> None:
    """Take the task prompts out again."""
    if isinstance(getattr(clip.visual, NAME, None), TaskPrompts):
        delattr(clip.visual, NAME)


def cost(clip: Clip) -> str:
    """Say what task prompts cost for each image."""
    held = of(clip)
    return f"task prompts: {len(held) * held.count} more tokens per image" if len(held) else ""


def mask(tasks: int, count: int, tokens: int, like: torch.Tensor) -> torch.Tensor:
    """Return the additive mask `(tasks * count + tokens,) * 2`: rows attend to columns, 0 where they may.

    Args:
        tasks: how many tasks have prompts; these stand first.
        count: tokens per task.
        tokens: how many tokens of the picture follow.
        like: decides device and type.
    """
    # The picture is older than every task: it sees no prompt, and every prompt sees it.
    own = torch.arange(tasks, device=like.device).repeat_interleave(count)
    age = torch.cat([own, own.new_full((tokens,), -1)])
    hidden = age[None, :] > age[:, None]
    return torch.zeros(hidden.shape, device=like.device, dtype=like.dtype).masked_fill(hidden, -torch.inf)


def encode(tower: Tower, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode pictures `(N, 3, S, S)` with the prompts of all tasks; gradients reach prompts that take one.

    Returns:
        What the tower returns without prompts `(N, D)`, and one output per task `(N, T, D)`: the mean over its tokens,
        each through the final norm and the projection. Neither is of unit norm.
    """
    visual = tower.visual
    prompts, picture = _prompts_in(visual), visual._embeds(pixels)
    own = visual.ln_pre(prompts.joined().to(picture.dtype)).expand(len(picture), -1, -1)
    together = all(map(_plain, tower.blocks))
    picture, own = (_apart if together else _masked)(tower, prompts, picture, own)
    whole = visual._pool(picture)[0]
    outputs = _finished(visual, own)
    if visual.proj is not None:
        whole, outputs = whole @ visual.proj, outputs @ visual.proj
    return whole, outputs.reshape(len(whole), len(prompts), prompts.count, -1).mean(dim=2)


def _plain(block: nn.Module) -> bool:
    return type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)


def _masked(
    tower: Tower, prompts: TaskPrompts, picture: torch.Tensor, own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence with the mask, as published; for blocks whose attention takes one sequence only."""
    hidden = mask(len(prompts), prompts.count, picture.shape[1], picture)
    out = tower.transformer(torch.cat([own, picture], dim=1), attn_mask=hidden)
    return out[:, own.shape[1] :], out[:, : own.shape[1]]


def _apart(
    tower: Tower, prompts: TaskPrompts, picture: torch.Tensor, own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in two streams: the picture runs through the blocks as it always does, the prompts read it.

    No gradient and no activation is kept for the picture, and its output is the frozen tower's bit for bit.
    """
    count = own.shape[1]
    hidden = mask(len(prompts), prompts.count, picture.shape[1], picture)[:count]
    for block in tower.blocks:
        own = own + block.ls_1(_read(block, own, picture, hidden))
        own = own + block.ls_2(block.mlp(block.ln_2(own)))
        picture = block(picture) if tower.batch_first else block(picture.transpose(0, 1)).transpose(0, 1)
    return picture, own


def _read(
    block: ResidualAttentionBlock, own: torch.Tensor, picture: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Attention of the prompts `(N, P, W)` over themselves and the picture `(N, L, W)`."""
    attention = block.attn
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, own.shape[2]
    query, key, value = F.linear(block.ln_1(own), weight, bias).chunk(3, dim=2)
    seen = F.linear(block.ln_1(picture), weight[width:], bias[width:])
    keys = torch.cat([key, seen[..., :width]], dim=1)
    values = torch.cat([value, seen[..., width:]], dim=1)
    heads = (attention.num_heads, -1)
    split = [x.reshape(*x.shape[:2], *heads).transpose(1, 2) for x in (query, keys, values)]
    found = F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=hidden.to(query.dtype))
    return F.linear(found.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


def _finished(visual: VisionTransformer, own: torch.Tensor) -> torch.Tensor:
    """Bring outputs of prompts `(N, P, W)` to where the tower's pooled output stands before its projection."""
    if getattr(visual, "attn_pool", None) is None:
        normed: torch.Tensor = visual.ln_post(own)
        return normed
    # Attentional pooling changes the width: each prompt is pooled as a sequence of its own.
    pooled = visual._pool(own.flatten(0, 1).unsqueeze(1))[0]
    return pooled.reshape(*own.shape[:2], -1)
