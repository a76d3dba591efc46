"""The verbs of a search index: index and search (`reindex` has a file of its own)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everclip.cli.options import Json, StoreFolder, on_this_machine
from everclip.cli.printing import json_text, note
from everclip.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from everclip.search.adding import Added
    from everclip.search.index import Hit
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
            help="With a new index: up to so many images, search is exact; default: 20,000.",
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
            f"note: {named(document['differing'])} are there with other content or metadata; --replace replaces them"
        )
    if document.get("left_out"):
        lines.append(f"note: columns that cannot be kept: {', '.join(document['left_out'])}")
    lines += failed_lines(document.get("failed", {}))
    return lines


def named(ids: list[str]) -> str:
    """Return ids, the first ones of many."""
    more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return f"{', '.join(ids[:NAMED])}{more}"


def failed_lines(failed: dict[str, str]) -> list[str]:
    """Return images that were set aside, with their reasons, as lines."""
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
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Search for images like this one.", callback=on_this_machine),
    ] = None,
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
