"""Make what builtin:tiny learns from: its drawings, the features they must get, and a start with a fitted text tower.

    python scripts/build_drawings.py --sources build/drawings --fetch --out build/drawings.parquet
    python scripts/build_clipart.py --sources build/clipart --fetch --out build/clipart.parquet
    python scripts/tiny_targets.py --further build/drawings.parquet --clipart build/clipart.parquet \\
        --wordnet FOLDER --out build/tiny
    everclip run scripts/tiny.yaml output=runs/tiny          (and so on: scripts/build_tiny.py)

The joint space has two parts. The larger is what EfficientNet-Lite0 sees: its features of the drawings, whitened by
their covariance within an emoji, then the main directions between emoji. The smaller is what MiniLM reads: the main
directions of its embeddings of names and keywords. A name gets the mean over the drawings of its emoji; any other
text gets what a ridge regression from MiniLM predicts for it. A picture without a name (clip art) gets what Lite0 sees,
and for the second part what a ridge regression predicts from that. The teachers need the extra `[build]`; they are no
part of everclip. Clip art is for the second part of the training (scripts/tiny_more.yaml).

Writes into the folder: `drawings.parquet` (the training drawings), `clipart.parquet`, `features.parquet`
(`image_id` -> feature), `start.safetensors` (random image tower, fitted text tower) and `targets.json` (what was
done, with figures).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from teachers import Features, TextEmbedder, image_features, lite, minilm
from text_tower import SCALE, TextGroup, encoded, fit_text_tower
from whitening import class_means, unit, whitening

from everclip import write_feature_table
from everclip.config import BackboneConfig
from everclip.data.builtin.emoji import drawings
from everclip.models.backbone import load_backbone

LAST_YEAR = 2015
SEEN, READ = 128, 64
"""Dimensions of the part that Lite0 sees and of the part that MiniLM reads."""

READ_WEIGHT = 0.6
"""Length of the second part where the first has length 1."""

SHRINKAGE = 0.1
"""Share of the mean variance that is added to the covariance within an emoji."""

RIDGE = 3.0
NAME_TEMPLATES = (
    "{}", "{}", "{}", "an emoji of {}", "a drawing of {}", "{}, an emoji", "a picture of {}", "{} emoji",
)  # fmt: skip
WORD_TEMPLATES = ("{}", "an emoji of {}", "a drawing of {}")


@dataclasses.dataclass(frozen=True)
class Targets:
    """The joint space.

    Attributes:
        names: name of each known emoji.
        bank: its unit embedding `(C, D)`.
        images: unit embedding of each drawing `(N, D)`.
        weights, centre: the ridge regression from MiniLM embeddings, `(E, D)` and `(E,)`.
        seeing, seeing_centre: the map from Lite0's features to the first part, `(F, SEEN)` and `(F,)`.
        guessing: the ridge regression from the first part to the second, `(SEEN, READ)`.
        accuracy: share of held-out drawings whose nearest name, by Lite0 alone, is their own.
    """

    names: list[str]
    bank: Features
    images: Features
    weights: Features
    centre: Features
    seeing: Features
    seeing_centre: Features
    guessing: Features
    accuracy: float

    def of_texts(self, embeddings: Features) -> Features:
        """Return the unit embeddings that the regression predicts for texts with these MiniLM embeddings."""
        return unit((embeddings - self.centre) @ self.weights)

    def of_pictures(self, features: Features) -> Features:
        """Return the unit embeddings of pictures without a name, from Lite0's features of them `(N, F)`."""
        seen = unit((features - self.seeing_centre) @ self.seeing)
        return unit(np.concatenate([seen, READ_WEIGHT * (seen @ self.guessing)], axis=1))


def whitened(
    features: Features, labels: npt.NDArray[np.int64], count: int, width: int
) -> tuple[Features, Features]:
    """Return the map `(F, width)` and the centre `(F,)` that whiten features within a class.

    The covariance within a class is shrunk towards a multiple of the identity; of the whitened space the `width`
    main directions between the classes' means are kept.
    """
    means = class_means(features, labels, count)
    root, _ = whitening(features - means[labels], SHRINKAGE)
    centre = means.mean(axis=0)
    _, _, directions = np.linalg.svd((means - centre) @ root, full_matrices=False)
    return np.asarray(root @ directions[:width].T), np.asarray(centre)


def make_targets(
    table: pa.Table, held_out: pa.Table, features: Features, held: Features, embed: TextEmbedder
) -> Targets:
    """Make the joint space from the training drawings.

    Args:
        table: the training drawings.
        held_out: drawings that only measure it.
        features: Lite0's features of the training drawings.
        held: those of the held-out drawings.
        embed: MiniLM.
    """
    names = sorted(set(table["name"].to_pylist()))
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[name] for name in table["name"].to_pylist()])
    mapping, centre = whitened(features, labels, len(names), SEEN)
    seen, seen_held = unit((features - centre) @ mapping), unit((held - centre) @ mapping)
    bank = unit(class_means(seen, labels, len(names)))
    truth = np.array([number[name] for name in held_out["name"].to_pylist()])
    accuracy = float(((seen_held @ bank.T).argmax(axis=1) == truth).mean())
    read = meanings(table, names, embed)
    guessing = ridge(seen, read[labels])
    bank = unit(np.concatenate([bank, READ_WEIGHT * read], axis=1))
    images = unit(np.concatenate([seen, READ_WEIGHT * read[labels]], axis=1))
    texts = embed(names)
    middle = texts.mean(axis=0)
    return Targets(
        names, bank, images, ridge(texts - middle, bank), middle, mapping, centre, guessing, accuracy
    )


