"""Does a mixture with a vision-only tower heal blind pairs, and what does it cost? A CLIP and EfficientNet-Lite0.

Drawings: all drawings of every second emoji, with builtin:tiny. Photographs: test images of caltech101
and food101 and a sample of ImageNet, with builtin:photo; for captions, flickr8k. Each share of the CLIP is measured:

- blind pairs (cosine above 0.95 for the CLIP, below 0.6 for lite0) that are told apart by rank: their mixed cosine is
  at most the one that as many pairs exceed as exceed 0.95 for the CLIP alone. The pairs were found with the model that
  is mixed in, so this is expected; the next columns are not.
- image to image: the nearest other image is of the same class (photographs), or the same emoji (drawings);
- text to image, within the CLIP's shortlist of 50 for a text, ranked again by likeness to its best image: Recall@5,
  and Recall@1 with the three best images. Recall@1 with one cannot change. The texts are names of emoji (a hit is a
  drawing of the emoji), or first captions.

Percent with 95 % intervals (Wilson). "published pixels": lite0 gets pixels normalised for the CLIP, as the published
code does.

Run: EVERCLIP_PACKS=... python benchmarks/mixture.py --output benchmarks/MIXTURE.md
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from common import table
from PIL import Image

from everclip.data.builtin.emoji import drawings
from everclip.diagnosis.mining import ABOVE, MinedPairs, mine
from everclip.diagnosis.mixture import mix_pairs, mixed_cosines, reranked
from everclip.evaluation.statistics import wilson
from everclip.files import write_text_atomic
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.image_encoder import ImageEncoder, load_image_encoder

WEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.0)
SHORTLIST, SEEDS, BLOCK = 50, 3, 64
CLASSES = ("caltech101/test", "food101/test", "imagenet_sample/all")
CAPTIONS = (
    "flickr8k_1000_multilingual/test",
    "flickr8k_1000_multilingual/val",
    "flickr8k_1000_multilingual/train",
)


@dataclass(frozen=True)
class Collection:
    """Features of both towers `(N, D)`, `(N, E)`, the label of each image, and texts `(Q, D)` with their labels."""

    clip: torch.Tensor
    vision: torch.Tensor
    labels: torch.Tensor
    texts: torch.Tensor
    wanted: torch.Tensor


def encoded(encoder: ImageEncoder, files: Sequence[bytes]) -> torch.Tensor:
    """Return the features of images, block by block."""
    parts = []
    for start in range(0, len(files), BLOCK):
        opened = (Image.open(io.BytesIO(file)).convert("RGB") for file in files[start : start + BLOCK])
        parts.append(encoder.encode(torch.stack([encoder.transform(image) for image in opened])))
    return torch.cat(parts)


@torch.no_grad()
def of_texts(backbone: Backbone, texts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings of texts."""
    tokens = backbone.tokenise(list(texts))
    return torch.cat([backbone.encode_text(part) for part in tokens.split(BLOCK)])


def numbered(names: Iterable[str]) -> tuple[torch.Tensor, list[str]]:
    """Return the number of each name, and the names in order of their numbers."""
    listed = list(names)
    found = sorted(set(listed))
    place = {name: i for i, name in enumerate(found)}
    return torch.tensor([place[name] for name in listed]), found


def emoji(vision: ImageEncoder) -> Collection:
    """Return the drawings of every second emoji."""
    rows = drawings("en", named_only=True)
    rows = rows.filter(pc.invert(rows["shared"]))
    chosen = sorted(set(rows["name"].to_pylist()))[::2]
    rows = rows.filter(pc.is_in(rows["name"], pa.array(chosen)))
    files = rows["image"].to_pylist()
    labels, names = numbered(rows["name"].to_pylist())
    clip = load_image_encoder("builtin:tiny")
    texts = of_texts(load_backbone({"name": "builtin:tiny"}).eval(), names)
    return Collection(encoded(clip, files), encoded(vision, files), labels, texts, torch.arange(len(names)))


def photographs(vision: ImageEncoder, packs: Path) -> Collection:
    """Return photographs with classes; no texts."""
    files, names = [], []
    for name in CLASSES:
        rows = pq.read_table(packs / f"{name}.parquet", columns=["image", "class_name"])
        files += rows["image"].to_pylist()
        names += [f"{name.split('/')[0]}: {value}" for value in rows["class_name"].to_pylist()]
    labels, _ = numbered(names)
    clip = encoded(load_image_encoder("builtin:photo"), files)
    return Collection(clip, encoded(vision, files), labels, torch.empty(0, clip.shape[1]), labels[:0])


