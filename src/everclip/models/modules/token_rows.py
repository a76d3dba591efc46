"""The token embedding of a text tower: add rows, and train some of its rows as a compact tensor.

A language uses a few thousand of up to 400,000 rows. As a compact tensor, only these need gradients, optimiser moments
and weight decay, and all other rows keep their bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.modules.pooling import pooling
from everclip.models.modules.prompts import NAME, TextPrompt
from everclip.models.modules.towers import tower_of, tower_root


class RowEmbedding(nn.Embedding):
    """A token embedding of which some rows train.

    Attributes:
        rows: the values of these rows `(n, W)`; they replace those of `weight`.
        slots: for each id its position in `rows`, else -1 `(V,)` int32.
    """

    rows: nn.Parameter
    slots: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(..., W)` of ids `(...)`; only `rows` have a gradient."""
        slots = self.slots[input]
        trained = F.embedding(slots.clamp(min=0), self.rows)
        fixed = F.embedding(input, self.weight.detach())
        return torch.where((slots >= 0).unsqueeze(-1), trained, fixed)


def embedding_of(clip: Clip) -> nn.Embedding:
    """Return the token embedding of a text tower.

    Raises:
        ConfigError: if the tower is not open_clip's own transformer.
    """
    embedding = tower_of(clip, "text").text.token_embedding
    assert isinstance(embedding, nn.Embedding)
    return embedding


def require_end_pooling(clip: Clip) -> None:
    """Check that a tower pools the end token of a text, whose id stays when the vocabulary grows.

    Raises:
        ConfigError: if it pools something else.
    """
    embedding_of(clip)
    pool = pooling(tower_root(clip, "text"))
    if pool not in ("argmax", "eos") or getattr(tower_root(clip, "text"), "cls_emb", None) is not None:
        raise ConfigError(
            f"backbone: the vocabulary of this text tower cannot grow: it pools {pool!r}, not the end token of a text."
        )


@torch.no_grad()
def add_rows(clip: Clip, rows: torch.Tensor, end: int) -> None:
    """Add rows `(K, W)` to the token embedding, in place; the old rows keep their bits.

    From now on the tower pools the first end token: appended ids are higher than that of the end.

    Args:
        clip: the model; no rows may be taken out (`take_rows`).
        rows: initial values.
        end: the id of the end token.
    """
    require_end_pooling(clip)
    embedding = embedding_of(clip)
    old = embedding.weight
    embedding.weight = nn.Parameter(torch.cat([old, rows.to(old)]), requires_grad=old.requires_grad)
    embedding.num_embeddings = len(embedding.weight)
    pool_first_end(clip, end)


def pool_first_end(clip: Clip, end: int) -> None:
    """Let a text tower pool the first token with the id of the end."""
    root = tower_root(clip, "text")
    names = ("text_pool_type", "text_eos_id") if root is clip else ("pool_type", "eos_id")
    setattr(root, names[0], "eos")
    setattr(root, names[1], end)
    for part in {id(r): r for r in (root, clip)}.values():
        if hasattr(part, "vocab_size"):
            setattr(part, "vocab_size", len(embedding_of(clip).weight))  # noqa: B010
    prompt = getattr(embedding_of(clip), NAME, None)
    if isinstance(prompt, TextPrompt):
        prompt.pool, prompt.end_id = "eos", end


@torch.no_grad()
def take_rows(clip: Clip, ids: Sequence[int] | torch.Tensor) -> None:
    """Take the rows with these ids out of the table, as a parameter of its own: `token_embedding.rows`."""
    embedding = embedding_of(clip)
    chosen = torch.as_tensor(ids, dtype=torch.int64, device=embedding.weight.device)
    slots = torch.full((len(embedding.weight),), -1, dtype=torch.int32, device=embedding.weight.device)
    slots[chosen] = torch.arange(len(chosen), dtype=torch.int32, device=slots.device)
    embedding.__class__ = RowEmbedding
    embedding.rows = nn.Parameter(embedding.weight[chosen].clone())
    embedding.register_buffer("slots", slots)


@torch.no_grad()
def put_rows_back(clip: Clip) -> None:
    """Write rows that were taken out back into the table; without such rows, do nothing."""
    embedding = embedding_of(clip)
    if not isinstance(embedding, RowEmbedding):
        return
    taken = (embedding.slots >= 0).nonzero()[:, 0]
    embedding.weight[taken] = embedding.rows[embedding.slots[taken].long()]
    del embedding.rows, embedding.slots
    _as_plain(embedding)


def _as_plain(embedding: nn.Embedding) -> None:
    embedding.__class__ = nn.Embedding


def has_rows(clip: Clip) -> bool:
    """Whether some rows of the token embedding are taken out."""
    return isinstance(getattr(tower_root(clip, "text"), "token_embedding", None), RowEmbedding)
