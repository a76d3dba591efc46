"""`everclip diagnose`: two models side by side; is the update safe?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everclip.cli.options import Json, on_this_machine
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.diagnosis.diagnose import Compared
    from everclip.diagnosis.verdict import Limit


def diagnose(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Old and new model: run folders, saved learners, exports, or backbones. One run folder alone: the "
            "model before the run against the model after it, on the run's own data."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="What the old model knows and must keep: a folder, table or shards; or a stream (a benchmark or YAML "
            "file), whose base and retention suite are kept and whose tasks are new. May be repeated.",
        ),
    ] = None,
    new_data: Annotated[
        list[str] | None, typer.Option("--new", help="Data of what was learned. May be repeated.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", help="Text around a class name of data, with {} in its place; may be repeated."
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="A column of the data: scores for each of its values. May be repeated."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, max=100, help="Points that the known may lose in a safe update."),
    ] = 1.0,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            help='Exit with 8 if a number breaks a limit: "retention<0.98", "loss_high>1%", "negative_flips>0.05". '
            "May be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write this .html page, and a .json of the same numbers beside it.",
            callback=on_this_machine,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two models item by item: gains, losses, flipped images, changed search results, moved embeddings.

    The first sentence says whether the update is safe and why.

    Example: everclip diagnose builtin:photo runs/shop --data known-photos/ --new april.parquet -o diagnosis.html
    In a pipeline: everclip diagnose runs/march runs/april --data known-photos/ --fail-if "retention<0.98"
    """
    from everclip.diagnosis.diagnosis_text import diagnosis_text
    from everclip.diagnosis.verdict import Limit
    from everclip.report.fitting import terminal_width

    if not 1 <= len(models) <= 2 or len(set(models)) < len(models):
        raise ConfigError(f"diagnose: expected an old and a new model, found {', '.join(models)}.")
    limits = [Limit.of(text) for text in fail_if or ()]
    for limit in limits:
        limit.require_possible()
    _require_page(output)
    compared = _compare(
        models, data or [], new_data or [], template, tuple(group or ()), tolerance / 100, as_json
    )
    found = compared.diagnosis
    typer.echo(found.model_dump_json(indent=1) if as_json else diagnosis_text(found, terminal_width()))
    if output is not None:
        from everclip.diagnosis.diagnosis_page import write_diagnosis

        for path in write_diagnosis(compared, output):
            typer.echo(str(path), err=as_json)
    _require_limits(limits, compared)


def _require_page(output: Path | None) -> None:
    if output is None:
        return
    from everclip.files import require_writable

    if output.suffix not in (".html", ".htm"):
        raise ConfigError(f"--output: {output}: expected a file ending in .html.")
    require_writable(output.parent, "--output")


def _compare(
    models: list[str],
    data: list[str],
    new_data: list[str],
    template: list[str] | None,
    groups: tuple[str, ...],
    tolerance: float,
    quiet: bool,
) -> Compared:
    from everclip.config import EvaluationConfig
    from everclip.diagnosis.diagnose import Options, diagnose, target_of_data, with_text_notes
    from everclip.diagnosis.of_run import before_and_after
    from everclip.files import cache_folder
    from everclip.store.loading import load_any
    from everclip.templates import templates_of
    from everclip.training.progress import Progress

    texts = templates_of(template, "--template") if template else None
    if len(models) == 1:
        learners, names, targets = before_and_after(models[0], read_stream=not data and not new_data)
    else:
        learners, names, targets = (load_any(models[0]), load_any(models[1])), labels_of(models), []
    targets += [target for name in data for target in target_of_data(name, "kept", texts)]
    targets += [target for name in new_data for target in target_of_data(name, "new", texts)]
    targets = [with_text_notes(target, learners) for target in targets]
    progress = Progress(quiet=quiet)
    shown = ""

    def tick(model: str, done: int, total: int) -> None:
        nonlocal shown
        if model != shown:
            progress.start(f"evaluate {model}", 0)
            shown = model
        progress.update(done, "images", total)

    config = EvaluationConfig(cache=str(cache_folder() / "features"))
    found = diagnose(
        learners[0], learners[1], names, targets, Options(tolerance=tolerance, groups=groups), config, tick
    )
    progress.finish()
    return found


def _require_limits(limits: list[Limit], compared: Compared) -> None:
    """Raise if a limit of `--fail-if` is broken; everything is printed and written by now."""
    from everclip.errors import LimitError

    numbers = compared.diagnosis.numbers
    for limit in limits:
        limit.require_known(numbers)
    if broken := [limit.said(numbers) for limit in limits if limit.broken(numbers)]:
        raise LimitError(f"{'; '.join(broken)}.")


def labels_of(models: list[str]) -> tuple[str, str]:
    """Return short names: of a folder its last part, unless both end alike."""
    short = [Path(name).name if Path(name).is_dir() else name for name in models]
    first, second = short if len(set(short)) == 2 else models
    return first, second