def captioned(vision: ImageEncoder, packs: Path) -> Collection:
    """Return photographs, each with its first English caption."""
    files, texts = [], []
    for name in CAPTIONS:
        rows = pq.read_table(packs / f"{name}.parquet", columns=["image", "captions"])
        files += rows["image"].to_pylist()
        texts += [next(c["text"] for c in own if c["lang"] == "en") for own in rows["captions"].to_pylist()]
    clip = encoded(load_image_encoder("builtin:photo"), files)
    backbone = load_backbone({"name": "builtin:photo"}).eval()
    labels = torch.arange(len(files))
    return Collection(clip, encoded(vision, files), labels, of_texts(backbone, texts), labels)


def share(hits: torch.Tensor) -> str:
    """Return a share in percent with its interval."""
    if not len(hits):
        return "-"
    right, count = int(hits.sum()), len(hits)
    interval = wilson(right, count)
    return f"{100 * right / count:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def told_apart(data: Collection, pairs: MinedPairs, weight: float) -> str:
    """Return the share of blind pairs that a mixture tells apart by rank."""
    if not len(pairs):
        return "-"
    found = mix_pairs(data.clip, data.vision, pairs, weight, ABOVE)
    return share(torch.arange(found.pairs) < found.apart)


def nearest(data: Collection, weight: float) -> torch.Tensor:
    """Return whether the nearest other image has the same label, for images whose label another image has."""
    cosines = mixed_cosines(data.clip, data.vision, weight).fill_diagonal_(-2)
    hits = data.labels[cosines.argmax(dim=1)] == data.labels
    return hits[torch.bincount(data.labels)[data.labels] > 1]


def recalled(data: Collection, weight: float, seeds: int, k: int) -> torch.Tensor:
    """Return whether an image that a text names is among the k best of the shortlist ranked again."""
    scores = data.texts @ torch.nn.functional.normalize(data.clip, dim=1).T
    order = reranked(scores, data.vision, weight, SHORTLIST, seeds)[:, :k]
    return (data.labels[order] == data.wanted[:, None]).any(dim=1)


def rows_of(name: str, data: Collection, weights: Sequence[float]) -> list[tuple[str, ...]]:
    """Return a row per share of the CLIP."""
    pairs = mine(data.clip, data.vision, limit=10**6)
    print(f"{name}: {len(data.labels):,} images, {len(pairs):,} blind pairs", flush=True)
    rows = []
    for weight in weights:
        texts = [recalled(data, weight, 1, 5), recalled(data, weight, SEEDS, 1)] if len(data.texts) else []
        rows.append(
            (
                name,
                f"{weight:g}",
                f"{len(data.labels):,}",
                f"{len(pairs):,}",
                told_apart(data, pairs, weight),
                share(nearest(data, weight)),
                *(share(hits) for hits in texts or [torch.empty(0)] * 2),
            )
        )
    return rows


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--output", type=Path, help="write the page to this file")
    given = words.parse_args()
    torch.set_num_threads(1)
    vision, packs = load_image_encoder("lite0"), Path(os.environ["EVERCLIP_PACKS"])
    published = vision.normalised_as(load_image_encoder("builtin:photo"))
    rows = rows_of("photographs", photographs(vision, packs), WEIGHTS)
    rows += rows_of("photographs, published pixels", photographs(published, packs), (0.7, 0.5, 0.0))
    rows += rows_of("captions", captioned(vision, packs), WEIGHTS)
    rows += rows_of("drawings", emoji(vision), WEIGHTS)
    header = (
        "collection",
        "share of the CLIP",
        "images",
        "blind pairs",
        "told apart",
        "nearest image: same class or emoji",
        "text to image, Recall@5",
        "Recall@1, three seeds",
    )
    assert __doc__ is not None
    text = f"# {__doc__.split(chr(10) * 2 + 'Run:')[0]}\n\n" + table("Mixtures", rows, header)
    print(text)
    if given.output is not None:
        write_text_atomic(given.output, text)


if __name__ == "__main__":
    main()
