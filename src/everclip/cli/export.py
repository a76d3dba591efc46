"""`everclip export`: write a model as a folder in open_clip's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from everclip.learner import Learner
    from everclip.models.backbone import Backbone
    from everclip.models.export import Exported


def export(
    model: Annotated[str, typer.Argument(help="A run folder, a saved learner, or a backbone.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it is created.")],
    half: Annotated[
        bool, typer.Option("--half", help="Store float16: half the size, nearly the same embeddings.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="Tag or file of weights, if MODEL is an architecture.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Which model of a file with several, such as model_ema.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a model as an open_clip folder.

    Tests that open_clip loads the folder and gives the same embeddings. LoRA is merged into the weights. For `rail`,
    also writes its classifier: head.safetensors, head.json, and classify.py, which uses model and classifier with
    open_clip alone. For `text-ridge`, also writes its text correction: correction.safetensors, correction.json, a
    README, and corrected.py, which encodes, searches and classifies with it, with open_clip alone.

    Example: everclip export runs/emoji-time-replay-s0 exported/mine
    """
    from everclip.files import require_writable
    from everclip.models.export import check_target, describe

    check_target(folder, force)
    require_writable(folder.absolute().parent, "FOLDER")
    exported, _, card = run_export(model, folder, half=half, force=force, weights=weights, key=key)
    document = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "bytes": exported.bytes, **document}, indent=1))
        return
    for note in card["assumed"]:
        typer.echo(f"note: {note}")
    typer.echo(f"{folder}: {exported.bytes / 1e6:.1f} MB, {document['precision']}, {_source(card['source'])}")
    if exported.merged:
        typer.echo(f"merged into the weights: {', '.join(exported.merged)}")
    typer.echo(f"loaded with open_clip, compared with the model: {describe(exported.parity)}")
    for line in _beside(folder):
        typer.echo(line)
    typer.echo("\n".join(["to load it:", *(f"  {line}" for line in document["usage"])]))


def run_export(
    model: str,
    folder: Path,
    *,
    half: bool = False,
    force: bool = False,
    weights: str | None = None,
    key: str | None = None,
) -> tuple[Exported, Backbone, dict[str, Any]]:
    """Export the model that `model` names; see `everclip.models.export.export_backbone`."""
    from everclip.config import BackboneConfig, validated
    from everclip.errors import ConfigError
    from everclip.models.backbone import load_backbone
    from everclip.models.export import export_backbone

    if (Path(model) / "checkpoints").is_dir():
        from everclip.learner import Learner

        learner = Learner.load(model)
        method = learner.method.cpu()
        correction = method.text_correction()
        beside = method.class_head() or correction
        if beside is None and method.outside_towers is not None:
            raise ConfigError(
                f"{model}: {method.outside_towers}, which open_clip's layout cannot hold: the export would be the "
                "model without it. Keep the run or learner folder; `Learner.load` predicts with it."
            )
        card = {**_card(method.backbone), "source": _of_learner(Path(model), learner)}
        exported = export_backbone(
            method.backbone,
            folder,
            card,
            half=half,
            force=force,
            encode_images=lambda pixels: method.encode_images(pixels)["embedding"],
            # A correction is compared apart from the towers, which do not know it.
            encode_texts=None if correction else lambda tokens: method.encode_texts(tokens)["embedding"],
            beside=beside,
        )
        return exported, method.backbone, card
    config = validated(BackboneConfig, {"name": model, "weights": weights, "key": key}, "backbone")
    backbone = load_backbone(config)
    card = {
        **_card(backbone),
        "source": {"kind": "backbone", **config.model_dump(mode="json", exclude_none=True)},
    }
    return export_backbone(backbone, folder, card, half=half, force=force), backbone, card


def _beside(folder: Path) -> list[str]:
    """Describe what an export holds beside the towers."""
    from everclip.models.layout import BESIDE

    lines = []
    for name, (what, script) in BESIDE.items():
        if (folder / name).is_file():
            rule = json.loads((folder / name).read_text(encoding="utf-8"))
            learned = (
                f"{len(rule['texts']):,} texts" if "texts" in rule else f"{len(rule['classes']):,} classes"
            )
            lines.append(f"{what}: {learned}; {script} loads it")
    return lines


def _card(backbone: Backbone) -> dict[str, Any]:
    from everclip import __version__
    from everclip.training.environment import versions

    return {
        "format": 1,
        "versions": {**versions(), "everclip": __version__},
        "assumed": list(backbone.notes),
    }


def _of_learner(folder: Path, learner: Learner) -> dict[str, Any]:
    """Return the source of a learned model, with the metrics of its run if there is one."""
    from everclip.evaluation.results import FILE, Results

    source: dict[str, Any] = {
        "kind": "learner",
        "name": folder.resolve().name,
        "method": {
            "name": learner.method.preset,
            "settings": learner.method.settings.model_dump(mode="json"),
        },
        "training": learner.training.model_dump(mode="json"),
        "seed": learner.seed,
        "learned_tasks": sorted(learner.learned),
        "start": learner.method.backbone.config.model_dump(mode="json", exclude_none=True),
    }
    if (folder / FILE).is_file():
        results = Results.read(folder)
        source |= {
            "kind": "run",
            "benchmark": results.benchmark,
            "status": results.status,
            "tasks": [task.name for task in results.tasks],
            "headline": results.headline,
            "metrics": results.metrics,
            "data": results.provenance.get("data", {}),
            "towers_before": results.provenance.get("towers_before", {}),
        }
    return source


def _source(source: dict[str, Any]) -> str:
    if source["kind"] == "backbone":
        return f"from {source['name']}"
    count = len(source["learned_tasks"])
    learned = f"{count} {'task' if count == 1 else 'tasks'} learned with {source['method']['name']}"
    unfinished = source.get("status") not in (None, "finished")
    state = ", not finished: its newest checkpoint" if unfinished else ""
    return f"from {source['kind']} {source['name']} ({learned}{state})"
