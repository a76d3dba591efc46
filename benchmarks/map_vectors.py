"""The vectors of two real updates, for benchmarks/map.py: encoded once by the old and by the new model, then kept.

Each update is a safetensors file: `old/images`, `new/images` `(N, D)`, `old/texts`, `new/texts` `(M, D)`, and for each
text the group of its images (`text_groups`, `image_groups`), by which a found image is right or wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save

from everclip.config import resolve_config
from everclip.data.table import Table
from everclip.files import write_bytes_atomic
from everclip.learner.core import Learner
from everclip.scenarios.load import load_scenario

PACKS = ("caltech101/train", "food101/train", "imagenet_sample/all")
CAPTIONED = ("train", "val", "test", "unassigned")
STEPS = 120


@dataclass(frozen=True)
class Items:
    """Images (encoded) and texts; a text asks for the images of its group."""

    images: Sequence[bytes]
    image_groups: torch.Tensor
    texts: Sequence[str]
    text_groups: torch.Tensor


def drawings() -> Items:
    """Return every drawing of `emoji-time` with the names that ask for it."""
    scenario = load_scenario(resolve_config("emoji-time").scenario)
    tables: list[Table] = [task.train for task in scenario.tasks]
    tables += [s.data for s in scenario.eval_sets if s.kind == "retrieval"]
    tables += [table for table in (scenario.base,) if table is not None]
    images: dict[str, bytes] = {}
    names: list[str] = []
    for table in tables:
        captions = table.column("caption")
        for row, content in enumerate(table.contents()):
            if content not in images and captions[row]:
                images[content] = table.value("image", row)
                names.append(captions[row])
    groups = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Items(
        list(images.values()),
        torch.tensor([groups[name] for name in names]),
        list(groups),
        torch.arange(len(groups)),
    )


def photographs(packs: Path) -> Items:
    """Return photographs: a caption of flickr8k asks for its photograph, a name of a class for any of that class."""
    images: list[bytes] = []
    asked: list[tuple[str, str]] = []
    groups: list[str] = []
    for part in CAPTIONED:
        rows = pq.read_table(packs / f"flickr8k_1000_multilingual/{part}.parquet")
        for image, captions in zip(rows["image"].to_pylist(), rows["captions"].to_pylist(), strict=True):
            groups.append(f"photograph {len(images)}")
            asked += [(caption["text"], groups[-1]) for caption in captions if caption["lang"] == "en"]
            images.append(image)
    for name in PACKS:
        rows = pq.read_table(packs / f"{name}.parquet", columns=["image", "class_name"])
        images += rows["image"].to_pylist()
        groups += [f"a photo of a {value}" for value in rows["class_name"].to_pylist()]
    asked += [(name, name) for name in dict.fromkeys(groups) if name.startswith("a photo of")]
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return Items(
        images,
        torch.tensor([number[name] for name in groups]),
        [text for text, _ in asked],
        torch.tensor([number[group] for _, group in asked]),
    )


def learned(steps: int) -> Learner:
    """Return `builtin:tiny` after the emoji of 2016."""
    scenario = load_scenario(resolve_config("emoji-time").scenario)
    learner = Learner.create("builtin:tiny", "finetune", {"steps": steps, "batch_size": 64})
    learner.learn(scenario.tasks[0], show=False)
    return learner


def start(of: Learner) -> Learner:
    """Return the start model of a learner."""
    return Learner.create(of.method.backbone.config.name, "zero-shot")


def encode(old: Learner, new: Learner, items: Items) -> dict[str, torch.Tensor]:
    """Return the vectors of both models, and the groups."""
    found = {"image_groups": items.image_groups, "text_groups": items.text_groups}
    for name, learner in (("old", old), ("new", new)):
        for what, vectors in learner.encode(items.images, items.texts).items():
            found[f"{name}/{what}"] = vectors.contiguous()
    return found


def vectors(name: str, folder: Path, runs: Path) -> dict[str, torch.Tensor]:
    """Return the vectors of an update, encoded if the folder lacks them.

    Args:
        name: `emoji-year` (learned here), or the name of a stream and a run: `emoji:demo/finetune`,
            `photo:mini-mtil/order-I/finetune-s0` (needs EVERCLIP_PACKS).
        folder: keeps them.
        runs: the folder of finished runs.
    """
    path = folder / f"{name.replace('/', '-').replace(':', '-')}.safetensors"
    if not path.is_file():
        kind, _, run = name.partition(":")
        new = Learner.load(runs / run) if run else learned(STEPS)
        items = photographs(Path(os.environ["EVERCLIP_PACKS"])) if kind == "photo" else drawings()
        write_bytes_atomic(path, save(encode(start(new), new, items)))
    return load_file(path)
