"""A training step in bf16 on a processor: torch's fused attention against that which everclip takes, in turn.

Run: python benchmarks/attention.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from common import processor_seconds, table
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch.nn.functional import scaled_dot_product_attention

from everclip.training.precision import Precision, unfused_attention

ROUNDS, BATCH = 5, 8
TOKENS = (19, 50, 77, 197, 257, 577)
HEADS, HEAD_WIDTH = 12, 64


def attention_alone(tokens: int, kernel: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
    """Return a function that computes attention forward and backward."""
    shape = (BATCH, HEADS, tokens, HEAD_WIDTH)
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def run() -> None:
        with kernel():
            scaled_dot_product_attention(query, key, value).float().sum().backward()

    return run


def tower_step(form: str, fused: bool) -> Callable[[], None]:
    """Return a function that takes a step of an image tower of 48 pixels (patches of 8, half of them dropped)."""
    shape = CLIPVisionCfg(image_size=48, patch_size=8, width=192, layers=6, head_width=64, patch_dropout=0.5)
    torch.manual_seed(0)
    tower = _build_vision_tower(256, shape).train()
    pixels = torch.randn(64, 3, 48, 48)
    precision = Precision(form, torch.device("cpu"))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16) if fused else precision.autocast():
            answer = tower(pixels)
        answer.float().square().sum().backward()

    return run


def main() -> str:
    """Measure and return the table."""
    torch.set_num_threads(1)
    rows: list[tuple[str, ...]] = []
    pairs = [
        (
            f"attention alone, {t} tokens",
            attention_alone(t, nullcontext),
            attention_alone(t, unfused_attention),
            BATCH,
        )
        for t in TOKENS
    ]
    pairs.append(("image tower, 48 px, width 192", tower_step("bf16", True), tower_step("bf16", False), 64))
    for name, fused, unfused, size in pairs:
        times = processor_seconds({"fused": fused, "unfused": unfused}, ROUNDS)
        before, after = (statistics.median(times[which]) for which in ("fused", "unfused"))
        rows.append(
            (name, f"{before / size * 1e3:.2f} ms", f"{after / size * 1e3:.2f} ms", f"{before / after:.2f}")
        )
    title = f"Attention in bf16 (benchmarks/attention.py): {HEADS} heads of {HEAD_WIDTH}, batch {BATCH}"
    return table(title, rows, ("what", "fused, an image", "everclip, an image", "ratio"))


if __name__ == "__main__":
    print(main())
