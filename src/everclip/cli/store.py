"""The verbs of a store: init, update, versions, promote, rollback, prune, status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everclip.cli.options import Json, StoreFolder, Wait, on_this_machine
from everclip.cli.printing import json_text, note
from everclip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from everclip.store.foreseen import Foreseen
    from everclip.store.outlook import Outlook
    from everclip.store.records import Gate, Learning, Version
    from everclip.store.thresholds import Carried
    from everclip.store.updating import Updated
    from everclip.store.versions import Store


def init(
    store: Annotated[
        str, typer.Argument(help="A new or empty folder, or a URL where nothing is (s3://bucket/shop).")
    ],
    model: Annotated[
        str, typer.Option("--model", help="A backbone, an export, a run folder, a learner, or STORE@v0003.")
    ] = "builtin:photo",
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="backbone.weights=FILE, method.KEY=VALUE, training.KEY=VALUE, gates.KEY=VALUE, seed=N"
        ),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="The preset that updates learn with.")] = "safe",
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", help="Data that the model must keep; a bounded part is copied. May be repeated."
        ),
    ] = None,
) -> None:
    """Make a store: the versions of a deployed model, with the gates that an update must pass.

    The model is copied, so the store needs no file outside itself.

    Example: everclip init stores/shop --model builtin:photo --probe known-photos/ gates.retention=0.01
    """
    from everclip.config import validated
    from everclip.overrides import overrides_document, types_of
    from everclip.store.creating import create_store
    from everclip.store.records import Given

    given = validated(Given, overrides_document(settings or [], types_of(Given)), "init")
    made = create_store(
        store,
        model,
        backbone=given.backbone,
        method=method,
        method_settings=given.method,
        training=given.training,
        probes=probe or (),
        gates=given.gates,
        seed=given.seed,
        say=note,
    )
    typer.echo(
        f"{made.place}: {made.current.version} serves ({made.settings.origin}, updates learn with {method})"
    )
    if not made.settings.probes:
        typer.echo("note: no --probe: the first update cannot show that it keeps what the model knows")


def update(
    store: StoreFolder,
    data: Annotated[str, typer.Option("--data", help="New data: a folder, table or shards.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="method.KEY=VALUE, training.KEY=VALUE, for this update only"),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Another preset than the store's, for this update only.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="A name for the data.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the model already knows of the data, and stop.")
    ] = False,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="With --dry-run: a column whose values are looked at apart."),
    ] = None,
    accept_unclear: Annotated[
        bool,
        typer.Option("--accept-unclear", help="Serve even if a gate cannot tell or was not measured."),
    ] = False,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            "--thresholds",
            help='A tagger\'s cut-offs as JSON {"class name": cosine}: also give those that keep each old precision.',
            callback=on_this_machine,
        ),
    ] = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Learn new data from the version that serves. The result serves only if it passes every gate.

    Held-out rows of the data, probes and held-out rows of earlier updates are measured: one half chooses how far the
    weights go from the old to the learned ones, the other half judges. A rejected version is kept with its page; exit
    code 8 then.

    Example: everclip update stores/shop --data april.parquet

    Example: everclip update stores/shop --data april.parquet --method finetune training.lr=1e-5
    """
    from everclip.cli.reindex import estimate_line
    from everclip.errors import LimitError
    from everclip.store.indexed import estimate_after_update
    from everclip.store.opening import open_store
    from everclip.store.outlook import outlook
    from everclip.store.thresholds import read_thresholds
    from everclip.store.updating import update as learn

    opened = open_store(store, note, tables=dry_run)
    cuts = None if thresholds is None else read_thresholds(thresholds)
    if slices and not dry_run:
        raise ConfigError("--slice: only with --dry-run.")
    learning = _learning(opened, method, settings or [])
    if dry_run:
        found = outlook(opened, data, slices or (), learning)
        again = (
            estimate_after_update(opened) if found.takes is not None and found.takes.images_change else None
        )
        if as_json:
            typer.echo(json_text(_plain(found) | {"reindex": again and vars(again)}))
        else:
            typer.echo(outlook_text(found))
            if again is not None:
                typer.echo(f"the search index: {estimate_line(again, 'the new version')}")
        return
    done = learn(
        opened,
        data,
        name=name,
        learning=learning,
        wait=wait,
        accept_unclear=accept_unclear,
        thresholds=cuts,
        tell=lambda line: typer.echo(line, err=as_json),
    )
    typer.echo(done.version.model_dump_json(indent=1) if as_json else updated_text(opened, done))
    if not done.serves:
        raise LimitError(
            f"{done.version.id} is kept as rejected ({unpassed(done.version)}); {opened.current.version} still serves."
        )


