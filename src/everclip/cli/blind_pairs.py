"""`everclip blind-pairs`: pairs of images that a CLIP cannot tell apart and a vision-only model can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.options import Json, on_this_machine
from everclip.cli.printing import json_text
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.diagnosis.blind_pairs import BlindPairs


def blind_pairs(
    data: Annotated[
        str, typer.Argument(help="Data with images: a folder, table or shards, or builtin:emoji.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings as key=value: columns.image=file data.quarantine_limit=0.1 backbone.weights=FILE"
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="A run folder, a saved learner, an export, a store, or a backbone.")
    ] = "builtin:photo",
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            help="A vision-only model: timm:NAME, a folder in timm's layout, lite0 to lite2, or a backbone.",
        ),
    ] = "lite0",
    reference_weights: Annotated[
        str | None, typer.Option("--reference-weights", help="Its file of weights, for timm:NAME.")
    ] = None,
    above: Annotated[float, typer.Option("--above", help="Least cosine for the CLIP.")] = 0.95,
    below: Annotated[float, typer.Option("--below", help="Largest cosine for the reference.")] = 0.6,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Keep at most this many pairs.")] = 10_000,
    per_image: Annotated[
        int | None, typer.Option("--per-image", min=1, help="Keep at most this many pairs of an image.")
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            "--before",
            help="Pairs of an earlier model (.parquet): says which stay, heal or are new.",
            callback=on_this_machine,
        ),
    ] = None,
    mix: Annotated[
        float | None,
        typer.Option(
            "--mix",
            help="Say how many pairs a mixture with the reference tells apart; the CLIP's share, 0 to 1.",
        ),
    ] = None,
    rows: Annotated[
        bool,
        typer.Option(
            "--rows", help="Follow the pairs over the rows of a run (--model) with checkpoint.keep_rows=true."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the pairs to this .parquet, and an .html page beside it.",
            callback=on_this_machine,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find pairs of images that a CLIP cannot tell apart and a vision-only model can.

    A pair is blind if its cosine is above 0.95 for the CLIP and below 0.6 for the reference (MMVP, arXiv 2401.06209).
    All pairs of images are compared.

    Example: everclip blind-pairs photos/ --model runs/shop --reference lite0 -o blind.parquet

    Over the tasks of a run: everclip blind-pairs photos/ --model runs/shop --rows

    After an update: everclip blind-pairs photos/ --model runs/shop2 --before blind.parquet -o blind2.parquet
    """
    _require_valid(above, below, mix, output)
    if rows and before is not None:
        raise ConfigError("--rows: compares with the run's own start model; leave --before out.")
    found = _find(
        data,
        settings or [],
        model,
        (reference, reference_weights),
        before,
        as_json,
        above=above,
        below=below,
        limit=limit,
        per_image=per_image,
        mix=mix,
        rows=rows,
    )
    _show(found, output, as_json)


def _require_valid(above: float, below: float, mix: float | None, output: Path | None) -> None:
    """Refuse bounds that are no cosines, a share that is none, and an output that cannot be written."""
    if mix is not None and not 0 <= mix <= 1:
        raise ConfigError(f"--mix: {mix} is no share of the CLIP; expected 0 to 1.")
    for name, value in (("--above", above), ("--below", below)):
        if not -1 <= value <= 1:
            raise ConfigError(f"{name}: {value} is no cosine; expected -1 to 1.")
    if output is not None:
        from everclip.files import require_writable

        if output.suffix != ".parquet":
            raise ConfigError(f"--output: {output}: expected a file ending in .parquet.")
        require_writable(output.parent, "--output")


def _find(
    data: str,
    settings: list[str],
    model: str,
    reference: tuple[str, str | None],
    before: Path | None,
    quiet: bool,
    *,
    above: float,
    below: float,
    limit: int,
    per_image: int | None,
    mix: float | None,
    rows: bool,
) -> BlindPairs:
    """Read data and models, and find the pairs; `reference` is its name and its file of weights."""
    from everclip.cli.evaluate import sections_of
    from everclip.config import EvaluationConfig, validated
    from everclip.data.reading.sources import read
    from everclip.data.reading.spec import DataSpec
    from everclip.diagnosis.blind_pairs import Earlier, find_blind_pairs
    from everclip.diagnosis.blind_rows import follow_rows
    from everclip.files import cache_folder
    from everclip.models.image_encoder import load_image_encoder
    from everclip.store.loading import load_any
    from everclip.training.progress import Progress

    sections = sections_of(settings, "blind-pairs")
    if sections["evaluation"]:
        raise ConfigError("evaluation: no setting of blind-pairs; it takes those of data and backbone.")
    earlier = None if before is None else Earlier.read(before)
    encoder = load_image_encoder(*reference)
    loaded = read(validated(DataSpec, {"source": data, **sections["data"]}, "data"), labelled=False)
    notes: list[str] = []
    progress = Progress(quiet=quiet)
    progress.start("blind-pairs", 0)
    given: dict[str, Any] = {
        "above": above,
        "below": below,
        "limit": limit,
        "per_image": per_image,
        "mix": mix,
    }
    given["tick"] = lambda done, total: progress.update(done, "images", total)
    if rows:
        if sections["backbone"]:
            raise ConfigError("--rows: the backbone is that of the run; leave its settings out.")
        found = follow_rows(loaded.table, model, encoder, **given)
    else:
        learner = load_any(model, sections["backbone"])
        kept = EvaluationConfig(cache=str(cache_folder() / "features"))
        learner.features.folders.keep_in(None, kept, notes.append)
        found = find_blind_pairs(loaded.table, learner, encoder, model=model, earlier=earlier, **given)
    progress.finish()
    found.notes += [*notes, *loaded.guesses]
    found.notes += [loaded.quarantine.summary()] if loaded.quarantine.entries else []
    return found


def _show(found: BlindPairs, output: Path | None, as_json: bool) -> None:
    from everclip.diagnosis.blind_pairs_page import document, text, write_page

    typer.echo(json_text(document(found)) if as_json else text(found))
    if output is not None:
        found.write(output)
        typer.echo(str(output), err=as_json)
        typer.echo(str(write_page(found, output.with_suffix(".html"))), err=as_json)
