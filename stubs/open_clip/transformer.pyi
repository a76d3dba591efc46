"""Types of what everclip uses of `open_clip.transformer`, which has none of its own; read by mypy alone."""

from collections.abc import Sequence

from torch import Tensor, nn

class QuickGELU(nn.Module): ...

class ResidualAttentionBlock(nn.Module):
    attn: nn.MultiheadAttention
    mlp: nn.Sequential
    ln_1: nn.LayerNorm
    ln_2: nn.LayerNorm
    ls_1: nn.Module
    ls_2: nn.Module

class Transformer(nn.Module):
    width: int
    layers: int
    batch_first: bool
    resblocks: Sequence[ResidualAttentionBlock]  # a ModuleList

class VisionTransformer(nn.Module):
    transformer: Transformer
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    ln_pre: nn.Module
    ln_post: nn.Module
    proj: nn.Parameter | None
    attn_pool: nn.Module | None
    def _embeds(self, x: Tensor) -> Tensor: ...
    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

class TextTransformer(nn.Module):
    transformer: Transformer
    token_embedding: nn.Embedding
    context_length: int
