"""The model card of an export: what the model learned, from what, how well, its limits, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everclip.models.backbone import Backbone

_SIGN = b", exported by everclip"
"""End of the first line of a card: a folder with another README is not an earlier export."""


def is_readme(file: Path) -> bool:
    """Return whether a file is the README of an export."""
    if file.name != "README.md" or not file.is_file():
        return False
    with file.open("rb") as stream:
        line = stream.readline(500).rstrip()
    return line.startswith(b"# ") and line.endswith(_SIGN)


def limits_of(backbone: Backbone) -> dict[str, Any]:
    """Return what limits the inputs of a model: side of images, tokens of texts, size of the vocabulary."""
    vocabulary = getattr(backbone.tokenizer, "vocab_size", None)
    return {
        "image_size": backbone.pixels.size,
        "context_length": backbone.tokenizer.context_length,
        "vocabulary": None if vocabulary is None else int(vocabulary),
    }


def write_model_card(document: Mapping[str, Any], file: Path) -> None:
    """Write the model card; behind the README of a text correction if there is one.

    Args:
        document: the content of `card.json`.
        file: `README.md` in the folder of the export.
    """
    source = document.get("source", {})
    name = " ".join(str(source.get("name", "model")).split())[-200:]
    before = (
        file.read_text(encoding="utf-8") + "\n"
        if file.is_file()
        else f"# {name}{_SIGN.decode()}\n\nA CLIP: images and texts become embeddings of one space.\n\n"
    )
    parts = [
        ("What it learned", _learned(source)),
        ("From what", _origin(source, document)),
        ("How well", _scores(source)),
        ("Gates", _gates(source)),
        ("Limits of the inputs" if file.is_file() else "Limits", _limits(document)),
        ("How to load it", [] if file.is_file() else ["```python", *document["usage"], "```"]),
        ("Parity", _parity(document)),
    ]
    text = "\n".join(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts if lines)
    file.write_text(before + text, encoding="utf-8")


def _learned(source: Mapping[str, Any]) -> list[str]:
    if source.get("kind", "backbone") == "backbone":
        return ["Nothing by everclip: this is a model as it was read."]
    lines = []
    for task in source.get("learned", ()):
        classes = f", {task['classes']:,} classes" if task.get("classes") else ""
        more = "".join(f", {task[key]}" for key in ("language", "time") if task.get(key))
        rows = f": {task['rows']:,} rows" if task.get("rows") is not None else ""
        lines.append(f"* {task['name']}{rows}{classes}{more}")
    prints = [f"* `{name}`: `{value}`" for name, value in sorted(source.get("data", {}).items())]
    lines = lines or ["No task yet."]
    if source.get("status", "finished") != "finished":
        lines += ["", "The run had not finished: this is its newest checkpoint."]
    return lines + (["", "Fingerprints of the data:", "", *prints] if prints else [])


def _origin(source: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    start = source.get("start", source if source.get("kind") == "backbone" else {})
    shown = ", ".join(f"{key} `{value}`" for key, value in start.items() if key != "kind")
    lines = [f"* Start model: {shown or 'not recorded'}."]
    licence = source.get("licence")
    lines.append(
        f"* Its licence: {licence}."
        if licence
        else "* Its licence is not recorded here. That of the start model and those of the data hold; look them up."
    )
    if "method" in source:
        method, training = source["method"], source.get("training", {})
        lines.append(f"* Method: `{method['name']}`{_settings(method.get('settings', {}))}")
        if training:
            lines.append(f"* Training{_settings(training)}")
        lines.append(f"* Seed: {source.get('seed')}")
    lines += [f"* Assumed while loading: {note}" for note in document.get("assumed", ())]
    merged = document.get("merged")
    return lines + ([f"* Merged into the weights: {', '.join(merged)}"] if merged else [])


def _settings(settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None and v != [] and v != {})
    return f": `{shown}`" if shown else ""


def _scores(source: Mapping[str, Any]) -> list[str]:
    rows: Sequence[Mapping[str, Any]] = source.get("scores", ())
    if not rows:
        return []
    table = [
        "At the last row of the run, in percent.",
        "",
        "| score | before | last | 95 % interval |",
        "|---|---|---|---|",
    ]
    for row in rows:
        span = f"[{_percent(row['low'])}, {_percent(row['high'])}]" if row.get("low") is not None else "none"
        table.append(f"| {row['name']} | {_percent(row.get('before'))} | {_percent(row['last'])} | {span} |")
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _gates(source: Mapping[str, Any]) -> list[str]:
    if source.get("kind") != "version":
        return []
    lines = [f"Version {source['version']} of a store: {source['state']}.", ""]
    return lines + (
        [f"* {g['name']}: {g['state']}. {g['reason']}" for g in source["gates"]] or ["No gate was judged."]
    )


def _limits(document: Mapping[str, Any]) -> list[str]:
    limits = document["limits"]
    size = limits["image_size"]
    vocabulary = f" The vocabulary has {limits['vocabulary']:,} tokens." if limits.get("vocabulary") else ""
    return [
        f"* Images are resized to {size} x {size} pixels: what is smaller than a pixel of these is not seen.",
        f"* Texts are cut off after {limits['context_length']} tokens, start and end among them.{vocabulary}",
        "* Languages: those of its training texts. A text in another language gets an embedding without a meaning, and "
        "no error.",
        "* Scores hold for data like those that were measured. Measure your own: `everclip eval`.",
        *(f"* {line}" for line in document.get("more_limits", ())),
    ]


def _parity(document: Mapping[str, Any]) -> list[str]:
    found = document["parity"]
    lines = [
        "Compared with the model over the same images and texts before this folder was written:",
        "",
        f"* pixels: largest difference {found['pixels']:g}",
        f"* image embeddings: {found['images']:g}",
        f"* text embeddings: {found['texts']:g}",
        f"* tokens: {'equal' if found['tokens'] else 'different'}",
    ]
    for key, what in (("head", "class scores"), ("correction", "corrected text embeddings")):
        if found.get(key) is not None:
            lines.append(f"* {what}: {found[key]:g}")
    return lines
