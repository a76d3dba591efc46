"""The verbs of a search index: index, search, reindex."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everclip.cli.options import Json, StoreFolder
from everclip.cli.printing import json_text, note
from everclip.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from everclip.search.adding import Added
    from everclip.search.index import Hit, Index
    from everclip.search.reindexing import Reindexed
    from everclip.search.ways import Estimate, Job
    from everclip.store.versions import Store

NAMED = 10
"""Ids that a message names at most."""


def index(
    store: StoreFolder,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, or tables (.parquet, .csv...) with a column of images."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Also replace items that are there with other content or metadata."),
    ] = False,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Remove the item with this id. May be repeated.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id", help="The column that names an item; default: guessed, else the image's path."),
    ] = None,
    quarantine_limit: Annotated[
        float, typer.Option("--quarantine-limit", min=0, max=1, help="Largest share of unusable images.")
    ] = 0.01,
    exact_below: Annotated[
        int | None,
        typer.Option(
            "--exact-below",
            min=0,
            help="With a new index: up to so many images, search is exact; default: 50,000.",
        ),
    ] = None,
    storage: Annotated[
        Literal["float32", "float16"],
        typer.Option("--storage", help="With a new index: numbers of stored vectors."),
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Add images to the search index of a store, or remove some.

    The columns of a table become metadata for `search --where`. The command continues where it was stopped, and adds
    nothing twice.

    Example: everclip index stores/shop photos/ catalogue.parquet

    Example: everclip index stores/shop --remove photos/old.jpg
    """
    from everclip.search import tables
    from everclip.search.adding import remove as remove_items
    from everclip.search.index import Index
    from everclip.store.indexed import has_index
    from everclip.store.opening import open_store

    tables.lancedb()  # before the images are read
    if not images and not remove:
        raise ConfigError("index: name images to add (IMAGES...), or items to remove (--remove ID).")
    opened = open_store(store, note, tables=True)
    document: dict[str, Any] = {}
    with opened.changing_index("index"):
        if exact_below is not None and has_index(opened.path):
            raise ConfigError("--exact-below: the index is there already; its size of exact search stays.")
        if remove:
            gone, unknown = remove_items(Index(opened.path, note, opened.publish_now_and_then), remove)
            document |= {"removed": gone, "unknown": unknown}
        if images:
            found = _add(opened, images, replace, id_column, quarantine_limit, exact_below, storage)
            document |= vars(found)
    typer.echo(json_text(document) if as_json else "\n".join(_index_lines(document)))
    if document.get("unknown"):
        raise DataError(f"--remove: the index has no item {document['unknown'][0]!r}.")


def _add(
    store: Store,
    images: list[str],
    replacing: bool,
    id_column: str | None,
    limit: float,
    exact_below: int | None,
    storage: Literal["float32", "float16"],
) -> Added:
    from everclip.search.adding import Added, add, images_of
    from everclip.search.index import Index
    from everclip.search.records import EXACT_BELOW
    from everclip.store.indexed import answering, model_of

    try:
        read = images_of(images, id_column, limit)
    except DataError as error:
        raise DataError(str(error).replace("data.quarantine_limit", "--quarantine-limit")) from error
    below = EXACT_BELOW if exact_below is None else exact_below
    opened = Index.create(store.path, below, note, store.publish_now_and_then)
    model = model_of(store) if opened.state.space is None else answering(store, opened).model
    total = Added()
    for part in read:
        for entry in part.set_aside:
            total.failed[entry.name] = f"{entry.reason}: {entry.detail}"
        total = total.joined(add(opened, model, part, replacing=replacing, storage=storage, tell=note))
    return total


def _index_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    if "removed" in document:
        lines.append(f"{len(document['removed']):,} removed")
    if "added" in document:
        counts = [f"{document[name]:,} {name}" for name in ("added", "replaced")]
        lines.append(f"{', '.join(counts)}, {document['same']:,} already there")
    if document.get("repeated"):
        lines.append(f"note: {document['repeated']:,} rows name an image of an earlier row")
    if document.get("differing"):
        lines.append(
            f"note: {_named(document['differing'])} are there with other content or metadata; --replace replaces them"
        )
    if document.get("left_out"):
        lines.append(f"note: columns that cannot be kept: {', '.join(document['left_out'])}")
    lines += _failed_lines(document.get("failed", {}))
    return lines


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return f"{', '.join(ids[:NAMED])}{more}"


