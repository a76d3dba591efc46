"""Task prompts of CoLeCLIP beside the frozen image tower that they read: ViT-B-16, eleven tasks, 8 images.

Processor seconds of one thread, in turn forwards and backwards; random weights, 224 px. Training the newest prompt is
forward and backward of the picture side; `one masked sequence` is the published form, which computes the same numbers.

Run: python benchmarks/coleclip.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from common import processor_seconds, table

from everclip.config import BackboneConfig
from everclip.models.backbone import load_backbone
from everclip.models.modules import task_prompts
from everclip.models.modules.towers import tower_of

TASKS, BATCH, ROUNDS = 11, 8, 5
FROZEN, READING, LEARNING, MASKED = (
    "frozen tower",
    "with eleven prompts",
    "training the newest prompt",
    "the same as one masked sequence",
)


def actions() -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    clip = (
        load_backbone(BackboneConfig(name="ViT-B-16", weights="random"), 0).clip.eval().requires_grad_(False)
    )
    pixels = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tower, apart = tower_of(clip, "image"), task_prompts._plain
    task_prompts.insert(tower)
    prompts = task_prompts.task_prompts_of(clip)
    for _ in range(TASKS):
        prompts.add(0, next(clip.parameters()))
    newest = prompts.tokens[-1]

    def reading() -> None:
        with torch.inference_mode():
            task_prompts.encode(tower, pixels)

    def frozen() -> None:
        with torch.inference_mode():
            clip.visual(pixels)

    def learning(masked: bool = False) -> None:
        task_prompts._plain = (lambda block: False) if masked else apart
        prompts.requires_grad_(False)
        newest.requires_grad_(True)
        torch.autograd.grad(task_prompts.encode(tower, pixels)[1].square().sum(), newest)
        prompts.requires_grad_(False)
        task_prompts._plain = apart

    return {FROZEN: frozen, READING: reading, LEARNING: learning, MASKED: lambda: learning(masked=True)}


def main() -> str:
    """Measure and return the table."""
    torch.set_num_threads(1)
    times = processor_seconds(actions(), ROUNDS)
    rows = []
    for name, spent in times.items():
        ratio = statistics.median(own / base for own, base in zip(spent, times[FROZEN], strict=True))
        rows.append((name, f"{statistics.median(spent):.2f} s", f"{ratio:.2f}"))
    title = f"Task prompts (benchmarks/coleclip.py): ViT-B-16, {TASKS} tasks, {BATCH} images"
    return table(title, rows, ("what", "processor time", "against frozen"))


if __name__ == "__main__":
    print(main())
