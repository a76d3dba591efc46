"""`everclip suggest`: which settings to begin with, for one's own data and model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from everclip.prepare.suggest.suggestion import Suggestion


def suggest(
    data: Annotated[
        str, typer.Argument(help="Data (a folder, file, hub:ID...), or a stream: YAML or benchmark.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            help="The backbone to start from; default: that of the stream, for data builtin:tiny."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings: columns.caption=title (of the data), backbone.weights=FILE, training.device=cpu"
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=20, help="Steps of the range test.")] = 48,
    sweep_seconds: Annotated[
        float, typer.Option("--sweep-seconds", min=1, help="Time for the range test, about.")
    ] = 120.0,
    trial_seconds: Annotated[
        float,
        typer.Option(
            "--trial-seconds", min=0, help="Time for the trial of a preset that trains; 0: no trials."
        ),
    ] = 120.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for suggestion.json and lr-range.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Suggest preset, trainable parts, batch size, epochs and learning rate, each with its reason.

    The learning rate is measured by a short sweep on the data; the model's weights are not changed. For classes, two
    presets learn a part of the images on trial: `rail`, which solves a regression, and the preset that would train.
    What is better on held-out images, old and new classes together, is suggested; where that is not clear, both are
    named with the commands that decide.

    Example: everclip suggest month.yaml

    Example: everclip suggest photos/ ViT-B-32 backbone.weights=weights.safetensors

    Example: everclip suggest shop.csv builtin:tiny columns.caption=title --output suggestion
    """
    from everclip.prepare.suggest.suggestion import suggest as make
    from everclip.training.progress import Progress

    words = list(settings or [])
    if model is not None and "=" in model and not os.path.lexists(model):  # no model was named
        words, model = [model, *words], None
    backbone, training, block = _sections(words)
    if output is not None:
        from everclip.files import require_writable

        require_writable(output, "--output")
    named = backbone if model is None else {"name": model, **backbone}
    found = make(data, named, block, training, steps, trial_seconds, sweep_seconds, Progress())
    _report(found, output, as_json)


def _report(found: Suggestion, output: Path | None, as_json: bool) -> None:
    """Print a suggestion, and write it to a folder where one is given."""
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=1, ensure_ascii=False))
    else:
        _show(found, output)
    if output is not None:
        _write(found, output)


def _sections(words: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the settings of the backbone, of training and of the data block."""
    from everclip.config import BackboneConfig, TrainingConfig
    from everclip.data.reading.spec import DataSpec
    from everclip.errors import ConfigError
    from everclip.overrides import overrides_document, types_of

    types = {**types_of(DataSpec), "backbone": BackboneConfig, "training": TrainingConfig}
    given = overrides_document([text.removeprefix("data.") for text in words], types)
    backbone, training = given.pop("backbone", {}), given.pop("training", {})
    for name, part in (("backbone", backbone), ("training", training)):
        if not isinstance(part, dict):
            raise ConfigError(
                f"{name}: expected settings below it, such as {name}.device=cpu; found {part!r}."
            )
    return backbone, training, given


def _write(found: Suggestion, folder: Path) -> None:
    from everclip.files import write_bytes_atomic, write_text_atomic
    from everclip.prepare.suggest.picture import draw

    write_text_atomic(folder / "suggestion.json", found.model_dump_json(indent=1) + "\n")
    if found.rates:
        write_bytes_atomic(folder / "lr-range.png", draw(found).png)


def _show(found: Suggestion, output: Path | None) -> None:
    facts = found.facts
    kind = "captions" if facts["classes"] is None else f"{facts['classes']} classes"
    typer.echo(
        f"{found.data}: {facts['rows']:,} training rows, {facts['pictures']:,} pictures, {kind}; "
        f"{facts['validation']:,} rows set aside for choices"
    )
    typer.echo(f"{found.model}: {facts['parameters'] / 1e6:.1f} M parameters")
    typer.echo("\nsuggested:" if found.decided else "\nnot decided; the settings of the preset that trains:")
    for choice in found.choices:
        typer.echo(f"  {choice.key} = {choice.value}\n      {choice.reason}")
    _show_trials(found)
    typer.echo("\nnot measured:")
    for line in found.not_measured:
        typer.echo(f"  {line}")
    typer.echo("\nto run it:" if found.decided else "\nto decide:")
    for line in found.command:
        typer.echo(f"  {line}")
    if output is not None:
        drawn = [output / "lr-range.png"] if found.rates else []
        typer.echo("\n" + "\n".join(map(str, [*drawn, output / "suggestion.json"])))


def _show_trials(found: Suggestion) -> None:
    """Print what the presets learned and kept on trial, and the difference between them."""
    if not found.trials:
        return
    first = found.trials[0]
    images = f"{first.new.images} held-out images of the new classes"
    if first.old is not None:
        images += f" and {first.old.images} of the known ones, among the answers of both"
    typer.echo(f"\nlearned on trial, accuracy on {images}:")
    for trial in found.trials:
        typer.echo("\n".join(f"  {line}" for line in trial.describe()))
    if found.gap is not None:
        typer.echo(f"  {found.trials[1].method} against {first.method}: {found.gap.describe()}")
