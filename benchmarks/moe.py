"""MoE-Adapters against the frozen backbone that they stand in, and against computing every expert: ViT-B-16, E=22, k=2.

Processor seconds of one thread, alternating, so that a busy machine disturbs little; random weights, 224 px, context
77, 8 images and 20 prompts. A training step is forward, backward, clipping and AdamW; with the "whole context" it
computes the padding of class names too, as open_clip does (and so the frozen forward); both are told with and without.

Run: python benchmarks/moe.py                prints a table
     python benchmarks/moe.py --peak NAME    prints the peak memory of one of them in MB
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import processor_seconds, table

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, Past, Phase, Progress, Task
from everclip.data.table import Table
from everclip.methods.build import build_method
from everclip.methods.moe_adapters.method import MoeAdapters
from everclip.methods.trainable import decay_groups
from everclip.models.backbone import load_backbone
from everclip.models.modules.expert_bank import Bank
from everclip.models.modules.short_texts import needed_tokens, short_texts
from everclip.training.modes import set_modes
from everclip.training.optim import build_optimiser

BATCH, CLASSES, ROUNDS = 8, 20, 3
FROZEN, STEP, WHOLE, DENSE = "frozen forward", "training step", "step, whole context", "step, every expert"
CUT = "frozen forward, padding cut"
IMAGES, ADAPTED = "frozen, images", "experts, images"

Act = Callable[[], None]


def learning() -> MoeAdapters:
    """Return the method in the middle of its first task, with experts that do something."""
    torch.set_num_threads(1)
    backbone = load_backbone(BackboneConfig(name="ViT-B-16", weights="random"), 0)
    config = MethodConfig(name="moe-adapters", settings={"label_smoothing": 0.2})
    method = build_method(config, backbone)
    assert isinstance(method, MoeAdapters)
    entries = tuple(ClassEntry(str(i), f"thing number {i}", ("a photo of a {}.",)) for i in range(CLASSES))
    task = Task(0, "things", _nothing(), classes=entries)
    method.begin_task(task, Past())
    method.phases(task, Past())
    for name, parameter in method.named_parameters():
        if ".experts.bank.up" in name:
            parameter.data.normal_(0, 1e-3)
    return method


def _nothing() -> Table:
    import pyarrow as pa

    ids = ["0", "1"]
    return Table(pa.table({"id": ids, "image_id": ids, "image": [b"", b""], "class_key": ids}))


def actions(method: MoeAdapters, wanted: list[str]) -> dict[str, Act]:
    """Return what is measured, by name."""
    draw = torch.Generator().manual_seed(0)
    tokens = method.backbone.tokenise([f"a photo of a thing number {i}." for i in range(CLASSES)])
    columns: dict[str, Any] = {
        "image": torch.randn(BATCH, 3, 224, 224, generator=draw),
        "class_tokens": tokens,
        "class_length": None,
        "label": torch.arange(BATCH),
        "id": [str(i) for i in range(BATCH)],
    }
    names = [n for n, p in method.named_parameters() if p.requires_grad]
    phase = Phase("bench", {}, decay_groups(names, method))
    optimiser = build_optimiser(method, phase, TrainingConfig(steps=1, lr=1e-5, weight_decay=0.0))
    needed, grouped = needed_tokens(method.backbone.clip, tokens), Bank.grouped

    def step(short: bool = True, dense: bool = False) -> None:
        columns["class_length"] = needed if short else None
        Bank.grouped = _dense if dense else grouped  # type: ignore[method-assign]
        set_modes(method, training=True)
        losses = method({"main": columns}, Progress(0, "bench", 0, 0, 1, 0))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_([method.get_parameter(n) for n in names], 1.0)
        optimiser.step()
        Bank.grouped = grouped  # type: ignore[method-assign]
        set_modes(method, training=False)

    def images(route: int | None) -> None:
        with torch.inference_mode():
            method.encode_images(columns["image"], route)

    def frozen(short: bool = False) -> None:
        with torch.inference_mode(), short_texts(method.backbone.clip, needed if short else None):
            method.backbone.encode_image(columns["image"])
            method.backbone.encode_text(tokens)

    def plain() -> None:
        with torch.inference_mode():
            method.backbone.encode_image(columns["image"])

    set_modes(method, training=False)
    known: dict[str, Act] = {
        FROZEN: frozen,
        CUT: lambda: frozen(short=True),
        STEP: step,
        WHOLE: lambda: step(short=False),
        DENSE: lambda: step(dense=True),
        IMAGES: plain,
        ADAPTED: lambda: images(0),
    }
    return {name: known[name] for name in wanted}


def _dense(bank: Bank, tokens: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    spread = gates.new_zeros(len(gates), bank.count).scatter(1, chosen, gates)
    return bank.dense(tokens, spread)


def peak(name: str) -> float:
    """Return the peak memory in MB of one of them, in this process."""
    act = actions(learning(), [name])[name]
    for _ in range(2):
        act()
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> str:
    """Measure and return the table."""
    method = learning()
    steps = processor_seconds(actions(method, [FROZEN, CUT, STEP, WHOLE, DENSE]), ROUNDS)
    seen = processor_seconds(actions(method, [IMAGES, ADAPTED]), 3 * ROUNDS)
    aims = {STEP: "<= 2.25 (authors' code: 2.69)", ADAPTED: "<= 1.05"}
    rows = []
    like = statistics.median(own / frozen for own, frozen in zip(steps[STEP], steps[CUT], strict=True))
    for times, base in ((steps, FROZEN), (seen, IMAGES)):
        for name, spent in times.items():
            ratio = statistics.median(own / frozen for own, frozen in zip(spent, times[base], strict=True))
            command = [sys.executable, __file__, "--peak", name]
            memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            row = (
                name,
                f"{statistics.median(spent):.2f} s",
                f"{ratio:.2f}",
                f"{memory:,.0f} MB",
                aims.get(name, ""),
            )
            rows.append(row)
    rows.append(("training step against the frozen forward, padding cut in both", "", f"{like:.2f}", "", ""))
    header = ("what", "processor time", "against frozen", "peak memory", "aim")
    title = f"Mixture of experts (benchmarks/moe.py): ViT-B-16, E=22, k=2, {BATCH} images, {CLASSES} prompts"
    return table(title, rows, header)


if __name__ == "__main__":
    print(peak(sys.argv[2]) if "--peak" in sys.argv else main())
