"""Write every measured figure of README, docs and cards from the file that a command wrote.

    python scripts/figures.py                  # write them anew; `make figures`
    python scripts/figures.py --check          # list those that differ; exit code 1 if there are any
    python scripts/figures.py --demo runs/demo # keep what `everclip demo` measured in benchmarks/demo.json

A page marks a figure with comments that a reader does not see (with `;`, since `|` would end the cell of a table):

    <!-- figure: cell adapters ; lora ; time against full -->0.69<!-- /figure -->

Sources of a figure:

* `cell SCRIPT ; ROW ; COLUMN`: a cell of the table that `benchmarks/SCRIPT.py` printed into benchmarks/RESULTS.md;
* `json FILE ; KEY ; FORMAT`: a value of a JSON file of the repository, KEY with dots, FORMAT as of `str.format`;
* `demo table` and `demo sentence`: the README's table and the sentence under it, from benchmarks/demo.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/RESULTS.md"
DEMO = ROOT / "benchmarks/demo.json"
MARK = re.compile(r"(<!-- figure: (?P<source>.*?) -->)(?P<text>.*?)(<!-- /figure -->)", re.DOTALL)
COLUMNS = {
    "known": "names known emoji",
    "new": "names new emoji",
    "find_known": "finds known emoji",
    "find_new": "finds new emoji",
    "retention": "retention (subgroups)",
}
MEASURED = ("known", "new", "retention")
"""The columns that a comparison holds; the others are those of the search."""


class FigureError(Exception):
    """A mark that names no figure."""


def pages() -> Iterator[Path]:
    """Yield the pages that may hold figures."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted((ROOT / "src/everclip").rglob("CARD.md"))


def figure(source: str) -> str:
    """Return the text of a figure.

    Raises:
        FigureError: for a source that does not exist.
    """
    kind, _, rest = source.partition(" ")
    parts = [part.strip() for part in rest.split(";")]
    if kind == "cell" and len(parts) == 3:
        return _cell(*parts)
    if kind == "json" and len(parts) == 3:
        return _value(*parts)
    if kind == "demo" and parts in (["table"], ["sentence"]):
        return {"table": _demo_table, "sentence": _demo_sentence}[parts[0]](json.loads(DEMO.read_text()))
    raise FigureError(
        f"{source!r} is no source; expected `cell SCRIPT ; ROW ; COLUMN`, `json FILE ; KEY ; FORMAT`, `demo table` "
        "or `demo sentence`"
    )


def rewritten(text: str) -> str:
    """Return a page with every figure as its source has it now."""
    return MARK.sub(lambda mark: f"{mark[1]}{figure(mark['source'])}{mark[4]}", text)


def _cell(script: str, row: str, column: str) -> str:
    sections = re.split(r"(?m)^(?=## )", RESULTS.read_text(encoding="utf-8"))
    section = next((s for s in sections if f"(benchmarks/{script}.py)" in s.partition("\n")[0]), None)
    if section is None:
        raise FigureError(f"benchmarks/RESULTS.md has no section of benchmarks/{script}.py")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"(?m)^\|.*\|$", section)
    ]
    if column not in rows[0]:
        raise FigureError(f"benchmarks/{script}.py: no column {column!r}; the table has {', '.join(rows[0])}")
    found = next((cells for cells in rows[2:] if cells[0] == row), None)
    if found is None:
        raise FigureError(f"benchmarks/{script}.py: no row {row!r}")
    return found[rows[0].index(column)]


def _value(file: str, key: str, form: str) -> str:
    path = ROOT / file
    if not path.is_file():
        raise FigureError(f"{file}: no such file")
    value: Any = json.loads(path.read_text(encoding="utf-8"))
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise FigureError(f"{file}: no key {key!r}")
        value = value[part]
    return form.format(value)


def keep_demo(folder: Path) -> None:
    """Write benchmarks/demo.json from the finished runs of `everclip demo`.

    Args:
        folder: `runs/demo`, one run folder per method.
    """
    from everclip.cli.demo import METHODS
    from everclip.report import compare
    from everclip.report.estimates import Estimate
    from everclip.report.runs import Run
    from everclip.report.search import search

    def shares(value: Estimate | None) -> list[float] | None:
        return (
            None if value is None else [round(x, 6) for x in (value.value, value.low or 0, value.high or 0)]
        )

    runs = [Run(folder / name) for name in METHODS]
    methods: dict[str, dict[str, Any]] = {}
    for method in compare([folder / name for name in METHODS]).methods:
        methods[method.label] = {key: shares(method.values[key]) for key in MEASURED}
    for found in search(runs)[1:]:  # the first is the model before training
        methods[found.label] |= {"find_known": shares(found.known), "find_new": shares(found.new)}
    last = runs[-1].results
    subgroups = next(column for column in last.columns if column.group == "retention")
    document = {
        "command": "everclip demo",
        "commit": last.provenance["git"]["commit"] if "git" in last.provenance else "",
        "device": last.provenance["device"],
        "threads": last.provenance["threads"],
        "parameters": runs[0].results.method["cost"][
            "stored_parameters"
        ],  # the model alone: zero-shot adds nothing
        "subgroups": subgroups.classes,
        "methods": methods,
    }
    DEMO.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _demo_table(demo: dict[str, Any]) -> str:
    best = {key: max(m[key][0] for m in demo["methods"].values() if m[key]) for key in COLUMNS}
    lines = [f"\n| method | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, method in demo["methods"].items():
        cells = []
        for key in COLUMNS:
            if method[key] is None:
                cells.append("-")
                continue
            value, low, high = (f"{100 * number:.1f}" for number in method[key])
            shown = f"**{value}**" if method[key][0] == best[key] else value
            cells.append(f"{shown} ({low}-{high})")
        lines.append(f"| `{name}`{' (left alone)' if name == 'zero-shot' else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _demo_sentence(demo: dict[str, Any]) -> str:
    threads = "1 thread" if demo["threads"] == 1 else f"{demo['threads']} threads"
    return (
        f"One seed, {threads}, a CLIP of {demo['parameters'] / 1e6:.1f} million parameters. Retention: "
        f"a question that is never trained on, with {demo['subgroups']} classes."
    )


def main() -> int:
    """Write or check the figures; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="list figures that differ; write nothing")
    parser.add_argument("--demo", type=Path, help="folder of the demo's runs, to be kept first")
    given = parser.parse_args()
    if given.demo is not None:
        keep_demo(given.demo)
    stale = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            new = rewritten(text)
        except FigureError as error:
            print(f"{page.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        if new != text:
            stale += 1
            print(f"{page.relative_to(ROOT)}: {'differs' if given.check else 'written'}")
            if not given.check:
                page.write_text(new, encoding="utf-8")
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
