"""Does a mixture with a vision-only tower heal blind pairs, and what does it cost? A CLIP and EfficientNet-Lite0.

Drawings: all drawings of every second emoji, with builtin:tiny. Photographs: test images of caltech101
and food101 and a sample of ImageNet, with builtin:photo; for captions, flickr8k. Each share of the CLIP is measured:

- blind pairs (near for the CLIP, far for a vision-only model) that are told apart by rank: their mixed cosine is at
  most the one that as many pairs exceed as are near for the CLIP alone. Pairs that lite0 found are told apart by a
  mixture with lite0 as expected. Pairs that EfficientNet-Lite2 found are a test: it is not mixed in.
- image to image: the nearest other image is of the same class (photographs), or the same emoji (drawings);
- text to image, within the CLIP's shortlist of 50 for a text, ranked again by likeness to its best image: Recall@5,
  and Recall@1 with the three best images. Recall@1 with one cannot change. The texts are names of emoji (a hit is a
  drawing of the emoji), or first captions.

Percent with 95 % intervals (Wilson); behind a share, its difference to the CLIP alone in points (paired bootstrap over
images or texts; what is not resolved is in brackets). "published pixels": lite0 gets pixels normalised for the CLIP, as
the published code does.

Run: EVERCLIP_PACKS=... python benchmarks/mixture.py --output benchmarks/MIXTURE.md
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from common import table
from PIL import Image
from safetensors.torch import load_file, save_file

from everclip.data.builtin.emoji import drawings
from everclip.diagnosis.mining import ABOVE, BELOW, MinedPairs, mine
from everclip.diagnosis.mixture import mix_pairs, mixed_cosines, reranked
from everclip.evaluation.statistics import paired_bootstrap, wilson
from everclip.files import write_text_atomic
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.image_encoder import ImageEncoder, load_image_encoder

BOUNDS = ((ABOVE, BELOW), (0.85, 0.5))
"""The published ones, and those at which `builtin:photo` has pairs."""
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
    """Images and texts.

    Attributes:
        clip, vision, judge: features of the CLIP `(N, D)`, of the model that is mixed in `(N, E)`, and of the one that
            only finds pairs `(N, F)`.
        labels: number of the class of each image `(N,)`.
        texts, wanted: embeddings `(Q, D)`, and the class that each text names `(Q,)`.
    """

    clip: torch.Tensor
    vision: torch.Tensor
    judge: torch.Tensor
    labels: torch.Tensor
    texts: torch.Tensor
    wanted: torch.Tensor


def encoded(encoder: ImageEncoder, files: Sequence[bytes]) -> torch.Tensor:
    """Return the features of images, block by block; a second run reads those of the first."""
    key = hashlib.sha256(f"{encoder.fingerprint} {encoder.notes}".encode())
    for file in files:
        key.update(hashlib.sha256(file).digest())
    kept = Path("runs/mixture") / f"{key.hexdigest()}.safetensors"
    if kept.is_file():
        return load_file(kept)["features"]
    parts = []
    for start in range(0, len(files), BLOCK):
        opened = (Image.open(io.BytesIO(file)).convert("RGB") for file in files[start : start + BLOCK])
        parts.append(encoder.encode(torch.stack([encoder.transform(image) for image in opened])))
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": torch.cat(parts).contiguous()}, kept)
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


def emoji(vision: ImageEncoder, judge: ImageEncoder) -> Collection:
    """Return the drawings of every second emoji."""
    rows = drawings("en", named_only=True)
    rows = rows.filter(pc.invert(rows["shared"]))
    chosen = sorted(set(rows["name"].to_pylist()))[::2]
    rows = rows.filter(pc.is_in(rows["name"], pa.array(chosen)))
    files = rows["image"].to_pylist()
    labels, names = numbered(rows["name"].to_pylist())
    clip = load_image_encoder("builtin:tiny")
    texts = of_texts(load_backbone({"name": "builtin:tiny"}).eval(), names)
    features = (encoded(encoder, files) for encoder in (clip, vision, judge))
    return Collection(*features, labels, texts, torch.arange(len(names)))


def photographs(vision: ImageEncoder, judge: ImageEncoder, packs: Path) -> Collection:
    """Return photographs with classes; no texts."""
    files, names = [], []
    for name in CLASSES:
        rows = pq.read_table(packs / f"{name}.parquet", columns=["image", "class_name"])
        files += rows["image"].to_pylist()
        names += [f"{name.split('/')[0]}: {value}" for value in rows["class_name"].to_pylist()]
    labels, _ = numbered(names)
    clip = encoded(load_image_encoder("builtin:photo"), files)
    others = (encoded(encoder, files) for encoder in (vision, judge))
    return Collection(clip, *others, labels, torch.empty(0, clip.shape[1]), labels[:0])


def captioned(vision: ImageEncoder, judge: ImageEncoder, packs: Path) -> Collection:
    """Return photographs, each with its first English caption."""
    files, texts = [], []
    for name in CAPTIONS:
        rows = pq.read_table(packs / f"{name}.parquet", columns=["image", "captions"])
        files += rows["image"].to_pylist()
        texts += [next(c["text"] for c in own if c["lang"] == "en") for own in rows["captions"].to_pylist()]
    clip = encoded(load_image_encoder("builtin:photo"), files)
    backbone = load_backbone({"name": "builtin:photo"}).eval()
    labels = torch.arange(len(files))
    others = (encoded(encoder, files) for encoder in (vision, judge))
    return Collection(clip, *others, labels, of_texts(backbone, texts), labels)


def share(hits: torch.Tensor) -> str:
    """Return a share in percent with its interval."""
    if not len(hits):
        return "-"
    right, count = int(hits.sum()), len(hits)
    interval = wilson(right, count)
    return f"{100 * right / count:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def against(hits: torch.Tensor, alone: torch.Tensor) -> str:
    """Return a share as `share` does, and its difference to the CLIP alone on the same items."""
    if not len(hits) or hits is alone:
        return share(hits)
    change = paired_bootstrap(hits.double().numpy(), alone.double().numpy(), seed=0)
    text = f"{100 * change.mean:+.1f}"
    return f"{share(hits)} {text if change.resolved else f'({text})'}"


def told_apart(data: Collection, pairs: MinedPairs, weight: float, above: float) -> str:
    """Return the share of blind pairs that a mixture tells apart by rank, whichever model found them."""
    if not len(pairs):
        return "-"
    vision = torch.nn.functional.normalize(data.vision.double(), dim=1)
    cosines = (vision[pairs.left] * vision[pairs.right]).sum(dim=1).numpy()
    found = mix_pairs(data.clip, data.vision, replace(pairs, reference=cosines), weight, above)
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


def blind_rows(name: str, data: Collection, weights: Sequence[float]) -> list[tuple[str, ...]]:
    """Return a row per pair of bounds and share of the CLIP: how many blind pairs are told apart."""
    rows = []
    for above, below in BOUNDS:
        lite0, lite2 = (
            mine(data.clip, other, above, below, limit=10**6) for other in (data.vision, data.judge)
        )
        # A pair that both found says little of its own: the judge's pairs are those that lite0 did not find.
        known = set(zip(lite0.left.tolist(), lite0.right.tolist(), strict=True))
        pairs = zip(lite2.left.tolist(), lite2.right.tolist(), strict=True)
        own = lite2.chosen(np.array([i for i, pair in enumerate(pairs) if pair not in known], dtype=np.int64))
        print(
            f"{name}: {len(data.labels):,} images; {len(lite0):,}, {len(lite2):,}, {len(own):,} pairs",
            flush=True,
        )
        for weight in weights:
            apart = (
                f"{told_apart(data, of, weight, above)} of {len(of):,}" if len(of) else "no pair"
                for of in (lite0, lite2, own)
            )
            rows.append((name, f"{above:g}, {below:g}", f"{weight:g}", *apart))
    return rows


def search_rows(name: str, data: Collection, weights: Sequence[float]) -> list[tuple[str, ...]]:
    """Return a row per share of the CLIP: image search and text search."""
    rows = []
    none = torch.empty(0)
    alone: list[torch.Tensor] = []
    for weight in weights:
        hits = [
            nearest(data, weight),
            recalled(data, weight, 1, 5) if len(data.texts) else none,
            recalled(data, weight, SEEDS, 1) if len(data.texts) else none,
        ]
        alone = alone or hits
        compared = (against(new, old) for new, old in zip(hits, alone, strict=True))
        rows.append((name, f"{weight:g}", f"{len(data.labels):,}", *compared))
    return rows


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--output", type=Path, help="write the page to this file")
    given = words.parse_args()
    torch.set_num_threads(1)
    vision, judge = load_image_encoder("lite0"), load_image_encoder("lite2")
    packs = Path(os.environ["EVERCLIP_PACKS"])
    published = vision.normalised_as(load_image_encoder("builtin:photo"))
    few = (1.0, 0.7, 0.5, 0.0)
    blind, search = [], []
    for name, data, weights in (
        ("photographs", photographs(vision, judge, packs), WEIGHTS),
        ("photographs, published pixels", photographs(published, judge, packs), few),
        ("captions", captioned(vision, judge, packs), WEIGHTS),
        ("drawings", emoji(vision, judge), WEIGHTS),
    ):
        blind += blind_rows(name, data, weights)
        search += search_rows(name, data, weights)
    assert __doc__ is not None
    text = f"# {__doc__.split(chr(10) * 2 + 'Run:')[0]}\n\n" + table(
        "Blind pairs that are told apart",
        blind,
        ("collection", "bounds", "share of the CLIP", "found by lite0", "found by lite2", "by lite2 alone"),
    )
    text += "\n" + table(
        "Search",
        search,
        (
            "collection",
            "share of the CLIP",
            "images",
            "nearest image: same class or emoji",
            "text to image, Recall@5",
            "Recall@1, three seeds",
        ),
    )
    print(text)
    if given.output is not None:
        write_text_atomic(given.output, text)


if __name__ == "__main__":
    main()