def _learning(store: Store, method: str | None, settings: list[str]) -> Learning | None:
    """Return how an update learns if not as the store says; a wrong name or setting is found before data are read."""
    from everclip.config import validated
    from everclip.overrides import overrides_document, types_of
    from everclip.store.learning import require_settings
    from everclip.store.records import GivenToUpdate, Learning

    if method is None and not settings:
        return None
    given = validated(GivenToUpdate, overrides_document(settings, types_of(GivenToUpdate)), "update")
    learning = Learning(method=method, method_settings=given.method, training=given.training)
    require_settings(store.settings, learning)
    return learning


def versions(store: StoreFolder, as_json: Json = False) -> None:
    """List the versions of a store.

    Example: everclip versions stores/shop
    """
    from everclip.store.opening import open_store

    opened = open_store(store, note)
    found, damaged = [], []
    for version in opened.ids():
        try:
            found.append(opened.version(version))
        except CheckpointError as error:
            damaged.append(str(error))
    if as_json:
        typer.echo(json_text([v.model_dump(mode="json") for v in found]))
    else:
        typer.echo(versions_text(opened, found))
    if damaged:
        raise CheckpointError(" ".join(damaged))


def promote(
    store: StoreFolder,
    version: Annotated[str, typer.Argument(help="The version that shall serve.")],
    wait: Wait = False,
) -> None:
    """Let a version serve, also a rejected one. Its contents are checked first.

    Example: everclip promote stores/shop v0003
    """
    from everclip.store.opening import open_store

    opened = open_store(store, typer.echo)
    with opened.changing("promote", wait, version) as action:
        pointer = opened.promote(version, action)
    typer.echo(f"{pointer.version} serves")
    of = opened.version(version)
    if of.state == "rejected":
        note(f"note: an update rejected it ({unpassed(of)})")


def rollback(store: StoreFolder, wait: Wait = False) -> None:
    """Let the version serve that served before.

    Example: everclip rollback stores/shop
    """
    from everclip.store.opening import open_store

    opened = open_store(store, typer.echo)
    with opened.changing("rollback", wait) as action:
        pointer = opened.rollback(action)
    typer.echo(f"{pointer.version} serves")


def prune(
    store: StoreFolder,
    keep: Annotated[
        int, typer.Option("--keep", min=0, help="Accepted versions that stay beside the current one.")
    ] = 3,
    rejected: Annotated[bool, typer.Option("--rejected", help="Also remove all rejected versions.")] = False,
    wait: Wait = False,
) -> None:
    """Remove old versions and the contents that no version needs.

    Example: everclip prune stores/shop --keep 2 --rejected
    """
    from everclip.report.formats import size
    from everclip.store import pruning
    from everclip.store.opening import open_store

    opened = open_store(store, typer.echo)
    with opened.changing("prune", wait) as action:
        removed = pruning.prune(opened, keep, rejected, action)
    typer.echo(f"removed {', '.join(removed.versions) or 'no version'}, {size(removed.bytes)}")


def status(store: StoreFolder, as_json: Json = False) -> None:
    """Say what serves, whether its contents are undamaged, and what was done last.

    Example: everclip status stores/shop
    """
    from everclip.store.indexed import index_lines
    from everclip.store.opening import open_store

    opened = open_store(store, note, tables=True)
    document = status_of(opened)
    if as_json:
        typer.echo(json_text(document))
        return
    typer.echo(f"{document['current']} serves; before it: {', '.join(document['before']) or 'none'}")
    typer.echo(f"versions: {len(document['versions'])}; probes: {', '.join(document['probes']) or 'none'}")
    typer.echo("contents: " + ("undamaged" if not document["problems"] else "; ".join(document["problems"])))
    for line in index_lines(document["index"]):
        typer.echo(line)
    for entry in document["journal"]:
        version = f" {entry['version']}" if entry["version"] else ""
        typer.echo(
            f"  {entry['at']}  {entry['verb']}{version}: {entry['outcome']}  {entry['detail']}".rstrip()
        )


