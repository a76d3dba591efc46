"""Make what builtin:photo learns from: the features that photographs must get, and a start with a fitted text tower.

    python scripts/photo_targets.py --photos FOLDER --captions FILE --wordnet FOLDER --out build/photo
    EVERCLIP_PACKS=... everclip run scripts/photo.yaml output=runs/photo       (and so on: scripts/build_photo.py)
    python scripts/photo_targets.py ... --go-on --steps 2400

The joint space (`scripts/joint_space.py`) comes from two teachers: EfficientNet-Lite2 sees the photographs, MiniLM
reads the texts. A class that the photographs show gets the mean of its photographs, a class of ImageNet its row of
the classifier, any other text lies among these by its likeness to their names. The teachers need the extra `[build]`;
they are no part of everclip.

With `--go-on` the text tower of builtin:photo is trained further, with more words, and all weights of builtin:photo are
written to `text.safetensors`; the rest stays.

Writes into the folder: `features.parquet` (`id` -> feature), `start.safetensors` (random image tower, fitted text
tower), `space.npz` (the joint space) and `targets.json` (what was done, with figures).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from joint_space import JointSpace, make_space, named
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image
from safetensors.torch import save_file
from teachers import (
    Features,
    ImageTeacher,
    TextEmbedder,
    class_weights,
    fast,
    image_features,
    lite,
    minilm,
    wordnet,
)
from text_tower import SCALE, TextGroup, encoded, fit_text_tower
from timm.data import ImageNetInfo
from tiny_targets import common_words
from whitening import unit

from everclip import write_feature_table
from everclip.config import BackboneConfig
from everclip.data.builtin.emoji import emoji
from everclip.models.backbone import Backbone, load_backbone

ARCHITECTURE = Path(__file__).resolve().parents[1] / "src/everclip/models/builtin/photo"
WIDTH = 256
SIDE = 64
CHUNK = 2000
"""Photographs per file of the cache."""

FEW = 20
"""A class with fewer photographs is one of ImageNet's, shown once: the classifier knows it better."""

GLOSS_WEIGHT = 0.3
TEMPLATES = (
    "{}", "a photo of a {}", "a picture of the {}", "a close-up photo of a {}", "a small photo of a {}",
)  # fmt: skip
WORD_TEMPLATES = ("{}", "{}", "a photo of a {}", "a picture of a {}")
TEXT_BATCH = 128
NAMES, NAMES_LATER = 0.4, 0.25
"""Share of the known names in a batch of texts; the smaller one if the text tower goes on."""

WORDS_LATER = 0.45
"""Share of the words if it goes on: unseen classes are among them. At first, all further kinds have equal shares."""

LATER_RATE = 1e-3
"""Learning rate of the text tower if it goes on."""

MAX_GLOSS = 60
"""Longer glosses, in characters, are left out."""


def photographs(folder: Path) -> pa.Table:
    """Return the rows `id`, `image`, `class_name` of all Parquet files of a folder."""
    tables = [
        pq.read_table(path, columns=["id", "image", "class_name"])
        for path in sorted(folder.glob("*.parquet"))
    ]
    return pa.concat_tables(tables)


def squashed(images: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Return the images `(N, 64, 64, 3)`, as the model sees them."""
    opened = (Image.open(io.BytesIO(data)).convert("RGB") for data in images)
    return np.stack([np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in opened])


def chunks(rows: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Return the rows in pieces, each of which the cache keeps by itself."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def photo_features(teacher: ImageTeacher, images: Sequence[bytes], cache: Path) -> Features:
    """Return the teacher's features of photographs; what a stopped call has done is kept."""
    return np.concatenate([image_features(teacher, squashed(part), cache=cache) for part in chunks(images)])


def labelled(class_names: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the names of classes with many photographs, sorted, and each photograph's label; -1: another class."""
    counts: dict[str, int] = {}
    for name in class_names:
        counts[name] = counts.get(name, 0) + 1
    names = sorted(name for name, count in counts.items() if count >= FEW)
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number.get(name, -1) for name in class_names])


