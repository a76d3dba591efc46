"""Measured figures of README, docs and cards are those of the files that commands wrote."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORD = "half|one|two|three|four|five|six|seven|eight|nine|ten|twenty|thirty|sixty|hundred"
IN_WORDS = re.compile(
    rf"\b(?:{WORD})(?: (?:to|or) (?:{WORD}))? (?:times|minutes?|seconds?|hours?|points?|thirds?|fifths?|tenths?)\b"
)
UNIT = re.compile(
    r"(?<![\w.@])\d[\d,.]*(?:-\d[\d,.]*)?(?: ?%|x\b| ?(?:GB|MB|KB|ms|minutes|points|times)\b| s\b)"
)
DEFINED = {
    "README.md": ["95 %"],
    "docs/benchmarks.md": ["1 %"],
    "docs/blind-pairs.md": ["6.7 points", "25 %", "50 %", "16.7 %"],  # 1 of 15 pairs; guessing
    "docs/check.md": ["1 %", "100 %"],
    "docs/data.md": ["256 MB", "1 GB", "100 times", "2 %"],
    "docs/diagnose.md": ["95 %"],
    "docs/doctor.md": ["100 MB"],
    "docs/glossary.md": ["95 %", "4 MB"],
    "docs/index.md": ["95 %"],
    "docs/multi-image.md": ["30 %", "25 %", "95 %"],  # of the development part; guessing a pair; level
    "docs/own-model.md": ["1.9 GB"],  # a limit
    "docs/results.md": ["95 %"],
    "docs/resume.md": ["2 %"],
    "docs/search.md": ["99 %"],  # of a paper
    "docs/scale-data.md": ["4 MB", "50 KB", "0.8 GB", "64 MB"],
    "docs/scale.md": [
        "0.57 s",
        "92 GB",
        "0.9 s",
        "17 %",
        "6 points",
        "1.8 GB",
        "20 s",
        "90 s",
    ],  # tables; remote/lease.py
    "docs/store.md": ["20 s", "90 s", "30 s"],  # remote/lease.py
    "docs/start.md": ["95 %"],
    "docs/keeping.md": ["80 %", "5.5 points"],
    "docs/methods/cll-clip.md": ["5 %"],
    "docs/methods/time.md": ["95 %", "3.9 points", "8.0 points"],  # an example, with its command
    "docs/methods/rail.md": ["134 MB", "1.8 GB"],
    "docs/methods/zscl.md": ["1 GB", "2 KB"],
}
"""Numbers with units that nobody measured: limits, levels, arithmetic."""
DEFINED_IN_WORDS = {
    "docs/index.md": ["five minutes"],  # the name of the page
    "docs/start.md": ["five minutes"],
    "README.md": ["four fifths", "nine tenths"],  # held to the demo's file below
    "docs/keeping.md": ["three points"],  # of a task
    "docs/map.md": ["one or two points"],  # of quoted figures
    "docs/own-model.md": ["eight times"],  # a limit
    "docs/serve.md": ["ten seconds"],  # a limit
    "docs/scale-data.md": ["three times"],  # tries
    "docs/scale.md": ["seven times"],  # of the table of starts
    "docs/what-trains.md": ["nine tenths"],  # crop_min
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FIGURES = script("figures")


@pytest.mark.parametrize("page", list(FIGURES.pages()), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_marked_figure_is_the_one_in_its_source(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert FIGURES.rewritten(text) == text, "run `make figures`"


def test_a_changed_figure_is_noticed_and_written() -> None:
    mark = "<!-- figure: cell adapters ; lora ; parameters -->1<!-- /figure -->"
    assert FIGURES.rewritten(mark) == mark.replace(">1<", ">0.49 M<")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("cell nothing ; lora ; time", "no section"),
        ("cell adapters ; nothing ; parameters", "no row"),
        ("cell adapters ; lora ; nothing", "no column"),
        ("json benchmarks/nothing.json ; a ; {}", "no such file"),
        ("json src/everclip/models/builtin/tiny/card.json ; a.b ; {}", "no key"),
        ("guess", "is no source"),
    ],
)
def test_a_mark_without_a_source_is_an_error(source: str, said: str) -> None:
    with pytest.raises(FIGURES.FigureError, match=said):
        FIGURES.figure(source)


def _without_computed_tables(page: str) -> str:
    """Return the page on scale without the rows that its benchmark computes, and assert that it has all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        scale = importlib.import_module("scale")
        counts = [8, 32, 64, 128, 256]
        printed = [
            *scale.costs(4e8, scale.PUBLISHED, 2.0, counts).splitlines(),
            *scale.network(scale.PUBLISHED, 100.0, counts).splitlines(),
            *scale.limits(4e8, scale.PUBLISHED, counts).splitlines(),
        ]
    rows = [line for line in printed if line.startswith("| ")]
    lines = page.splitlines()
    assert [row for row in rows if row not in lines] == [], "copy what benchmarks/scale.py prints"
    return "\n".join(line for line in lines if line not in rows)


def test_numbers_with_units_are_marked_or_defined() -> None:
    """A figure that somebody typed into a page goes stale unseen: it is marked, or listed above as no measurement."""
    typed = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        name = str(page.relative_to(ROOT))
        read = page.read_text(encoding="utf-8")
        if name == "docs/scale.md":
            read = _without_computed_tables(read)
        text = re.sub(r"```.*?```|`[^`]*`", "", FIGURES.MARK.sub("", read), flags=re.S)
        defined = DEFINED.get(name, []) + DEFINED_IN_WORDS.get(name, [])
        words = IN_WORDS.findall(" ".join(text.split()))
        typed += [f"{name}: {found}" for found in [*UNIT.findall(text), *words] if found not in defined]
    assert typed == []


def test_what_the_readme_says_of_the_demo_in_words_is_in_its_file() -> None:
    demo = json.loads((ROOT / "benchmarks/demo.json").read_text(encoding="utf-8"))["methods"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    before, tuned, closed = (demo[name] for name in ("zero-shot", "finetune", "text-ridge"))
    assert "learns some of the new names, and loses a fifth of what the model knew" in text
    assert tuned["new"][1] > before["new"][2]
    assert round(5 * (1 - tuned["known"][0] / before["known"][0])) == 1
    assert tuned["known"][2] < before["known"][1]
    assert "it names and finds more new emoji than fine-tuning does" in text
    assert closed["new"][1] > tuned["new"][2]
    assert closed["find_new"][1] > tuned["find_new"][2]
    assert "what the model knew stays within a point" in text
    for key in ("known", "find_known", "retention"):
        assert closed[key][0] > before[key][0] - 0.01


BUILTIN = sorted(path.parent for path in (ROOT / "src/everclip/models/builtin").glob("*/*.safetensors"))


@pytest.mark.parametrize("folder", BUILTIN, ids=lambda path: path.name)
def test_the_card_of_a_built_in_model_is_that_of_its_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    facts = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert facts["name"] == f"builtin:{folder.name}"
    assert facts["bytes"] == (folder / "open_clip_model.safetensors").stat().st_size
    assert script(f"build_{folder.name}").page(facts) == (folder / "CARD.md").read_text(encoding="utf-8")


def test_the_tiny_model_is_asked_among_the_subgroups_that_the_suite_has() -> None:
    from everclip.config import resolve_config
    from everclip.scenarios.load import load_scenario

    suite = load_scenario(resolve_config("emoji-time").scenario).retention_suite
    facts = json.loads((ROOT / "src/everclip/models/builtin/tiny/card.json").read_text(encoding="utf-8"))
    assert [len(s.classes or ()) for s in suite] == [facts["subgroup_classes"]]