LAST = 10
"""Actions of the journal that `status` shows."""


def status_of(store: Store) -> dict[str, Any]:
    """Return what `status` prints."""
    from everclip.store.indexed import index_document

    pointer = store.current
    return {
        "current": pointer.version,
        "before": pointer.before,
        "versions": store.ids(),
        "probes": store.settings.probes,
        "problems": store.problems(pointer.version) + ([] if store.copy is None else store.copy.problems()),
        "index": index_document(store),
        "journal": [vars(entry) for entry in store.journal.entries(LAST)],
    }


def versions_text(store: Store, found: list[Version]) -> str:
    """Return one line per version."""
    pointer = store.current
    lines = []
    for version in found:
        mark = "*" if version.id == pointer.version else " "
        what = f"from {version.parent}" if version.parent else f"from {store.settings.origin}"
        data = f", {version.data.rows:,} rows of {version.data.name}" if version.data else ""
        numbers = [
            f"{name} {version.numbers[name]:.3f}" for name in ("retention", "gain") if name in version.numbers
        ]
        told = f"; {', '.join(numbers)}" if numbers else ""
        data += f", with {version.method}" if version.learning is not None else ""
        lines.append(f"{mark} {version.id}  {version.created}  {version.state:8}  {what}{data}{told}")
    return "\n".join(lines)


def unpassed(version: Version) -> str:
    """Return the gates that a version did not pass."""
    return ", ".join(f"{gate.name}: {gate.state}" for gate in version.gates if gate.state != "pass")


def gate_line(gate: Gate) -> str:
    """Return a gate as a line."""
    return f"  {gate.name:14} {gate.state:12} {gate.reason}"


def threshold_line(of: Carried) -> str:
    """Return a class's old and new threshold as a line."""
    if of.new is None:
        return f"  threshold of {of.name}: {of.old:.4f}, no new one: {of.note}"
    before, after = of.recall
    kept = "" if before is None or after is None else f", recall {before:.1%} to {after:.1%}"
    return f"  threshold of {of.name}: {of.old:.4f} to {of.new:.4f} (precision {of.precision[0]:.1%}{kept})"


def updated_text(store: Store, done: Updated) -> str:
    """Return what an update did."""
    lines = ["gates:", *map(gate_line, done.version.gates)]
    lines += [threshold_line(of) for of in done.thresholds]
    lines.append(f"page: {store.place_of(done.version.id, 'diagnosis.html')}")
    if done.serves:
        lines.append(f"{done.version.id} serves now; `everclip rollback {store.place}` goes back")
    return "\n".join(lines)


def takes_lines(of: Foreseen | None) -> list[str]:
    """Return what an update would take."""
    from everclip.report.formats import seconds, size

    if of is None:
        return []
    memory = "" if of.memory is None else f", about {size(of.memory)} of memory"
    trained = (
        "nothing to train"
        if of.seconds is None
        else f"{of.steps:,} steps, about {seconds(of.seconds)}{memory}"
    )
    index = (
        "the image tower trains, so every search index of it must be embedded again"
        if of.images_change
        else "the image tower stays, so a search index of it stays valid"
    )
    return [
        f"an update takes {trained}, and up to {size(of.disk)} of disk; the gates are measured after it",
        index,
    ]


def outlook_text(found: Outlook) -> str:
    """Return what is known before an update."""
    from everclip.store.outlook import known_lines, worth_lines

    rows = f"{found.rows:,} rows to learn from, {found.held_out:,} only measured"
    return "\n".join([rows, *known_lines(found), *takes_lines(found.takes), *worth_lines(found)])


def _plain(found: Outlook) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found)