def read_names(names: Sequence[str], embed: TextEmbedder) -> Features:
    """Return the mean embedding of each name over the templates."""
    return np.asarray(np.mean([embed([t.format(name) for name in names]) for t in TEMPLATES], axis=0))


def lemmas_and_glosses() -> tuple[list[list[str]], list[str]]:
    """Return the names that WordNet gives each class of ImageNet, and the names with their definition."""
    info = ImageNetInfo("imagenet-1k")
    numbers = range(len(IMAGENET_CLASSNAMES))
    lemmas = [info.index_to_description(k).split(", ") for k in numbers]
    return lemmas, [info.index_to_description(k, detailed=True) for k in numbers]


def joint_space(table: pa.Table, features: Features, embed: TextEmbedder, classifier: Features) -> JointSpace:
    """Make the joint space from the classifier of ImageNet and the photographs with a label."""
    names, labels = labelled(table["class_name"].to_pylist())
    _, glosses = lemmas_and_glosses()
    read, described = read_names(IMAGENET_CLASSNAMES, embed), embed(glosses)
    middle, middle_described = read.mean(axis=0), described.mean(axis=0)
    both = unit(read - middle) + GLOSS_WEIGHT * unit(described - middle_described)
    # The name keeps its own length and centre: only its direction moves towards the gloss.
    read = middle + unit(both) * np.linalg.norm(read - middle, axis=1, keepdims=True)
    return make_space(classifier, read, features, labels, read_names(names, embed), WIDTH)


def known_names(table: pa.Table) -> dict[str, int]:
    """Return the row in the bank of each name that the photographs or ImageNet give."""
    lemmas, _ = lemmas_and_glosses()
    found: dict[str, int] = {}
    for row, (name, own) in enumerate(zip(IMAGENET_CLASSNAMES, lemmas, strict=True)):
        for word in (name, own[0]):
            found.setdefault(word, row)
    names, _ = labelled(table["class_name"].to_pylist())
    return found | {name: len(IMAGENET_CLASSNAMES) + i for i, name in enumerate(names)}


def further_texts(folder: Path, known: dict[str, int]) -> dict[str, list[str]]:
    """Return common nouns with names and keywords of emoji (`words`), and short definitions (`glosses`)."""
    common = set(common_words(folder))
    nouns = [synset for synset in wordnet(folder) if synset.part == "noun"]
    words = {lemma for synset in nouns for lemma in synset.lemmas if lemma in common}
    for row in emoji().select(["name_en", "keywords_en"]).to_pylist():
        words |= {text for text in (row["name_en"], *(row["keywords_en"] or ())) if text}
    glosses = {s.gloss.split(";")[0] for s in nouns if set(s.lemmas) & common}
    return {
        "words": sorted(words - set(known)),
        "glosses": sorted(gloss for gloss in glosses if len(gloss) <= MAX_GLOSS),
    }


def english_captions(path: Path) -> list[str]:
    """Return the English captions of a pack with the column `captions` (`lang`, `text`)."""
    rows = pq.read_table(path, columns=["captions"])["captions"].to_pylist()
    return sorted({caption["text"] for row in rows for caption in row if caption["lang"] == "en"})


def text_groups(
    space: JointSpace,
    known: dict[str, int],
    further: dict[str, list[str]],
    embed: TextEmbedder,
    later: bool = False,
) -> list[TextGroup]:
    """Return all texts with their targets: known names by their place in the bank, the others by MiniLM.

    A softmax goes over the known names. `later`: with the shares of a text tower that goes on.
    """
    names = sorted(known)
    places = torch.from_numpy(space.bank[[known[n] for n in names]])
    groups = [TextGroup(names, places, NAMES_LATER if later else NAMES, TEMPLATES, names=True)]
    texts = {kind: found for kind, found in further.items() if found}
    shares = further_shares(list(texts), later)
    for kind, found in texts.items():
        targets = torch.from_numpy(space.of_texts(embed(found)))
        forms = WORD_TEMPLATES if kind == "words" else ("{}",)
        plain = [text.replace("{", "(").replace("}", ")") for text in found]
        groups.append(TextGroup(plain, targets, shares[kind], forms))
    return groups


