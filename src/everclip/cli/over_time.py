"""`everclip over-time`: two models against each other on a static suite and on dated test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everclip.cli.options import Json, on_this_machine
from everclip.errors import ConfigError


def over_time(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Two models: run folders, saved learners, exports, or backbones (builtin:tiny, ViT-B-32...)."
        ),
    ],
    on: Annotated[
        str, typer.Option("--on", help="A stream in time: a benchmark (emoji-time) or a YAML file.")
    ],
    static: Annotated[
        list[str] | None,
        typer.Option("--static", help="Further data of the static suite; may be repeated."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Text around a class name of these data, with {} in its place; several are averaged.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="retrieval or classification, if the stream's tasks are measured in both ways."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Also write an HTML page to this file.", callback=on_this_machine
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two models on a static suite and on dated test sets.

    The dated sets are those of the stream's tasks, the static suite is its retention suite. Says what the static suite
    hides: models that it does not tell apart may differ on new data.

    Example: everclip over-time builtin:tiny runs/emoji-time-finetune-s0 --on emoji-time -o over-time.html
    """
    if len(models) != 2 or models[0] == models[1]:
        raise ConfigError(f"over-time: expected two different models, found {', '.join(models)}.")
    if kind not in (None, "retrieval", "classification"):
        raise ConfigError(f"--kind: {kind!r} is not known; expected retrieval or classification.")
    if output is not None:
        from everclip.files import require_writable
        from everclip.report.over_time_page import require_page

        require_page(output)
        require_writable(output.parent if output.suffix else output, "--output")
    from everclip.cli.diagnose import labels_of
    from everclip.config import EvaluationConfig
    from everclip.files import cache_folder
    from everclip.learner.evaluate import load_model
    from everclip.learner.over_time import measure_over_time
    from everclip.report.fitting import terminal_width
    from everclip.report.over_time_page import write_over_time
    from everclip.report.over_time_text import over_time_text
    from everclip.scenarios.measuring import PLAIN
    from everclip.templates import templates_of
    from everclip.training.progress import Progress

    texts = templates_of(template, "--template") if template else PLAIN
    config = EvaluationConfig(cache=str(cache_folder() / "features"))
    progress = Progress(quiet=as_json)
    progress.start("evaluate", 0)
    found = measure_over_time(
        dict(zip(labels_of(models), map(load_model, models), strict=True)),
        on,
        static or (),
        texts,
        kind,
        config,
        lambda done, total: progress.update(done, "images", total),
    )
    progress.finish()
    typer.echo(found.model_dump_json(indent=1) if as_json else over_time_text(found, terminal_width()))
    if output is not None:
        page = write_over_time(found, output)
        typer.echo(str(page), err=as_json)
