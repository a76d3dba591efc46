"""Prompts: learnable tokens in the input of a tower, for images (VPT) and for texts (CoOp, deep as in MaPLe).

Image: the tokens stand between the class token and the patches, and leave after the last block, so that pooling finds
what it always found (Jia et al. 2022, arXiv 2203.12119, equations 4 to 8). Text: they stand after the start token,
where the words of a template would (Zhou et al. 2021, arXiv 2109.01134, equation 2); the text moves back by as many
places, and what no longer fits the context is cut, as a tokeniser cuts. Deep prompts (`depth`) replace these places in
the input of the following blocks (VPT-deep; MaPLe, arXiv 2210.03117).

Prompts are not the identity at the start: tokens that others attend to change them, and tokens that none attends to
would learn nothing. Text prompts started from words (`init`) are at first exactly the template with these words.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from open_clip.model import CLIP
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.modules.base import Context, Hooked, generator, uniform
from everclip.models.modules.pooling import end_id, pooling
from everclip.models.modules.settings import PromptSettings
from everclip.models.modules.towers import Tower

NAME = "prompt"
"""What prompts are called inside the block, or the token embedding, that holds them."""


class Prompt(Hooked):
    """The learnable tokens of one place.

    Args:
        values: initial tokens `(n, W)`.
        start: how many tokens stand before them.
        batch_first: whether blocks take `(N, L, W)` rather than `(L, N, W)`.
    """

    def __init__(self, values: torch.Tensor, start: int, batch_first: bool) -> None:
        super().__init__()
        self.tokens = nn.Parameter(values)
        self.start, self.batch_first = start, batch_first

    def extra_repr(self) -> str:
        """Say what `str` must tell apart."""
        return f"tokens={tuple(self.tokens.shape)}, start={self.start}"

    def _join(self, tokens: torch.Tensor, skip: int) -> torch.Tensor:
        """Put the prompts behind the first `start` tokens, in place of `skip` of those that follow."""
        axis = 1 if self.batch_first else 0
        own = self.tokens.to(tokens.dtype).unsqueeze(1 - axis)
        own = own.expand(*(tokens.shape[0], -1, -1) if self.batch_first else (-1, tokens.shape[1], -1))
        after = tokens.narrow(axis, self.start + skip, tokens.shape[axis] - self.start - skip)
        return torch.cat([tokens.narrow(axis, 0, self.start), own, after], dim=axis)

    def prepend(self, block: nn.Module, inputs: Any) -> Any:
        """Hook before a block: add the tokens to its input."""
        return (self._join(inputs[0], 0), *inputs[1:])

    def replace(self, block: nn.Module, inputs: Any) -> Any:
        """Hook before a block: put the tokens in place of those of an earlier block."""
        return (self._join(inputs[0], len(self.tokens)), *inputs[1:])

    def embed(self, embedding: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook after the token embedding: put the tokens at the places kept free for them."""
        return self._join(output, len(self.tokens))

    def strip(self, block: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook after a block: take the tokens out of its output."""
        axis, stop = (1 if self.batch_first else 0), self.start + len(self.tokens)
        after = output.narrow(axis, stop, output.shape[axis] - stop)
        return torch.cat([output.narrow(axis, 0, self.start), after], dim=axis)


class TextPrompt(Prompt):
    """The tokens of the first place of a text tower; knows how texts make room for them.

    Args:
        values: initial tokens `(n, W)`.
        root: the text tower; decides by its pooling where a text begins and ends.

    Raises:
        ConfigError: if it pools an end token that it does not name.
    """

    def __init__(self, values: torch.Tensor, root: nn.Module) -> None:
        pool = pooling(root)
        # A tower that pools the last place (SigLIP) has a tokeniser without start token.
        super().__init__(values, 0 if pool == "last" else 1, batch_first=True)
        named = end_id(root)
        if pool == "eos" and named is None:
            raise ConfigError(
                f"method.trainable.prompt: {type(root).__name__} pools the end of a text and does not say which token "
                "that is (`eos_id`), so that nothing can be put before it. Train parts of the text tower instead."
            )
        self.pool, self.end_id = pool, -1 if named is None else named
        # Kept places must neither look like padding nor like the end.
        self.filler = next(i for i in range(4) if i not in (getattr(root, "pad_id", 0), self.end_id))

    def ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the place of the end token of each text `(N, L)`, as the tower finds it."""
        if self.pool == "eos":
            return (ids == self.end_id).int().argmax(dim=1)
        if self.pool == "last":
            return (ids == ids[:, -1:]).int().argmax(dim=1)
        return ids.argmax(dim=1)

    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        """Make room in texts `(N, L)`: same length, a text that is cut keeps its end token at the last place."""
        count, length = len(self.tokens), ids.shape[1]
        room = ids.new_full((len(ids), count), self.filler)
        moved = torch.cat([ids[:, : self.start], room, ids[:, self.start : length - count]], dim=1)
        ends = self.ends(ids)
        closing = ids.gather(1, ends[:, None])[:, 0]
        last = torch.where(ends >= length - count, closing, moved[:, -1])
        return torch.cat([moved[:, :-1], last[:, None]], dim=1)

    def shift(self, tower: nn.Module, inputs: Any) -> Any:
        """Hook before a text tower: make room in the texts."""
        return (self.extend(inputs[0]), *inputs[1:])


class PromptedCLIP(CLIP):
    """open_clip's `CLIP` with text prompts; its text tower is no module, which a hook could stand before."""

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Encode texts `(N, L)`, after making room for the prompts."""
        return super().encode_text(_prompt_of(self.token_embedding).extend(text), normalize)


def _prompt_of(embedding: nn.Module) -> TextPrompt:
    prompt = embedding.get_submodule(NAME)
    assert isinstance(prompt, TextPrompt)
    return prompt


def insert(tower: Tower, settings: PromptSettings, context: Context) -> None:
    """Put prompts into a tower.

    Raises:
        ConfigError: if it has some already, or they do not fit.
    """
    depth = len(tower.blocks) if settings.depth == "all" else settings.depth
    if depth > len(tower.blocks):
        raise ConfigError(
            f"method.trainable.prompt.depth: {depth} is more than the {len(tower.blocks)} blocks of the "
            f"{tower.side} tower."
        )
    if any(isinstance(module, Prompt) for module in _holders(tower)):
        raise ConfigError(
            f"method.trainable: two `prompt` in the {tower.side} tower; one is what it can hold."
        )
    if tower.side == "image":
        _insert_image(tower, settings, depth, context)
    else:
        _insert_text(tower, settings, depth, context)


def _holders(tower: Tower) -> list[nn.Module | None]:
    embedding = getattr(tower.root, "token_embedding", None)
    return [getattr(block, NAME, None) for block in (*tower.blocks, embedding)]


def _insert_image(tower: Tower, settings: PromptSettings, depth: int, context: Context) -> None:
    count, last = settings.count or 8, tower.blocks[-1]
    side = math.prod(tower.visual.patch_size)
    # As the reference draws them (VPT, section 3.2).
    bound = math.sqrt(6 / (3 * side + tower.width))
    for number in range(depth):
        draw = generator(context.seed, "prompt", "image", number)
        values = uniform(count, tower.width, bound, draw)
        block = tower.blocks[number]
        prompt = Prompt(_like(values, block), 1, tower.batch_first)
        block.add_module(NAME, prompt)
        hook = prompt.prepend if number == 0 else prompt.replace
        prompt._handles.append(block.register_forward_pre_hook(hook))
        if number == 0:
            prompt._handles.append(last.register_forward_hook(prompt.strip))


def _insert_text(tower: Tower, settings: PromptSettings, depth: int, context: Context) -> None:
    root, embedding = tower.text, tower.text.token_embedding
    first = TextPrompt(_text_start(tower, settings, context), root)
    length, count = int(root.context_length), len(first.tokens)
    if count > length - first.start - 2:
        raise ConfigError(
            f"method.trainable.prompt.count: {count} tokens leave no room for a text in a context of {length}."
        )
    embedding.add_module(NAME, first)
    first._handles.append(embedding.register_forward_hook(first.embed))
    _make_room(root, first)
    for number in range(1, depth):
        draw = generator(context.seed, "prompt", "text", number)
        values = 0.02 * torch.randn(count, tower.width, generator=draw)
        block = tower.blocks[number]
        prompt = Prompt(_like(values, block), first.start, tower.batch_first)
        block.add_module(NAME, prompt)
        prompt._handles.append(block.register_forward_pre_hook(prompt.replace))


def _make_room(root: nn.Module, prompt: TextPrompt) -> None:
    if type(root) is CLIP:
        root.__class__ = PromptedCLIP
    else:
        prompt._handles.append(root.register_forward_pre_hook(prompt.shift))


def _text_start(tower: Tower, settings: PromptSettings, context: Context) -> torch.Tensor:
    embedding = tower.text.token_embedding
    if settings.init is None:
        draw = generator(context.seed, "prompt", "text", 0)
        return _like(0.02 * torch.randn(settings.count or 8, tower.width, generator=draw), embedding)
    if context.tokenise is None:
        raise ConfigError("method.trainable.prompt.init: words need a tokeniser, and none was given.")
    probe = TextPrompt(torch.zeros(1, 1), tower.text)
    ids = context.tokenise([settings.init])
    words = ids[0, probe.start : int(probe.ends(ids)[0])]
    if not len(words):
        raise ConfigError(
            f"method.trainable.prompt.init: {settings.init!r} holds no token of this tokeniser."
        )
    device = next(embedding.parameters()).device
    with torch.no_grad():
        values: torch.Tensor = embedding(words.to(device)).clone()
    return values


def _like(values: torch.Tensor, module: nn.Module) -> torch.Tensor:
    like = next(module.parameters())
    return values.to(like.device, like.dtype)


def cost(clip: Clip) -> str:
    """Say what prompts cost for each image."""
    counts = [len(m.tokens) for m in clip.visual.modules() if isinstance(m, Prompt)]
    return f"prompts: {max(counts)} more tokens per image" if counts else ""


def remove(clip: Clip) -> None:
    """Take all prompts out again."""
    for holder in list(clip.modules()):
        prompt = getattr(holder, NAME, None)
        if isinstance(prompt, Prompt):
            prompt.unhook()
            delattr(holder, NAME)
    if type(clip) is PromptedCLIP:
        _as_plain(clip)


def _as_plain(clip: CLIP) -> None:
    clip.__class__ = CLIP
