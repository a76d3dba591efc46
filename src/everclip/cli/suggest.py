"""`everclip suggest`: propose settings for a user's data and model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.options import Json, on_this_machine
from everclip.cli.printing import json_text

if TYPE_CHECKING:
    from everclip.prepare.suggest.suggestion import Suggestion


def suggest(
    data: Annotated[
        str, typer.Argument(help="Data (a folder, file, hub:ID...), or a stream (YAML file or benchmark).")
    ],
    model: Annotated[
        str | None,
        typer.Argument(help="The backbone; default: that of the stream, or builtin:photo for data."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings as key=value: columns.caption=title backbone.weights=FILE training.device=cpu"
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=20, help="Steps of the learning-rate range test.")
    ] = 48,
    sweep_seconds: Annotated[
        float, typer.Option("--sweep-seconds", min=1, help="Approximate limit on the time of the range test.")
    ] = 120.0,
    trial_seconds: Annotated[
        float,
        typer.Option(
            "--trial-seconds",
            min=0,
            help="Approximate limit on the time of a trial that trains; 0: no trials.",
        ),
    ] = 120.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for suggestion.json and lr-range.png.", callback=on_this_machine
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Propose settings for your data and model.

    Proposes preset, trainable parts, batch size, epochs and learning rate, each with its reason. Measures the learning
    rate with a short sweep on the data; the model's weights stay unchanged. Presets are tried on a part of the images:
    `text-ridge` and, for classes, `rail`, which solve a regression, and one that trains by gradient. Proposes the one
    that is better on held-out images, old and new together. If the difference between the better regression and the
    one that trains is not clear, names both, with the commands that decide.

    Example: everclip suggest month.yaml

    Example: everclip suggest photos/ ViT-B-32 backbone.weights=weights.safetensors

    Example: everclip suggest shop.csv builtin:photo columns.caption=title --output suggestion
    """
    from everclip.files import require_writable
    from everclip.prepare.suggest.suggestion import suggest as make
    from everclip.training.progress import Progress

    words = list(settings or [])
    if model is not None and "=" in model and not os.path.lexists(model):  # no model was named
        words, model = [model, *words], None
    backbone, training, block = _sections(words)
    if output is not None:
        require_writable(output, "--output")
    named = backbone if model is None else {"name": model, **backbone}
    suggestion = make(data, named, block, training, steps, trial_seconds, sweep_seconds, Progress())
    _report(suggestion, output, as_json)


def _report(suggestion: Suggestion, output: Path | None, as_json: bool) -> None:
    """Print a suggestion; write it to a folder if one is given."""
    if as_json:
        typer.echo(json_text(suggestion.model_dump(mode="json")))
    else:
        _show(suggestion, output)
    if output is not None:
        _write(suggestion, output)


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
            raise ConfigError(f"{name}: expected settings such as {name}.device=cpu; found {part!r}.")
    return backbone, training, given


def _write(suggestion: Suggestion, folder: Path) -> None:
    from everclip.files import write_bytes_atomic, write_text_atomic
    from everclip.prepare.suggest.figure import draw

    write_text_atomic(folder / "suggestion.json", suggestion.model_dump_json(indent=1) + "\n")
    if suggestion.rates:
        write_bytes_atomic(folder / "lr-range.png", draw(suggestion).png)


def _show(suggestion: Suggestion, output: Path | None) -> None:
    facts = suggestion.facts
    kind = "captions" if facts["classes"] is None else f"{facts['classes']} classes"
    typer.echo(
        f"{suggestion.data}: {facts['rows']:,} training rows, {facts['pictures']:,} images, {kind}; "
        f"{facts['validation']:,} validation rows"
    )
    typer.echo(f"{suggestion.model}: {facts['parameters'] / 1e6:.1f} M parameters")
    typer.echo("\nproposed:" if suggestion.decided else "\nnot decided; settings of the preset that trains:")
    for choice in suggestion.choices:
        typer.echo(f"  {choice.key} = {choice.value}\n      {choice.reason}")
    _show_trials(suggestion)
    typer.echo("\nnot measured:")
    for line in suggestion.not_measured:
        typer.echo(f"  {line}")
    typer.echo("\nto run it:" if suggestion.decided else "\nto decide:")
    for line in suggestion.command:
        typer.echo(f"  {line}")
    if output is not None:
        drawn = [output / "lr-range.png"] if suggestion.rates else []
        typer.echo("\n" + "\n".join(map(str, [*drawn, output / "suggestion.json"])))


def _show_trials(suggestion: Suggestion) -> None:
    """Print the scores of the trials, and the difference between them."""
    if not suggestion.trials:
        return
    first = suggestion.trials[0]
    what = "captions" if suggestion.facts["classes"] is None else "classes"
    score = "accuracy" if what == "classes" else "mean Recall@1 of both directions"
    images = f"{first.new.images} held-out images of the new {what}"
    if first.old is not None:
        images += f" and {first.old.images} of the old {what}, scored among all {what}"
    typer.echo(f"\ntrials, {score} on {images}:")
    for trial in suggestion.trials:
        typer.echo("\n".join(f"  {line}" for line in trial.describe()))
    if suggestion.gap is not None:
        typer.echo(f"  {suggestion.trials[-1].method} against {first.method}: {suggestion.gap.describe()}")
