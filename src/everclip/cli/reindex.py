"""The verb `reindex`: move a search index to another version."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everclip.cli.options import Json, StoreFolder, on_this_machine
from everclip.cli.printing import json_text, note
from everclip.cli.search import failed_lines, named
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.search.engines import Engine
    from everclip.search.index import Index
    from everclip.search.reindexing import Reindexed
    from everclip.search.ways import Estimate, Job
    from everclip.store.versions import Store


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
        typer.Option(
            "--queries",
            help="Texts, one per line, that compare old and new; default: captions.",
            callback=on_this_machine,
        ),
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
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            "--engine",
            help="What embeds: this process, or actors of Ray Data on one or many machines (RAY_ADDRESS).",
        ),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            "--actors", min=1, help="With --engine ray: processes; default: one per GPU, else per machine."
        ),
    ] = None,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-actor", min=0, help="With --engine ray: default: 1 if the model runs on a GPU here."
        ),
    ] = None,
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
            with _engine(opened, engine, to, actors, gpus_per_actor) as embeds:
                job = _job(opened, found, to, rate, budget, quarantine_limit, recall, embeds)
                if dry_run:
                    _print_estimates(job, how, as_json)
                    return
                done = reindexing.reindex(job, how or "reembed", _queries(queries), not no_switch)
            typer.echo(_reindexed_text(store, job, done, as_json))


def _engine(
    store: Store, name: str, to: str | None, actors: int | None, gpus: float | None
) -> AbstractContextManager[Engine]:
    from everclip.search.engines import LOCAL

    if name == LOCAL.name:
        if actors is not None or gpus is not None:
            raise ConfigError("--actors, --gpus-per-actor: they belong to --engine ray.")
        return nullcontext(LOCAL)
    from everclip.search.ray_engine import RayEngine
    from everclip.store.indexed import model_at

    load = partial(model_at, store.path.absolute(), to or store.current.version)
    return RayEngine(store.path, load, actors, gpus, note)


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
    engine: Engine,
) -> Job:
    from everclip.search.ways import Budget, Job
    from everclip.store.indexed import model_of

    def old() -> Any:
        space = index.state.space
        return model_of(store, None if space is None else space.version)

    limits = Budget.parse(budget)
    return Job(index, old, model_of(store, to), rate, limits, limit, recall, note, engine)


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
        if job.engine.name != "local":
            note("note: the times are of one process on this machine; actors of Ray share the work")


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
            f"note: {len(filled.changed):,} files have changed since they were indexed: {named(filled.changed)}"
        )
    lines += failed_lines(filled.failed)
    if filled.left:
        lines.append(f"{filled.left:,} are left; the same command continues")
    elif done.switched:
        lines.append(
            f"{job.new.version} answers searches now; `everclip reindex {store} --rollback` goes back"
        )
    elif done.compared is not None or not filled.lines:
        lines.append(f"complete; `everclip reindex {store} --switch` lets {job.new.version} answer")
    return "\n".join(lines)