def further_shares(kinds: Sequence[str], later: bool) -> dict[str, float]:
    """Return the share of each further kind of texts in a batch."""
    if later and "words" in kinds and len(kinds) > 1:
        rest = (1 - NAMES_LATER - WORDS_LATER) / (len(kinds) - 1)
        return {kind: WORDS_LATER if kind == "words" else rest for kind in kinds}
    return dict.fromkeys(kinds, (1 - (NAMES_LATER if later else NAMES)) / len(kinds))


def go_on(groups: Sequence[TextGroup], steps: int, path: Path) -> dict[str, float]:
    """Train the text tower of builtin:photo further, write all its weights, and return figures."""
    backbone = load_backbone(BackboneConfig(name=str(ARCHITECTURE)), 0)
    loss = fit_text_tower(backbone, groups, steps, batch=TEXT_BATCH, lr=LATER_RATE)
    save_file(backbone.clip.state_dict(), path)
    return {"text_steps": steps, "text_loss": round(loss, 4), **cosines(backbone, groups)}


def cosines(backbone: Backbone, groups: Sequence[TextGroup]) -> dict[str, float]:
    """Return the mean cosine of the known names to their places."""
    own = encoded(backbone, [f"a photo of a {name}" for name in groups[0].texts])
    return {"cosine_of_names": round(float((own * groups[0].targets).sum(dim=1).mean()), 4)}


def write_start(groups: Sequence[TextGroup], steps: int, path: Path) -> dict[str, float]:
    """Fit the text tower, write the weights to start from, and return figures."""
    backbone = load_backbone(BackboneConfig(name=str(ARCHITECTURE), weights="random"), 0)
    loss = fit_text_tower(backbone, groups, steps, batch=TEXT_BATCH)
    with torch.no_grad():
        backbone.clip.logit_scale.fill_(float(np.log(SCALE)))
    save_file(backbone.clip.state_dict(), path)
    return {"text_steps": steps, "text_loss": round(loss, 4), **cosines(backbone, groups)}


def main() -> None:
    """Write features, start weights, the space and a record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of Parquet files: id, image, class_name"
    )
    parser.add_argument(
        "--captions", type=Path, help="Parquet file with captions, of which only the texts are used"
    )
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's data files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500, help="steps of the text tower")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the image teacher (default: fp32)"
    )
    parser.add_argument("--go-on", action="store_true", help="train the text tower of builtin:photo further")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.out / "cache"
    table, embed, teacher = photographs(options.photos), minilm(cache), lite(2)
    classifier = class_weights(teacher)
    features = photo_features(fast(teacher, options.precision), table["image"].to_pylist(), cache)
    space = joint_space(table, features, embed, classifier)
    known = known_names(table)
    further = further_texts(options.wordnet, known)
    if options.captions is not None:
        further["captions"] = english_captions(options.captions)
    groups = text_groups(space, known, further, embed, later=options.go_on)
    record: dict[str, object] = {"texts": [len(group.texts) for group in groups]}
    if options.go_on:
        record |= go_on(groups, options.steps, options.out / "text.safetensors")
        (options.out / "text.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(record))
        return
    images = space.of_images(features)
    write_feature_table(options.out / "features.parquet", table["id"].to_pylist(), images)
    np.savez(options.out / "space.npz", **vars(space))
    names, labels = labelled(table["class_name"].to_pylist())
    seen = labels >= 0
    record |= {
        "photographs": len(table),
        "teacher_precision": options.precision,
        "classes_with_photographs": len(names),
        "teacher_accuracy_on_them": round(named(images[seen], space.bank[-len(names) :], labels[seen]), 4),
    }
    record |= write_start(groups, options.steps, options.out / "start.safetensors")
    (options.out / "targets.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
