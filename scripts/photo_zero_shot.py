"""Measure a small CLIP for photographs, zero-shot with templates, on packs of photographs and captions.

    python scripts/photo_zero_shot.py MODEL --packs FOLDER [--weights FILE]

Prints JSON: value, 95 % interval, n and chance of

* accuracy on each pack of classes, each group of classes by itself: `known` (listed for this pack in the card of
  `photo_pretrain`), `unseen` (not listed for it), `never_named` (listed for no pack under this name), `all`;
* Recall@5 both ways among all 1,000 images of `flickr8k_1000_multilingual` with five English captions each: for all,
  for those of the training side, whose captions a text tower may have read, and for the others (`held_out`).

`scripts/build_photo.py` measures the packed weights with these functions.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from teachers import Features
from text_tower import encoded
from whitening import unit

from everclip.config import BackboneConfig
from everclip.evaluation.statistics import Interval, bootstrap_mean, wilson
from everclip.models.backbone import Backbone, load_backbone

TEMPLATES = ("{}", "a photo of a {}", "a picture of the {}", "a close-up photo of a {}")
CLASSES = ("cifar10", "cifar100", "caltech101", "food101")
CAPTIONS = "flickr8k_1000_multilingual"
PER_IMAGE, TOP, BATCH = 5, 5, 200
Figures = dict[str, Any]
"""`value`, `interval`, `n` and `chance`, and what they are of."""


def pack(folder: Path, columns: Sequence[str]) -> pa.Table:
    """Return the rows of all files of a pack, whatever their split."""
    return pa.concat_tables(
        [pq.read_table(path, columns=list(columns)) for path in sorted(folder.glob("*.parquet"))]
    )


@torch.no_grad()
def image_embeddings(backbone: Backbone, images: Sequence[bytes]) -> Features:
    """Return the unit embeddings `(N, D)` of images."""
    parts = []
    for start in range(0, len(images), BATCH):
        opened = (Image.open(io.BytesIO(data)).convert("RGB") for data in images[start : start + BATCH])
        parts.append(backbone.encode_image(torch.stack([backbone.preprocess(image) for image in opened])))
    return torch.cat(parts).numpy()


def class_embeddings(backbone: Backbone, names: Sequence[str]) -> Features:
    """Return the mean unit embedding of each name over the templates `(C, D)`."""
    return unit(sum(encoded(backbone, [form.format(name) for name in names]).numpy() for form in TEMPLATES))


def figures(value: float, interval: Interval, n: int, chance: float) -> Figures:
    """Return a share with its interval, with four digits."""
    ends = [round(interval.low, 4), round(interval.high, 4)]
    return {"value": round(value, 4), "interval": ends, "n": n, "chance": round(chance, 4)}


def share(right: npt.NDArray[np.bool_], chance: float) -> Figures:
    """Return the share of hits, with Wilson's interval."""
    hits = int(right.sum())
    return figures(hits / len(right), wilson(hits, len(right)), len(right), chance)


def by_classes(
    images: Features, texts: Features, truth: npt.NDArray[np.int64], chosen: Collection[int]
) -> npt.NDArray[np.bool_]:
    """Return whether each image of the chosen classes is nearest to its own among these."""
    among = np.array(sorted(chosen))
    rows = np.isin(truth, among)
    found: npt.NDArray[np.bool_] = among[(images[rows] @ texts[among].T).argmax(axis=1)] == truth[rows]
    return found


def recalls(images: Features, texts: Features, asked: npt.NDArray[np.bool_]) -> dict[str, Figures]:
    """Return Recall@5 both ways among all images and texts.

    Args:
        images: `(N, D)`.
        texts: `(PER_IMAGE * N, D)`; rows `PER_IMAGE * i` and the following belong to image `i`.
        asked: `(N,)`: the images that count, with their texts.
    """
    count, numbers = len(images), np.flatnonzero(asked)
    own = np.arange(len(texts)) // PER_IMAGE
    chosen = asked[own]
    scores = images[asked] @ texts.T
    to_text = (own[np.argsort(-scores, axis=1)[:, :TOP]] == numbers[:, None]).any(axis=1)
    scores = texts[chosen] @ images.T
    to_image = (np.argsort(-scores, axis=1)[:, :TOP] == own[chosen, None]).any(axis=1)
    # At random, TOP texts hold none of the image's own so often:
    missed = math.comb(len(texts) - PER_IMAGE, TOP) / math.comb(len(texts), TOP)
    # The five captions of an image are alike: images are drawn anew, not captions.
    wide = bootstrap_mean(to_image, seed=0, groups=own[chosen])
    return {
        "image_to_text_r5": share(to_text, 1 - missed),
        "text_to_image_r5": figures(float(to_image.mean()), wide, len(to_image), min(1.0, TOP / count)),
    }


def class_pack(
    backbone: Backbone, folder: Path, known: Collection[str], named: Collection[str]
) -> dict[str, Figures]:
    """Return the accuracies on a pack of classes.

    Args:
        backbone: the model.
        folder: of the pack.
        known: classes of this pack whose photographs the model has learned.
        named: names of all classes whose photographs it has learned, in small letters.
    """
    table = pack(folder, ["image", "class_name"])
    names = sorted(set(table["class_name"].to_pylist()))
    truth = np.array([names.index(name) for name in table["class_name"].to_pylist()])
    images, texts = image_embeddings(backbone, table["image"].to_pylist()), class_embeddings(backbone, names)
    groups = {
        "unseen": [i for i, name in enumerate(names) if name not in known],
        "never_named": [i for i, name in enumerate(names) if name not in known and name.lower() not in named],
        "known": [i for i, name in enumerate(names) if name in known],
        "all": range(len(names)),
    }
    return {
        key: {
            **share(by_classes(images, texts, truth, group), 1 / len(group)),
            "classes": len(group),
        }
        for key, group in groups.items()
        if len(group)
    }


def caption_pack(backbone: Backbone, folder: Path) -> dict[str, dict[str, Figures]]:
    """Return Recall@5 on a pack of images with captions: all, those of the training side, and the others."""
    table = pack(folder, ["image", "captions", "split"])
    texts = [
        text
        for row in table["captions"].to_pylist()
        for text in [caption["text"] for caption in row if caption["lang"] == "en"][:PER_IMAGE]
    ]
    trained = np.array([side == "train" for side in table["split"].to_pylist()])
    sides = {"all": np.ones_like(trained), "train": trained, "held_out": ~trained}
    images, read = image_embeddings(backbone, table["image"].to_pylist()), encoded(backbone, texts).numpy()
    return {key: recalls(images, read, asked) for key, asked in sides.items() if asked.any()}


def zero_shot(backbone: Backbone, packs: Path) -> dict[str, Any]:
    """Return the figures of a model on every pack."""
    learned = json.loads((packs / "photo_pretrain/card.json").read_text(encoding="utf-8"))["classes"]
    named = {name.lower() for names in learned.values() for name in names}
    found: dict[str, Any] = {
        name: class_pack(backbone, packs / name, learned.get(name, ()), named) for name in CLASSES
    }
    return found | {CAPTIONS: caption_pack(backbone, packs / CAPTIONS)}


def main() -> None:
    """Print the figures of a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a backbone, as everclip names it")
    parser.add_argument("--weights", help="a file of weights for it")
    parser.add_argument("--packs", type=Path, required=True, help="folder of the packs and of photo_pretrain")
    options = parser.parse_args()
    backbone = load_backbone(BackboneConfig(name=options.model, weights=options.weights), 0).eval()
    print(json.dumps(zero_shot(backbone, options.packs), indent=1))


if __name__ == "__main__":
    main()
