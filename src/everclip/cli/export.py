"""`everclip export`: write a model as a folder in open_clip's layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.options import Json, Weights, on_this_machine
from everclip.cli.printing import json_text

if TYPE_CHECKING:
    from everclip.learner import Learner
    from everclip.models.backbone import Backbone
    from everclip.models.export import Exported
    from everclip.store.registering import Registered


def export(
    model: Annotated[
        str,
        typer.Argument(help="A run folder, a saved learner, a store (STORE or STORE@v0003), or a backbone."),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it is created.", callback=on_this_machine)],
    form: Annotated[
        str, typer.Option("--format", help="open_clip, transformers (a CLIPModel folder) or onnx.")
    ] = "open_clip",
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write only the LoRA, in PEFT's layout.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Store float16: half the size, nearly the same embeddings.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    weights: Weights = None,
    key: Annotated[
        str | None, typer.Option(help="Which model of a file with several, such as model_ema.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA in PEFT's layout, merged into MODEL, a backbone.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="Also register the store's version in this MLflow, such as sqlite:///mlflow.db."),
    ] = None,
    mlflow_name: Annotated[
        str | None, typer.Option(help="Name of the registered model; default: that of the store.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for other programs, with a model card.

    Loads the folder without the model and compares: tokens, pixels and embeddings must be the same. LoRA is merged
    into the weights; --adapter-only writes LoRA alone. For `rail`, also writes its classifier: head.safetensors,
    head.json, and classify.py, which uses model and classifier with open_clip alone. For `text-ridge`, also writes its
    text correction: correction.safetensors, correction.json, and corrected.py, which encodes, searches and classifies
    with it, with open_clip alone. README.md is the model card.

    Example: everclip export runs/emoji-time-replay-s0 exported/mine

    --mlflow registers a version of a store: its gates become metrics, and the version that serves gets the alias
    `current`.

    Example: everclip export STORE@v0003 exported/mine --format onnx

    Example: everclip export STORE exported/mine --mlflow sqlite:///mlflow.db
    """
    from everclip.files import require_writable
    from everclip.models.export import check_target
    from everclip.models.export_layouts import layout_of
    from everclip.models.export_parity import describe

    layout = layout_of(form)
    check_target(folder, force)
    require_writable(folder.absolute().parent, "FOLDER")
    if mlflow is not None:
        _require_registry(model)
    exported, _, card = run_export(
        model,
        folder,
        half=half,
        force=force,
        weights=weights,
        key=key,
        adapter=adapter,
        form=form,
        adapter_only=adapter_only,
    )
    document = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    registered = None if mlflow is None else _register(model, folder, mlflow, mlflow_name)
    if as_json:
        more = {} if registered is None else {"mlflow": asdict(registered)}
        typer.echo(json_text({"folder": str(folder), "bytes": exported.bytes, **document, **more}))
        return
    for note in card["assumed"]:
        typer.echo(f"note: {note}")
    typer.echo(f"{folder}: {exported.bytes / 1e6:.1f} MB, {document['precision']}, {_source(card['source'])}")
    if exported.merged:
        typer.echo(f"merged into the weights: {', '.join(exported.merged)}")
    program = "open_clip" if form == "open_clip" else layout.program
    program = "the start model and its adapter" if adapter_only else program
    typer.echo(f"loaded with {program}, compared with the model: {describe(exported.parity)}")
    for line in _beside(folder):
        typer.echo(line)
    typer.echo("\n".join(["to load it:", *(f"  {line}" for line in document["usage"])]))
    if registered is not None:
        state = "registered" if registered.new else "was registered before"
        alias = ", alias current" if registered.alias else ""
        typer.echo(f"MLflow: {registered.name}, version {registered.version} ({state}{alias})")


def _require_registry(model: str) -> None:
    """Refuse `--mlflow` before anything is written, if the model is no version or mlflow is not installed."""
    from everclip.errors import ConfigError
    from everclip.store.loading import store_of
    from everclip.store.registering import require_mlflow

    if store_of(model) is None:
        raise ConfigError(f"--mlflow: {model} is not a version of a store, so it has no gates to register.")
    require_mlflow()


def _register(model: str, folder: Path, uri: str, name: str | None) -> Registered:
    from everclip.store.loading import store_of
    from everclip.store.registering import register

    stored = store_of(model)
    assert stored is not None
    store, version = stored
    return register(store, version, folder, uri, name or store.title)


