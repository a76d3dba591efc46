"""Task prompts: tokens before the class token that attend to the image, while the image does not attend to them.

One set of tokens per task is before the class token, without a position embedding, and goes through every block. With
an additive mask, a prompt attends to earlier prompts, to itself and to the image; the image attends to no prompt. So
the outputs of class token and patches are the same as without prompts, and the output of a prompt does not change when
later prompts are added (CoLeCLIP, Li et al. 2024, arXiv 2403.10245, section 3.2).

Unlike the prompts of VPT (`prompts.py`), they do not change the tower's own forward pass; `encode` computes them.
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
"""The name of their submodule in the image tower."""

BOUND = 0.01
"""Initial values are uniform in [0, BOUND), as in the reference code."""


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
        """Return what distinguishes this module in `str`."""
        return f"tasks={len(self)}, count={self.count}, width={self.width}"

    def add(self, seed: int, like: torch.Tensor) -> str:
        """Add the prompts of one more task and return their name; seed and task number decide the initial values.

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
    """Insert an empty set of task prompts into an image tower; the outputs of the tower do not change.

    Args:
        tower: a tower of open_clip's own blocks.
        count: tokens per task.
        context: not used; `TaskPrompts.add` draws the initial values.
    """
    tower.root.add_module(NAME, TaskPrompts(tower.width, count))


def task_prompts_of(clip: Clip) -> TaskPrompts:
    """Return the task prompts in a model's image tower."""
    return _prompts_in(clip.visual)


def _prompts_in(visual: VisionTransformer) -> TaskPrompts:
    prompts = visual.get_submodule(NAME)
    assert isinstance(prompts, TaskPrompts)
    return prompts


def remove(clip: Clip) -> None:
    """Remove the task prompts."""
    if isinstance(getattr(clip.visual, NAME, None), TaskPrompts):
        delattr(clip.visual, NAME)


def cost(clip: Clip) -> str:
    """Describe the cost of task prompts per image."""
    prompts = task_prompts_of(clip)
    return f"task prompts: {len(prompts) * prompts.count} more tokens per image" if len(prompts) else ""


def mask(tasks: int, count: int, tokens: int, like: torch.Tensor) -> torch.Tensor:
    """Return the additive attention mask `(tasks * count + tokens,) * 2`: 0 where a row may attend to a column.

    Args:
        tasks: the number of tasks with prompts; the prompts come first.
        count: tokens per task.
        tokens: the number of image tokens, which follow.
        like: decides device and type.
    """
    # A token attends to tokens of its own and of earlier tasks; the image tokens count as task -1.
    prompt_tasks = torch.arange(tasks, device=like.device).repeat_interleave(count)
    task = torch.cat([prompt_tasks, prompt_tasks.new_full((tokens,), -1)])
    hidden = task[None, :] > task[:, None]
    return torch.zeros(hidden.shape, device=like.device, dtype=like.dtype).masked_fill(hidden, -torch.inf)


def encode(tower: Tower, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images `(N, 3, S, S)` with the prompts of all tasks; prompts that require gradients receive them.

    Returns:
        The output of the tower without prompts `(N, D)`, and one output per task `(N, T, D)`: the mean over its tokens,
        each after the final norm and the projection. Neither is of unit norm.
    """
    visual = tower.visual
    prompts, image = _prompts_in(visual), visual._embeds(pixels)
    tokens = visual.ln_pre(prompts.joined().to(image.dtype)).expand(len(image), -1, -1)
    run = _two_streams if all(map(_plain, tower.blocks)) else _one_sequence
    image, tokens = run(tower, prompts, image, tokens)
    whole = visual._pool(image)[0]
    outputs = _pooled_prompts(visual, tokens)
    if visual.proj is not None:
        whole, outputs = whole @ visual.proj, outputs @ visual.proj
    return whole, outputs.reshape(len(whole), len(prompts), prompts.count, -1).mean(dim=2)


def _plain(block: nn.Module) -> bool:
    """Return whether a block allows two streams: open_clip's own block with torch's attention."""
    return type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)


def _one_sequence(
    tower: Tower, prompts: TaskPrompts, image: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run prompts and image as one sequence with the mask, as published; works for every kind of attention."""
    hidden = mask(len(prompts), prompts.count, image.shape[1], image)
    out = tower.transformer(torch.cat([tokens, image], dim=1), attn_mask=hidden)
    return out[:, tokens.shape[1] :], out[:, : tokens.shape[1]]


def _two_streams(
    tower: Tower, prompts: TaskPrompts, image: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same in two streams: the image runs through the blocks as usual, and the prompts attend to it.

    The image needs no gradients and no stored activations, and its output equals that of the frozen tower bit for bit.
    """
    count = tokens.shape[1]
    hidden = mask(len(prompts), prompts.count, image.shape[1], image)[:count]
    for block in tower.blocks:
        tokens = tokens + block.ls_1(_attend(block, tokens, image, hidden))
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        image = block(image) if tower.batch_first else block(image.transpose(0, 1)).transpose(0, 1)
    return image, tokens


def _attend(
    block: ResidualAttentionBlock, tokens: torch.Tensor, image: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Return the attention of the prompts `(N, P, W)` over themselves and the image `(N, L, W)`."""
    attention = block.attn
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, tokens.shape[2]
    query, key, value = F.linear(block.ln_1(tokens), weight, bias).chunk(3, dim=2)
    of_image = F.linear(block.ln_1(image), weight[width:], bias[width:])
    keys = torch.cat([key, of_image[..., :width]], dim=1)
    values = torch.cat([value, of_image[..., width:]], dim=1)
    heads = (attention.num_heads, -1)
    split = [x.reshape(*x.shape[:2], *heads).transpose(1, 2) for x in (query, keys, values)]
    attended = F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=hidden.to(query.dtype))
    merged = attended.transpose(1, 2).flatten(2)
    return F.linear(merged, attention.out_proj.weight, attention.out_proj.bias)


def _pooled_prompts(visual: VisionTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """Apply norm and pooling to the outputs of prompts `(N, P, W)`: all that precedes the tower's projection."""
    if getattr(visual, "attn_pool", None) is None:
        normed: torch.Tensor = visual.ln_post(tokens)
        return normed
    # Attentional pooling changes the width: pool each prompt as a separate sequence.
    pooled = visual._pool(tokens.flatten(0, 1).unsqueeze(1))[0]
    return pooled.reshape(*tokens.shape[:2], -1)
