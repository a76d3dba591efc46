"""Prompts: learnable tokens in the input of a tower, for images (VPT) and for texts (CoOp, deep as in MaPLe).

Image: the tokens are between the class token and the patches, and are removed after the last block, so that pooling
sees the usual tokens (Jia et al. 2022, arXiv 2203.12119, equations 4 to 8). Text: they come after the start token, in
the position of a template's words (Zhou et al. 2021, arXiv 2109.01134, equation 2). The text shifts by their number,
and is truncated at the context as a tokenizer does. Deep prompts (`depth`) replace these tokens in the input of the
following blocks (VPT-deep; MaPLe, arXiv 2210.03117). With `coupled`, the image tokens of a block are a linear map of
its text tokens, so both towers train the same tokens (MaPLe).

Prompts are not the identity at the start: other tokens attend to them and change, and without this attention they
would not learn. Text prompts that are initialised from words (`init`) start exactly as the template with these words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.modules.base import Context, Hooked, first_projection, generator, uniform
from everclip.models.modules.pooling import end_id, pooling
from everclip.models.modules.settings import PromptSettings
from everclip.models.modules.towers import Tower

NAME = "prompt"
"""The name of the prompts' submodule in a block or in the token embedding."""


class Prompt(Hooked):
    """The prompts in the input of one block, or of the text tower; `Tokens` learns them, `CoupledTokens` computes them.

    Args:
        count: the number of tokens, n.
        start: the number of tokens before them.
        batch_first: whether blocks take `(N, L, W)` rather than `(L, N, W)`.
    """

    def __init__(self, count: int, start: int, batch_first: bool) -> None:
        super().__init__()
        self.count, self.start, self.batch_first = count, start, batch_first

    def values(self) -> torch.Tensor:
        """Return the tokens `(n, W)`, with gradient."""
        raise NotImplementedError

    def _join(self, tokens: torch.Tensor, skip: int) -> torch.Tensor:
        """Insert the prompts after the first `start` tokens, in place of the next `skip` tokens."""
        axis = 1 if self.batch_first else 0
        prompts = self.values().to(tokens.dtype).unsqueeze(1 - axis)
        prompts = prompts.expand(
            *(tokens.shape[0], -1, -1) if self.batch_first else (-1, tokens.shape[1], -1)
        )
        after = tokens.narrow(axis, self.start + skip, tokens.shape[axis] - self.start - skip)
        return torch.cat([tokens.narrow(axis, 0, self.start), prompts, after], dim=axis)

    def prepend(self, block: nn.Module, inputs: Any) -> Any:
        """Hook before a block: add the tokens to its input."""
        return (self._join(inputs[0], 0), *inputs[1:])

    def replace(self, block: nn.Module, inputs: Any) -> Any:
        """Hook before a block: replace the prompts of an earlier block by these."""
        return (self._join(inputs[0], self.count), *inputs[1:])

    def embed(self, embedding: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook after the token embedding: put the prompts in the positions reserved for them."""
        return self._join(output, self.count)

    def strip(self, block: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook after a block: remove the prompts from its output."""
        axis, stop = (1 if self.batch_first else 0), self.start + self.count
        after = output.narrow(axis, stop, output.shape[axis] - stop)
        return torch.cat([output.narrow(axis, 0, self.start), after], dim=axis)


class Tokens(Prompt):
    """Learnable tokens.

    Args:
        values: initial tokens `(n, W)`.
        start, batch_first: as in `Prompt`.
    """

    def __init__(self, values: torch.Tensor, start: int, batch_first: bool) -> None:
        super().__init__(len(values), start, batch_first)
        self.tokens = nn.Parameter(values)

    def extra_repr(self) -> str:
        """Return what distinguishes this module in `str`."""
        return f"tokens={tuple(self.tokens.shape)}, start={self.start}"

    def values(self) -> torch.Tensor:
        """Return the tokens `(n, W)`."""
        return self.tokens


class CoupledTokens(Prompt):
    """Image tokens that a linear map makes of the text tokens of the same block (MaPLe, equation 5).

    Args:
        source: the text tokens `(n, W_text)`.
        weight: initial map `(W, W_text)`.
        bias: initial offset `(W,)`.
        norm: applied to the result: MaPLe adds the first block's tokens before the tower's first norm.
        batch_first: as in `Prompt`.
    """

    def __init__(
        self,
        source: Tokens,
        weight: torch.Tensor,
        bias: torch.Tensor,
        norm: nn.Module | None,
        batch_first: bool,
    ) -> None:
        super().__init__(source.count, 1, batch_first)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        # In a tuple: they belong to other modules. A deep copy of the model refers to the copied ones.
        self._others: tuple[Tokens, nn.Module | None] = (source, norm)

    def extra_repr(self) -> str:
        """Return what distinguishes this module in `str`."""
        return f"weight={tuple(self.weight.shape)}, start={self.start}"

    def values(self) -> torch.Tensor:
        """Return the tokens `(n, W)`."""
        source, norm = self._others
        values = F.linear(source.tokens.to(self.weight.dtype), self.weight, self.bias)
        made: torch.Tensor = values if norm is None else norm(values)
        return made


class TextPrompt(Tokens):
    """The prompts in the input of a text tower; makes room for them in token ids.

    Args:
        values: initial tokens `(n, W)`.
        root: the text tower; its pooling decides where a text begins and ends.

    Raises:
        ConfigError: if it pools an end token but does not name its id.
    """

    def __init__(self, values: torch.Tensor, root: nn.Module) -> None:
        pool = pooling(root)
        # A tower that pools the last position (SigLIP) has a tokenizer without a start token.
        super().__init__(values, 0 if pool == "last" else 1, batch_first=True)
        named = end_id(root)
        if pool == "eos" and named is None:
            raise ConfigError(
                f"method.trainable.prompt: {type(root).__name__} pools the end token of a text but does not name its "
                "id (`eos_id`), so prompts cannot be inserted before it. Train parts of the text tower instead."
            )
        self.pool, self.end_id = pool, -1 if named is None else named
        # Reserved positions must look neither like padding nor like the end token.
        self.filler = next(i for i in range(4) if i not in (getattr(root, "pad_id", 0), self.end_id))

    def ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the position of the end token of each text `(N, L)`, as the tower finds it."""
        if self.pool == "eos":
            return (ids == self.end_id).int().argmax(dim=1)
        if self.pool == "last":
            return (ids == ids[:, -1:]).int().argmax(dim=1)
        return ids.argmax(dim=1)

    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        """Make room in texts `(N, L)`, same length; a truncated text has its end token in the last position."""
        count, length = self.count, ids.shape[1]
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
    """open_clip's `CLIP` with text prompts. Its text tower is not a module, so a hook before it is impossible."""

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Encode texts `(N, L)`, after making room for the prompts."""
        return super().encode_text(_prompt_of(self.token_embedding).extend(text), normalize)


def _prompt_of(embedding: nn.Module) -> TextPrompt:
    prompt = embedding.get_submodule(NAME)
    assert isinstance(prompt, TextPrompt)
    return prompt


def insert(tower: Tower, settings: PromptSettings, context: Context) -> None:
    """Insert prompts into a tower.

    Raises:
        ConfigError: if it already has prompts, or they do not fit.
    """
    depth = len(tower.blocks) if settings.depth == "all" else settings.depth
    if depth > len(tower.blocks):
        raise ConfigError(
            f"method.trainable.prompt.depth: {depth} is more than the {len(tower.blocks)} blocks of the "
            f"{tower.side} tower."
        )
    if any(isinstance(module, Prompt) for module in _prompt_slots(tower)):
        raise ConfigError(
            f"method.trainable: two entries `prompt` for the {tower.side} tower; it can hold only one."
        )
    if tower.side == "text":
        texts = _insert_text(tower, settings, depth, context)
        if settings.coupled:
            _couple(context.towers["image"], texts, context)
    elif not settings.coupled:  # coupled tokens need those of the text tower
        _insert_image(tower, settings, depth, context)


def _prompt_slots(tower: Tower) -> list[nn.Module | None]:
    """Return the prompt of every module that may have one; `None` without."""
    embedding = getattr(tower.root, "token_embedding", None)
    return [getattr(block, NAME, None) for block in (*tower.blocks, embedding)]


def _insert_image(tower: Tower, settings: PromptSettings, depth: int, context: Context) -> None:
    count = settings.count or 8
    side = math.prod(tower.visual.patch_size)
    # Initialised as in the reference code (VPT, section 3.2).
    bound = math.sqrt(6 / (3 * side + tower.width))
    for number in range(depth):
        draw = generator(context.seed, "prompt", "image", number)
        values = uniform(count, tower.width, bound, draw)
        _place(tower, number, Tokens(_like(values, tower.blocks[number]), 1, tower.batch_first))


def _couple(tower: Tower, texts: Sequence[Tokens], context: Context) -> None:
    """Insert the image tokens that are made of those of the text tower, block by block."""
    for number, text in enumerate(texts):
        draw = generator(context.seed, "prompt", "coupled", number)
        block, width = tower.blocks[number], text.tokens.shape[1]
        weight = _like(first_projection(tower.width, width, draw), block)
        bias = _like(uniform(1, tower.width, 1 / math.sqrt(width), draw)[0], block)
        norm = tower.visual.ln_pre if number == 0 else None
        _place(tower, number, CoupledTokens(text, weight, bias, norm, tower.batch_first))


def _place(tower: Tower, number: int, prompt: Prompt) -> None:
    """Put prompts into the input of a block of an image tower."""
    block = tower.blocks[number]
    block.add_module(NAME, prompt)
    hook = prompt.prepend if number == 0 else prompt.replace
    prompt._handles.append(block.register_forward_pre_hook(hook))
    if number == 0:
        prompt._handles.append(tower.blocks[-1].register_forward_hook(prompt.strip))


def _insert_text(tower: Tower, settings: PromptSettings, depth: int, context: Context) -> list[Tokens]:
    """Insert prompts into a text tower; return those of each block."""
    root, embedding = tower.text, tower.text.token_embedding
    first = TextPrompt(_text_start(tower, settings, context), root)
    length, count, found = int(root.context_length), first.count, list[Tokens]([first])
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
        prompt = Tokens(_like(values, block), first.start, tower.batch_first)
        block.add_module(NAME, prompt)
        prompt._handles.append(block.register_forward_pre_hook(prompt.replace))
        found.append(prompt)
    return found


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
        raise ConfigError("method.trainable.prompt.init: words need a tokenizer; pass `tokenise`.")
    probe = TextPrompt(torch.zeros(1, 1), tower.text)
    ids = context.tokenise([settings.init])
    words = ids[0, probe.start : int(probe.ends(ids)[0])]
    if not len(words):
        raise ConfigError(
            f"method.trainable.prompt.init: {settings.init!r} holds no token of this tokenizer."
        )
    device = next(embedding.parameters()).device
    with torch.no_grad():
        values: torch.Tensor = embedding(words.to(device)).clone()
    return values


def _like(values: torch.Tensor, module: nn.Module) -> torch.Tensor:
    like = next(module.parameters())
    return values.to(like.device, like.dtype)


def coupled_texts(clip: Clip) -> list[tuple[str, torch.Tensor]]:
    """Return the text tokens that image tokens are made of, with names: the image tower depends on them."""
    coupled = [(name, m) for name, m in clip.visual.named_modules() if isinstance(m, CoupledTokens)]
    return [(f"{name}.source", module._others[0].tokens) for name, module in coupled]


def cost(clip: Clip) -> str:
    """Describe the cost of prompts per image."""
    counts = [m.count for m in clip.visual.modules() if isinstance(m, Prompt)]
    return f"prompts: {max(counts)} more tokens per image" if counts else ""


def remove(clip: Clip) -> None:
    """Remove all prompts."""
    for holder in list(clip.modules()):
        prompt = getattr(holder, NAME, None)
        if isinstance(prompt, Prompt):
            prompt.unhook()
            delattr(holder, NAME)
    if type(clip) is PromptedCLIP:
        _as_plain(clip)


def _as_plain(clip: CLIP) -> None:
    clip.__class__ = CLIP