def _failed_lines(failed: dict[str, str]) -> list[str]:
    if not failed:
        return []
    lines = [f"{len(failed):,} set aside:"]
    lines += [f"  {name}: {why}" for name, why in list(failed.items())[:NAMED]]
    if len(failed) > NAMED:
        lines.append(f"  and {len(failed) - NAMED:,} more")
    return lines


def search(
    store: StoreFolder,
    text: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Search for images like this one.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=10_000, help="Number of results.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            help="A condition on metadata: year>=2024, tag=cat, name~red. May be repeated; all must hold.",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every image.")] = False,
    no_hits: Annotated[
        bool,
        typer.Option("--no-hits", help="Do not count which images were found (for reindex --how mixed)."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Search the images of a store by text or by image. Prints cosine similarities: from -1 to 1, no probability.

    The version answers whose vectors the index holds, also after an update; a note says so.

    Example: everclip search stores/shop "a red kettle" --where "year>=2024" --top 5
    """
    from everclip.search.filters import conditions
    from everclip.search.hits import Hits
    from everclip.search.index import Index
    from everclip.store.indexed import answering
    from everclip.store.opening import open_store

    if (text is None) == (image is None) or (text is not None and not text.strip()):
        raise ConfigError("search: give a text or --image FILE.")
    opened = open_store(store, note, tables=True)
    found = Index(opened.path, note)
    view = found.view()
    wanted = conditions(where or [], view.state.columns)
    answers = answering(opened, found)
    query = answers.model.of_texts([text]) if text is not None else answers.model.of_image(*_read(image))
    try:
        hits = view.search(answers.model.key, query, top, wanted, exact)[0]
    except CheckpointError:  # another process has just cleaned what this view was of
        hits = found.view().search(answers.model.key, query, top, wanted, exact)[0]
    if (newer := answers.note(opened.place)) is not None:
        note(newer)
    if as_json:
        document = {
            "version": answers.model.version,
            "newer": answers.newer,
            "results": [vars(hit) | {"cosine": round(hit.cosine, 6)} for hit in hits],
        }
        typer.echo(json_text(document))
    else:
        lines = [_hit_line(hit, view.state.roots) for hit in hits]
        typer.echo("\n".join(lines) if hits else "no image meets the conditions")
    if not no_hits and opened.copy is None:  # a working copy belongs to this machine alone
        counted = Hits(found.folder)
        counted.add(hit.id for hit in hits)
        counted.flush(wait=1.0)


def _read(image: Path | None) -> tuple[bytes, str]:
    from everclip.data.pictures.location import bytes_at
    from everclip.files import user_path

    path = user_path(image, "--image")
    place = {"bytes": None, "path": str(path), "offset": None, "size": None, "sha256": None}
    return bytes_at(place), str(path)


def _hit_line(hit: Hit, roots: Mapping[str, str]) -> str:
    from everclip.search.naming import named_by_path

    name = hit.id
    if hit.path is not None and named_by_path(hit.id, hit.path, roots):
        here = Path.cwd()
        name = str(Path(hit.path).relative_to(here)) if Path(hit.path).is_relative_to(here) else hit.path
    metadata = ", ".join(f"{name}={value}" for name, value in hit.metadata.items())
    return f"{hit.cosine:.3f}  {name}" + (f"  {metadata}" if metadata else "")


def reindex(
    store: StoreFolder,
    to: Annotated[
        str | None, typer.Option("--to", help="The version to move to; default: the current one.")
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(
            "--how",
            help="The way: reembed (every image again; default), map (old vectors into the new space, if a sample "
            "shows that recall is kept), mixed (map, then embed again), choose (mixed or reembed, by the sample).",
        ),
    ] = None,
    recall: Annotated[
        float,
        typer.Option("--recall", min=0, max=1, help="Share of the true neighbours that a map must keep."),
    ] = 0.9,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Images per second at most.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Stop after 5000 (images) or 2h, 30m, 90s; repeat to continue."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="Texts, one per line, that compare old and new; default: captions."),
    ] = None,
    no_switch: Annotated[
        bool, typer.Option("--no-switch", help="Keep the old vectors answering; `--switch` switches later.")
    ] = False,
    switch: Annotated[
        bool, typer.Option("--switch", help="Let the vectors answer that are complete.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Let the vectors answer that answered before.")
    ] = False,
    tidy: Annotated[bool, typer.Option("--tidy", help="Remove vectors that are of no use any more.")] = False,
    quarantine_limit: Annotated[
        float,
        typer.Option(
            "--quarantine-limit", min=0, max=1, help="Largest share of unreadable images at a switch."
        ),
    ] = 0.01,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say how many images would be embedded, how long, how much disk."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Move the search index to the vectors of another version, while the old ones answer.

    The command continues where it was stopped or killed. When every image has its new vector, both versions answer the
    same queries side by side, and the new one takes over in one step.

    Example: everclip reindex stores/shop --rate 50 --budget 2h
    """
    from everclip.search import reindexing
    from everclip.search.index import Index
    from everclip.store.opening import open_store

    if sum((switch, rollback, tidy)) > 1 or (no_switch and switch):
        raise ConfigError("reindex: give one of --switch, --no-switch, --rollback, --tidy.")
    opened = open_store(store, note, tables=True)
    with nullcontext() if dry_run else opened.changing_index("reindex"):
        found = Index(opened.path, note, opened.publish_now_and_then)
        if switch:
            typer.echo(f"{reindexing.switch(found, to).version} answers searches now")
        elif rollback:
            _roll_back(store, found)
        elif tidy:
            gone = reindexing.tidy(found)
            typer.echo(f"removed the vectors of {', '.join(s.version for s in gone) or 'no version'}")
        else:
            job = _job(opened, found, to, rate, budget, quarantine_limit, recall)
            if dry_run:
                _print_estimates(job, how, as_json)
                return
            done = reindexing.reindex(job, how or "reembed", _queries(queries), not no_switch)
            typer.echo(_reindexed_text(store, job, done, as_json))


def _roll_back(store: str, index: Index) -> None:
    from everclip.search import reindexing

    space, left = reindexing.rollback(index)
    typer.echo(f"{space.version} answers searches now")
    if left:
        typer.echo(
            f"note: {left:,} items were added or changed since and are not found until "
            f"`everclip reindex {store} --to {space.version}` has embedded them"
        )


def _job(
    store: Store,
    index: Index,
    to: str | None,
    rate: float | None,
    budget: str | None,
    limit: float,
    recall: float,
) -> Job:
    from everclip.search.ways import Budget, Job
    from everclip.store.indexed import model_of

    def old() -> Any:
        space = index.state.space
        return model_of(store, None if space is None else space.version)

    limits = Budget.parse(budget)
    return Job(index, old, model_of(store, to), rate, limits, limit, recall, note)


def _queries(path: Path | None) -> list[str]:
    from everclip.cli.classify import lines_of

    return lines_of(path, "--queries")


def _print_estimates(job: Job, how: str | None, as_json: bool) -> None:
    from everclip.search.reindexing import WAYS, way_of

    ways = [way_of(how)] if how is not None else list(WAYS.values())
    found = [way.estimate(job) for way in ways]
    if as_json:
        typer.echo(json_text([vars(one) for one in found]))
    else:
        typer.echo("\n".join(estimate_line(one, job.new.version) for one in found))


def estimate_line(of: Estimate, version: str) -> str:
    """Return what a way would take as a line."""
    from everclip.report.formats import seconds, size

    recall = "" if of.recall is None else f", keeps {of.recall:.1%} of the true neighbours"
    return (
        f"{of.how}: {of.images:,} images to embed with {version}, about {seconds(of.seconds)}, "
        f"{size(of.disk)} of disk{recall}"
    )


def _reindexed_text(store: str, job: Job, done: Reindexed, as_json: bool) -> str:
    filled = done.filled
    if as_json:
        document = {
            "version": job.new.version,
            "switched": done.switched,
            **vars(filled),
            "compared": None if done.compared is None else done.compared.model_dump(),
        }
        return json_text(document)
    lines = [
        f"{filled.images:,} images embedded with {job.new.version} in {filled.seconds:.1f} s",
        *filled.lines,
    ]
    if filled.changed:
        lines.append(
            f"note: {len(filled.changed):,} files have changed since they were indexed: {_named(filled.changed)}"
        )
    lines += _failed_lines(filled.failed)
    if filled.left:
        lines.append(f"{filled.left:,} are left; the same command continues")
    elif done.switched:
        lines.append(
            f"{job.new.version} answers searches now; `everclip reindex {store} --rollback` goes back"
        )
    elif done.compared is not None or not filled.lines:
        lines.append(f"complete; `everclip reindex {store} --switch` lets {job.new.version} answer")
    return "\n".join(lines)
