"""Mixtures of the tokens of two image towers (MMVP, Tong et al. 2024, arXiv 2401.06209, section 4).

Both take patch tokens `(B, N, W)` without a class token (`ImageEncoder.tokens`). Each tower gets pixels that are
normalised its own way: in the published code the vision-only tower gets those of the CLIP (`ImageEncoder.normalised_as`
gives that). That code assumes equal numbers of patches; here they are checked, and `resampled` makes them equal.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import interpolate


class TokenAdapter(nn.Module):
    """Two linear maps with a GELU between them, from the width of a tower to that of the mixture.

    Args:
        width: W, of the tower.
        out: D, of the mixture, and of the hidden units as published.
    """

    def __init__(
        self, width: int, out: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, out, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.c_proj = nn.Linear(out, out, device=device, dtype=dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `(B, N, D)` for tokens `(B, N, W)`."""
        adapted: torch.Tensor = self.c_proj(self.act(self.c_fc(tokens)))
        return adapted


class AdditiveMixture(nn.Module):
    """Additive mixture of features: `adapter(alpha F_clip + (1 - alpha) F_vision)`, one adapter for both.

    Args:
        width: W, of both towers.
        out: D, of the result.
        alpha: the CLIP's share: 1 is the CLIP alone.

    Raises:
        ValueError: if alpha is not in [0, 1].
    """

    def __init__(
        self,
        width: int,
        out: int,
        alpha: float = 0.5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; expected 0 (vision-only tower) to 1 (CLIP)")
        self.width, self.alpha = width, alpha
        self.adapter = TokenAdapter(width, out, device, dtype)

    def forward(self, clip: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """Return `(B, N, D)` for tokens `(B, N, W)` of both towers.

        Raises:
            ValueError: if numbers of tokens or widths differ.
        """
        _require_tokens(clip, vision, "an additive mixture")
        if clip.shape[2] != vision.shape[2] or clip.shape[2] != self.width:
            raise ValueError(
                f"widths of tokens are {clip.shape[2]} and {vision.shape[2]}, expected {self.width} for both, since an "
                "additive mixture adds them; InterleavedMixture takes different widths"
            )
        mixed: torch.Tensor = self.adapter(self.alpha * clip + (1 - self.alpha) * vision)
        return mixed


class InterleavedMixture(nn.Module):
    """Interleaved mixture of features: each tower has an adapter, and their tokens take turns (`interleaved`).

    Args:
        clip_width, vision_width: W of each tower.
        out: D, of the result.
    """

    def __init__(
        self,
        clip_width: int,
        vision_width: int,
        out: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.clip_adapter = TokenAdapter(clip_width, out, device, dtype)
        self.vision_adapter = TokenAdapter(vision_width, out, device, dtype)

    def forward(self, clip: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """Return `(B, 2 N, D)` for tokens `(B, N, W)` of both towers.

        Raises:
            ValueError: if numbers of tokens differ, or a width is not that of its adapter.
        """
        for name, tokens, adapter in (
            ("CLIP", clip, self.clip_adapter),
            ("vision-only tower", vision, self.vision_adapter),
        ):
            if tokens.shape[-1] != adapter.c_fc.in_features:
                raise ValueError(f"{name}: width {tokens.shape[-1]}, expected {adapter.c_fc.in_features}")
        _require_tokens(clip, vision, "an interleaved mixture")
        return interleaved(self.clip_adapter(clip), self.vision_adapter(vision))


def interleaved(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Z `(B, 2 N, D)` with `Z[2i] = X[i]` and `Z[2i + 1] = Y[i]`, for X, Y `(B, N, D)`.

    Raises:
        ValueError: if the shapes differ.
    """
    _require_tokens(first, second, "interleaving")
    if first.shape != second.shape:
        raise ValueError(
            f"tokens have the shapes {tuple(first.shape)} and {tuple(second.shape)}; expected equal ones"
        )
    return torch.stack([first, second], dim=2).flatten(1, 2)


def separated(mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return X and Y `(B, N, D)` of `interleaved`, exactly.

    Raises:
        ValueError: for an odd number of tokens.
    """
    if mixed.dim() != 3 or mixed.shape[1] % 2:
        raise ValueError(f"tokens of shape {tuple(mixed.shape)}; expected (B, 2 N, D)")
    return mixed[:, ::2], mixed[:, 1::2]


def resampled(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return tokens `(B, count, W)` of a square grid of another size, by bilinear interpolation.

    Args:
        tokens: `(B, N, W)`, row by row of a square grid, without a class token.
        count: the number of tokens wanted.

    Raises:
        ValueError: if N or `count` is no square, so that there is no such grid.
    """
    if tokens.dim() != 3:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}; expected (B, N, W)")
    counts = (tokens.shape[1], count)
    sides = [math.isqrt(max(number, 0)) for number in counts]
    if any(side * side != number or not side for side, number in zip(sides, counts, strict=True)):
        raise ValueError(
            f"{tokens.shape[1]} tokens cannot become {count}: both must be a square grid without a class token"
        )
    if sides[0] == sides[1]:
        return tokens
    grid = tokens.transpose(1, 2).reshape(*tokens.shape[::2], sides[0], sides[0])
    scaled = interpolate(
        grid, size=(sides[1], sides[1]), mode="bilinear", align_corners=False, antialias=True
    )
    return scaled.flatten(2).transpose(1, 2)


def _require_tokens(clip: torch.Tensor, vision: torch.Tensor, what: str) -> None:
    """Refuse tokens of other shapes than `(B, N, W)`, or of different B or N."""
    if clip.dim() != 3 or vision.dim() != 3 or clip.shape[0] != vision.shape[0]:
        raise ValueError(
            f"tokens have the shapes {tuple(clip.shape)} and {tuple(vision.shape)}; expected (B, N, W) for each tower, "
            "of the same images"
        )
    if clip.shape[1] != vision.shape[1]:
        raise ValueError(
            f"{clip.shape[1]} tokens of the CLIP and {vision.shape[1]} of the vision-only tower; {what} needs equal "
            "numbers: choose an image size with as many patches, or use `resampled`"
        )
