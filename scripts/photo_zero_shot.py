"""Measure a small CLIP for photographs, zero-shot with templates, on packs of photographs and captions.

    python scripts/photo_zero_shot.py MODEL --packs FOLDER [--weights FILE]

A class is known if the card of `photo_pretrain` lists it for this pack, else unseen. Prints JSON: per pack the accuracy
among its unseen classes, its known classes and all its classes, and R@5 both ways among all images of
`flickr8k_1000_multilingual` with five English captions each; with half the width of a 95 % interval, in percent.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path

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
from everclip.models.backbone import Backbone, load_backbone

TEMPLATES = ("{}", "a photo of a {}", "a picture of the {}", "a close-up photo of a {}")
CLASSES = ("cifar10", "cifar100", "caltech101", "food101")
CAPTIONS = "flickr8k_1000_multilingual"
PER_IMAGE, TOP, BATCH = 5, 5, 200


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


def rate(right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the share of hits and half of its 95 % interval, in percent."""
    share = float(right.mean())
    half = 1.96 * (share * (1 - share) / len(right)) ** 0.5
    return {"percent": round(100 * share, 1), "half": round(100 * half, 1)}


def by_classes(
    images: Features, texts: Features, truth: npt.NDArray[np.int64], chosen: Collection[int]
) -> npt.NDArray[np.bool_]:
    """Return whether each image of the chosen classes is nearest to its own among these."""
    among = np.array(sorted(chosen))
    rows = np.isin(truth, among)
    found: npt.NDArray[np.bool_] = among[(images[rows] @ texts[among].T).argmax(axis=1)] == truth[rows]
    return found


def recalls(images: Features, texts: Features) -> dict[str, dict[str, float]]:
    """Return R@5 both ways; texts `PER_IMAGE * i` and the following belong to image `i`."""
    own = np.arange(len(texts)) // PER_IMAGE
    scores = images @ texts.T
    to_text = own[np.argsort(-scores, axis=1)[:, :TOP]] == np.arange(len(images))[:, None]
    to_image = np.argsort(-scores.T, axis=1)[:, :TOP] == own[:, None]
    return {"image_to_text_r5": rate(to_text.any(axis=1)), "text_to_image_r5": rate(to_image.any(axis=1))}


def class_pack(backbone: Backbone, folder: Path, known: Collection[str]) -> dict[str, dict[str, float]]:
    """Return the accuracies on a pack of classes."""
    table = pack(folder, ["image", "class_name"])
    names = sorted(set(table["class_name"].to_pylist()))
    truth = np.array([names.index(name) for name in table["class_name"].to_pylist()])
    images, texts = image_embeddings(backbone, table["image"].to_pylist()), class_embeddings(backbone, names)
    groups = {
        "unseen": [i for i, name in enumerate(names) if name not in known],
        "known": [i for i, name in enumerate(names) if name in known],
        "all": range(len(names)),
    }
    return {key: rate(by_classes(images, texts, truth, group)) for key, group in groups.items() if len(group)}


def caption_pack(backbone: Backbone, folder: Path) -> dict[str, dict[str, float]]:
    """Return R@5 on a pack of images with captions."""
    table = pack(folder, ["image", "captions"])
    texts = [
        text
        for row in table["captions"].to_pylist()
        for text in [caption["text"] for caption in row if caption["lang"] == "en"][:PER_IMAGE]
    ]
    return recalls(image_embeddings(backbone, table["image"].to_pylist()), encoded(backbone, texts).numpy())


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
    card = json.loads((options.packs / "photo_pretrain/card.json").read_text(encoding="utf-8"))["classes"]
    found = {name: class_pack(backbone, options.packs / name, card.get(name, ())) for name in CLASSES}
    found[CAPTIONS] = caption_pack(backbone, options.packs / CAPTIONS)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