def ridge(inputs: Features, outputs: Features) -> Features:
    """Return the matrix `(I, O)` of the ridge regression of outputs on inputs."""
    gram = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(gram, inputs.T @ outputs), dtype=np.float32)


def meanings(table: pa.Table, names: Sequence[str], embed: TextEmbedder) -> Features:
    """Return the main directions of MiniLM's embeddings of each name with its keywords `(C, READ)`."""
    words = dict(zip(table["name"].to_pylist(), table["keywords"].to_pylist(), strict=True))
    flat = sorted({k for name in names for k in words[name] or ()})
    place = {word: i for i, word in enumerate(flat)}
    own, keyed = embed(names), embed(flat)
    both = [
        row + (0.5 * keyed[[place[k] for k in words[name]]].mean(axis=0) if words[name] else 0)
        for row, name in zip(own, names, strict=True)
    ]
    described = unit(np.stack(both))
    described = described - described.mean(axis=0)
    _, _, directions = np.linalg.svd(described, full_matrices=False)
    return unit(described @ directions[:READ].T)


def text_groups(
    targets: Targets, table: pa.Table, embed: TextEmbedder, words: Sequence[str]
) -> list[TextGroup]:
    """Return names, keywords and common words with their targets."""
    number = {name: i for i, name in enumerate(targets.names)}
    rows: dict[str, set[int]] = {}
    for name, keywords in zip(table["name"].to_pylist(), table["keywords"].to_pylist(), strict=True):
        for word in keywords or ():
            rows.setdefault(word, set()).add(number[name])
    keys = sorted(rows)
    pictured = unit(np.stack([targets.bank[sorted(rows[word])].mean(axis=0) for word in keys]))
    keyed = unit(pictured + targets.of_texts(embed(keys)))
    known = [word for word in words if word not in number and word not in rows]
    return [
        TextGroup(targets.names, torch.from_numpy(targets.bank), 0.5, NAME_TEMPLATES, names=True),
        TextGroup(keys, torch.from_numpy(keyed), 0.25, NAME_TEMPLATES),
        TextGroup(known, torch.from_numpy(targets.of_texts(embed(known))), 0.25, WORD_TEMPLATES),
    ]


def training_drawings(further: Path | None) -> tuple[pa.Table, pa.Table]:
    """Return the drawings to learn from and the held-out ones, both of emoji known up to 2015."""
    known = drawings("en", named_only=True)
    known = known.filter(pc.less_equal(known["year"], LAST_YEAR))
    held_out = known.filter(known["held_out"])
    own = known.filter(pc.invert(known["held_out"]))
    if further is not None:
        other = pq.read_table(further).select(own.column_names).cast(own.schema)
        own = pa.concat_tables([own, other])
    return own, held_out


def pixels(table: pa.Table) -> npt.NDArray[np.uint8]:
    """Return the drawings `(N, 64, 64, 3)`."""
    images = (Image.open(io.BytesIO(data)).convert("RGB") for data in table["image"].to_pylist())
    return np.stack([np.asarray(image) for image in images])


def common_words(folder: Path) -> list[str]:
    """Return the words and phrases whose uses WordNet's authors counted in texts, sorted: about 22,000.

    Raises:
        FileNotFoundError: if `cntlist.rev` of Debian's `wordnet-base` is missing.
    """
    lines = (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines()
    return sorted({line.split("%")[0].replace("_", " ") for line in lines})


def main() -> None:
    """Write drawings, features, start weights and a record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--further", type=Path, help="drawings of scripts/build_drawings.py")
    parser.add_argument("--clipart", type=Path, help="pictures of scripts/build_clipart.py")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's data files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000, help="steps of the text tower")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table, held_out = training_drawings(options.further)
    cache = options.out / "cache"
    teacher, embed = lite(0), minilm(cache)
    features, held = (image_features(teacher, pixels(t), cache=cache) for t in (table, held_out))
    targets = make_targets(table, held_out, features, held, embed)
    pq.write_table(table, options.out / "drawings.parquet", compression="zstd")
    keys, rows, clipart = table["image_id"].to_pylist(), targets.images, 0
    if options.clipart is not None:
        more = pq.read_table(options.clipart)
        pq.write_table(more, options.out / "clipart.parquet", compression="zstd")
        unnamed = targets.of_pictures(image_features(teacher, pixels(more), cache=cache))
        keys, rows, clipart = keys + more["image_id"].to_pylist(), np.concatenate([rows, unnamed]), len(more)
    write_feature_table(options.out / "features.parquet", keys, rows)
    backbone = load_backbone(BackboneConfig(name="builtin:tiny", weights="random"), 0)
    groups = text_groups(targets, table, embed, common_words(options.wordnet))
    loss = fit_text_tower(backbone, groups, options.steps)
    with torch.no_grad():
        backbone.clip.logit_scale.fill_(float(np.log(SCALE)))
    save_file(backbone.clip.state_dict(), options.out / "start.safetensors")
    texts = encoded(backbone, targets.names)
    own = float((texts * torch.from_numpy(targets.bank)).sum(dim=1).mean())
    record = {
        "drawings": {
            style: len(table.filter(pc.equal(table["style"], style)))
            for style in sorted(set(table["style"].to_pylist()))
        },
        "names": len(targets.names),
        "clipart": clipart,
        "texts": [len(g.texts) for g in groups],
        "teacher_accuracy_on_held_out": round(targets.accuracy, 4),
        "text_loss": round(loss, 4),
        "cosine_of_names": round(own, 4),
        "text_steps": options.steps,
    }
    (options.out / "targets.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
