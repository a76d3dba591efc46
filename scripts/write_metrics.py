"""Write docs/metrics.md anew from the registered metrics: `python scripts/write_metrics.py`."""

from __future__ import annotations

from pathlib import Path

from everclip.metrics import PACKAGE, Kind, Metric, metrics

FILE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

HEAD = """# Metrics

Every number that a result holds: what it means, its formula under the name the field uses, its unit, which direction is
better, and where its interval comes from. [How to read a result](results.md) says what rows, columns and protocols are;
[CONTRIBUTING](../CONTRIBUTING.md#add-a-metric) shows how to add a metric. This page is written from the code by
`python scripts/write_metrics.py`.

In formulas, `R[i,j]` is the score after task `i` on task `j`, both from 1; `R0` is row 0, before training; `T` is the
number of tasks and the last row; `n` are numbers of test images; `K` and `Z` are scores of known and retention sets.
A score is a share in [0, 1] that is shown in percent; a difference of shares is shown in points. A metric is null as
soon as one cell that its formula names is missing.
"""

PARTS: tuple[tuple[Kind, str, str], ...] = (
    (
        "stream",
        "Over the rows of a run",
        "In `metrics` of `results.json`. The sets are the tasks, what was `known` before the stream, the `retention`\n"
        "suite, and old and new together. Those marked with * are columns of `everclip compare`.",
    ),
    (
        "classification",
        "Of a set with classes",
        "In `rows[i].scores[set][protocol]`; a scenario may name one as its headline.",
    ),
    (
        "retrieval",
        "Of a set of images with captions",
        "In `rows[i].scores[set][protocol]`, `{k}` for each of `evaluation.top_k`; a scenario may name one as its\n"
        "headline.",
    ),
    (
        "pairs",
        "Of a set of image pairs",
        "In `rows[i].scores[set][protocol]`; see [blind pairs](blind-pairs.md#mmvp-vlm-and-other-pair-sets).",
    ),
    (
        "multi-image",
        "Of a set of questions about several images",
        "In `rows[i].scores[set][protocol]`; see [several images](multi-image.md).",
    ),
    (
        "spaces",
        "Of images and texts in the embedding space",
        "In `rows[i].representation`. What compares with another row is null at row 0. How far the spaces turn from\n"
        "row to row, and how far they turn apart, is the spatial disorder of Mod-X.",
    ),
    (
        "space",
        "Of either tower's space",
        "In `rows[i].representation`, as `image_NAME` and `text_NAME`. What compares with another row is null at\n"
        "row 0. `rows[i].rotations` counts the images and the texts by how far they moved since the row before.",
    ),
    ("cost", "Of a run's cost", "From `cost`."),
)

TABLE = "| name | meaning | formula | unit | better | interval |\n|---|---|---|---|---|---|"

INTERVALS = {
    "wilson": "Wilson",
    "bootstrap": "bootstrap over items",
    "none": "",
}


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for kind, title, text in PARTS:
        parts.append(f"## {title}\n\n{text}\n\n{TABLE}")
        parts.append("\n".join(_row(entry) for entry in metrics(kind).values() if _built_in(entry)) + "\n")
    return "\n".join(parts)


def _built_in(entry: Metric) -> bool:
    return entry.function.__module__.startswith(f"{PACKAGE}.")


def _row(entry: Metric) -> str:
    star = " *" if entry.kind == "stream" and entry.shown is not None else ""
    cells = [
        f"`{entry.name}`{star}",
        entry.meaning,
        f"`{entry.formula}`",
        entry.unit,
        entry.direction,
        INTERVALS[entry.interval],
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    """Write the file."""
    FILE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
