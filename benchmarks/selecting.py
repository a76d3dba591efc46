"""What a selector costs per picture, against the image tower of the frozen model: same pictures, alternating,
CPU time of one thread.

ViT-B-16 with random weights, 224 px, batch 8, eleven tasks of 100 classes; the selectors hold random values, which cost
what learned ones do. `early` features come with the model's own pass; the others need a pass of their own, timed here.

Run: python benchmarks/selecting.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import ratio, table
from torch.nn.functional import normalize

from everclip.config import BackboneConfig
from everclip.contracts import ClassEntry, Past, Task
from everclip.data.table import Table
from everclip.methods.selectors.base import Selector
from everclip.methods.selectors.build import build
from everclip.methods.selectors.energy import Energy
from everclip.methods.selectors.features import early_tokens
from everclip.methods.selectors.gaussian import Gaussian
from everclip.models.backbone import Backbone, load_backbone

BATCH, ROUNDS, TASKS, CLASSES = 8, 3, 11, 100
VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian, early": {"kind": "gaussian"},
    "gaussian, early, full covariance": {"kind": "gaussian", "covariance": "shared"},
    "autoencoder, early": {"kind": "autoencoder"},
    "ddas (AlexNet)": {"kind": "ddas", "weights": "random"},
    "energy": {"kind": "energy"},
}


def grown(settings: dict[str, Any], backbone: Backbone) -> Selector[Any]:
    """Return a selector that holds eleven tasks."""
    selector = build(settings, backbone)
    assert selector is not None
    names = tuple(ClassEntry(str(i), f"thing {i}") for i in range(CLASSES))
    nothing: Table = None  # type: ignore[assignment]
    if isinstance(selector, Energy):  # encoding its 1,100 texts is no part of a decision
        selector.tasks = [(number, str(number)) for number in range(TASKS)]
        selector.limits = torch.ones(1 + TASKS, 3, dtype=torch.float64)
        for number in range(TASKS):
            selector._keep(1 + number, normalize(torch.randn(CLASSES, 512), dim=1))
        return selector.eval()
    for number in range(TASKS):
        selector.begin_task(backbone, Task(number, f"task {number}", nothing, classes=names), Past())
    for density in selector.densities.values() if isinstance(selector, Gaussian) else ():
        density.solve(0.1)  # type: ignore[operator]
    for name, values in selector.named_buffers():
        if name.endswith("present"):
            values.fill_(1)
    selector.limits[1:, 1:] = 1
    return selector.eval()


def chooser(selector: Selector[Any], backbone: Backbone, pixels: torch.Tensor) -> Callable[[], None]:
    """Return a function that decides once, from what a method has at hand."""
    tokens = None if selector.early is None else early_tokens(backbone.clip, pixels, selector.early)

    @torch.inference_mode()
    def choose() -> None:
        at_hand = tokens is not None
        found = selector.features_of(tokens) if at_hand else selector.features(backbone, pixels)  # type: ignore[arg-type]
        selector.decide(found)

    return choose


def main() -> str:
    """Measure and return the table."""
    backbone = load_backbone(BackboneConfig(name="ViT-B-16", weights="random"), 0).requires_grad_(False)
    pixels = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def model() -> None:
        backbone.encode_image(pixels)

    selectors = {name: grown(settings, backbone) for name, settings in VARIANTS.items()}
    steps = {"": model} | {name: chooser(held, backbone, pixels) for name, held in selectors.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS + 1):
        for name in list(steps) if number % 2 == 0 else list(reversed(steps)):
            started = time.process_time()  # one thread: whatever else runs here takes nothing from it
            steps[name]()
            if number:
                times[name].append(time.process_time() - started)
    rows = []
    for name, selector in selectors.items():
        middle, low, high = ratio(times[name], times[""])
        tensors = [*selector.parameters(), *selector.buffers()]
        fixed = sum(t.numel() for t in selector.extractor.parameters())
        each = (sum(t.numel() for t in tensors) - fixed) / TASKS
        spent = f"{1000 * statistics.median(times[name]) / BATCH:.2f} ms"
        shown = f"{100 * middle:.2f} % ({100 * low:.2f}-{100 * high:.2f})"
        rows.append((name, spent, shown, f"{each / 1e6:.2f} M", f"{fixed / 1e6:.2f} M"))
    header = (
        "selector",
        "a picture (CPU time)",
        "of the image tower's time",
        "values per task",
        "fixed values",
    )
    title = (
        f"Selectors (benchmarks/selecting.py): ViT-B-16, batch {BATCH}, {TASKS} tasks of {CLASSES} classes"
    )
    return table(title, rows, header)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main())