def run_export(
    model: str,
    folder: Path,
    *,
    half: bool = False,
    force: bool = False,
    weights: str | None = None,
    key: str | None = None,
    adapter: str | None = None,
    form: str = "open_clip",
    adapter_only: bool = False,
) -> tuple[Exported, Backbone, dict[str, Any]]:
    """Export the model that `model` names; see `everclip.models.export.export_backbone`."""
    from everclip.cli.export_source import card_of
    from everclip.config import BackboneConfig, validated
    from everclip.errors import ConfigError
    from everclip.models.backbone import load_backbone
    from everclip.models.export import export_backbone
    from everclip.models.export_layouts import layout_of

    layout = layout_of(form)
    if adapter_only:
        _require_adapter_alone(half, form)
    found = _learner(model)
    if found is not None:
        if adapter is not None:
            raise ConfigError(f"--adapter: {model} is no backbone, so no adapter can be merged into it.")
        learner, source = found
        card = {**card_of(learner.method.backbone), "source": source}
        exported = _export_learner(
            model, learner, folder, card, half=half, force=force, form=form, adapter_only=adapter_only
        )
        return exported, learner.method.backbone, card
    named = {"name": model, "weights": weights, "key": key, "adapter": adapter}
    config = validated(BackboneConfig, named, "backbone")
    backbone = load_backbone(config)
    if adapter_only:
        raise ConfigError(f"export: --adapter-only: {model} is a backbone, which holds no LoRA.")
    card = {
        **card_of(backbone),
        "source": {"kind": "backbone", **config.model_dump(mode="json", exclude_none=True)},
    }
    exported = export_backbone(backbone, folder, card, half=half, force=force, layout=layout)
    return exported, backbone, card


def _require_adapter_alone(half: bool, form: str) -> None:
    from everclip.errors import ConfigError

    if half:
        raise ConfigError("export: --adapter-only writes float32; leave out --half.")
    if form == "onnx":
        raise ConfigError("export: --adapter-only writes PEFT's layout, not ONNX; leave out --format.")


def _learner(model: str) -> tuple[Learner, dict[str, Any]] | None:
    """Return the learner that `model` names and its source; `None` if it names a backbone."""
    from everclip.cli.export_source import source_of_learner, source_of_version
    from everclip.store.loading import store_of
    from everclip.training.run_place import local_run

    stored = store_of(model)
    if stored is not None:
        store, version = stored
        learner = store.load(version)
        return learner, source_of_version(store, version, learner)
    folder = local_run(model, "model")
    if (folder / "checkpoints").is_dir():
        from everclip.learner import Learner

        learner = Learner.load(folder)
        return learner, source_of_learner(folder, learner)
    return None


def _export_learner(
    model: str,
    learner: Learner,
    folder: Path,
    card: dict[str, Any],
    *,
    half: bool,
    force: bool,
    form: str,
    adapter_only: bool,
) -> Exported:
    from everclip.errors import ConfigError
    from everclip.models.export import export_backbone
    from everclip.models.export_adapter import export_adapter
    from everclip.models.export_layouts import layout_of

    method = learner.method.cpu()
    correction = method.text_correction()
    beside = method.class_head() or correction
    if beside is None and method.outside_towers is not None:
        raise ConfigError(
            f"{model}: {method.outside_towers}, which no layout of an export can hold: the export would be the "
            "model without it. Keep the run or learner folder; `Learner.load` predicts with it."
        )
    # A correction is compared apart from the towers, which do not know it.
    encode = {
        "encode_images": lambda pixels: method.encode_images(pixels)["embedding"],
        "encode_texts": None if correction else lambda tokens: method.encode_texts(tokens)["embedding"],
    }
    if adapter_only:
        if beside is not None:
            raise ConfigError(
                f"{model}: {method.preset} learned a part beside the towers, which an adapter cannot hold; leave out "
                "--adapter-only."
            )
        return export_adapter(method.backbone, folder, card, force=force, **encode)
    return export_backbone(
        method.backbone,
        folder,
        card,
        half=half,
        force=force,
        beside=beside,
        layout=layout_of(form),
        **encode,
    )


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


def _source(source: dict[str, Any]) -> str:
    if source["kind"] == "backbone":
        return f"from {source['name']}"
    count = len(source["learned_tasks"])
    learned = f"{count} {'task' if count == 1 else 'tasks'} learned with {source['method']['name']}"
    unfinished = source.get("status") not in (None, "finished")
    state = ", not finished: its newest checkpoint" if unfinished else ""
    return f"from {source['kind']} {source['name']} ({learned}{state})"
