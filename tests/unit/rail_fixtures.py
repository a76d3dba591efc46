"""Learners with RAIL on the two-layer CLIP, tasks for them, and what the tests read from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import LabelSpace
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.rail.base import Ridge
from everclip.methods.rail.method import Rail
from everclip.models.backbone import load_backbone
from micro import of_classes

FORMS: dict[str, dict[str, Any]] = {
    "sums": {"dimension": 200},
    "recursive": {"dimension": 200, "update": "recursive"},
    "no expansion": {"expansion": "none"},
    "fourier": {"dimension": 200, "expansion": "fourier"},
    "dual": {"form": "dual"},
}


def pictures(micro_folder: Path) -> Table:
    """Return 96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


def maker(micro_folder: Path) -> Callable[..., Learner]:
    """Return a function (training settings, **method settings) -> learner with RAIL on the two-layer CLIP."""

    def build(training: dict[str, Any] | None = None, name: str = "rail", **settings: Any) -> Learner:
        backbone = load_backbone(str(micro_folder / "model"))
        method = build_method(MethodConfig(name=name, settings=settings), backbone)
        given = {"steps": 1, "batch_size": 8, "device": "cpu", **(training or {})}
        return Learner(method, TrainingConfig(**given))

    return build


def head_of(learner: Learner) -> Ridge:
    method = learner.method
    assert isinstance(method, Rail)
    assert method.head is not None
    return method.head


def by_key(learner: Learner) -> torch.Tensor:
    """Return the weights with columns in the order of the classes' keys."""
    keys = [key for key, *_ in learner.method.structure()["classes"]]
    return head_of(learner).weights[:, sorted(range(len(keys)), key=keys.__getitem__)]


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


@torch.no_grad()
def features(learner: Learner, table: Table) -> torch.Tensor:
    backbone, store = learner.method.backbone, learner.store
    pixels = torch.stack([backbone.preprocess(store.get(table, i)) for i in range(len(table))])
    return learner.method.eval().encode_images(pixels)["embedding"]


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def feed(head: Ridge, x: torch.Tensor, labels: torch.Tensor, size: int) -> None:
    for start in range(0, len(x), size):
        head.add(x[start : start + size], labels[start : start + size])
    head.solve()


def spaces(data: Table) -> tuple[LabelSpace, torch.Tensor]:
    entries = tuple(e for i in range(6) for e in of_classes(data, i, i).classes or ())
    return LabelSpace(entries), torch.tensor([e.key in ("class-0", "class-1", "class-2") for e in entries])


def scored(
    learner: Learner, x: torch.Tensor, space: LabelSpace, bank: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and cosines; without a `bank` of its own with the names' embeddings."""
    method = learner.method.eval()
    with torch.inference_mode():
        names = method.class_bank(space)["embedding"] if bank is None else bank
        return method.class_scores({"embedding": x}, space, {"embedding": names}), x @ names.T
