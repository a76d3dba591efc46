"""Tasks by source: one data block after the other, each with its own names, templates and split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everclip.contracts import EvalSet
from everclip.data.catalog.cards import card_of
from everclip.data.reading.formats.template_files import templates_beside
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, did_you_mean
from everclip.scenarios.base import class_entries
from everclip.scenarios.conditions import matcher
from everclip.scenarios.groups import Group
from everclip.scenarios.ordering import ordered
from everclip.scenarios.reading import Reader, with_class
from everclip.scenarios.shared_images import require_disjoint, without_test_ids
from everclip.scenarios.spec import AlsoSpec, ScenarioSpec, SourceSpec
from everclip.scenarios.splits import classes_without_rows, rule_of, split, unknown_marks


def groups(spec: ScenarioSpec, reader: Reader) -> list[Group]:
    """Return one group per source, in the scenario's order.

    Raises:
        ConfigError: for missing sources; names all of them.
        DataError: for unreadable or incomplete sources; names all of them.
    """
    places = {source.name: i for i, source in enumerate(spec.sources)}
    chosen = [places[name] for name in ordered(list(places), spec, "sources")]
    found: list[Group] = []
    failed: list[ConfigError | DataError] = []
    for i in chosen:
        try:
            if failed:  # the run cannot start: only check that the other sources exist
                reader.require(spec.sources[i].data, f"sources.{i}.data")
            else:
                found.append(_group(spec, spec.sources[i], f"sources.{i}", reader))
        except (ConfigError, DataError) as error:
            failed.append(error)
    if failed:
        raise _one_error(failed, len(chosen))
    return found


def _one_error(failed: Sequence[ConfigError | DataError], count: int) -> ConfigError | DataError:
    """Return one error that lists all failures, so that a user sees every missing source at once."""
    texts = list(dict.fromkeys(map(str, failed)))
    if len(texts) == 1:
        return failed[0]
    kind = next((ConfigError for e in failed if isinstance(e, ConfigError)), DataError)
    return kind("\n  ".join([f"{len(failed)} of {count} sources cannot be read:", *texts]))


def _group(spec: ScenarioSpec, source: SourceSpec, key: str, reader: Reader) -> Group:
    table = reader.read(source.data, f"{key}.data")
    test = None if source.test is None else reader.read(source.test, f"{key}.test")
    val = None if source.val is None else reader.read(source.val, f"{key}.val")
    tables = [t for t in (table, test, val) if t is not None]
    if all(t.has("class_key") for t in tables):
        keys = iter(_keys(tables, None if spec.merge_classes else source.name, source.name))
        table = reader.with_keys(table, next(keys))
        test = None if test is None else reader.with_keys(test, next(keys))
        val = None if val is None else reader.with_keys(val, next(keys))
    rule = rule_of(source.data, source.split or spec.split)
    reader.notes += unknown_marks(table, rule)
    parts = split(table, rule, test, val).keep(matcher(source.where, f"{key}.where"))
    require_disjoint(parts, rule, source.data, f"{key}.split", separate=test is not None)
    parts = parts if test is not None else without_test_ids(parts, rule, reader.notes)
    if source.without:
        parts = parts.keep(_without_classes(source, tables, key))
    kind = reader.kind_of(table.renamed(source.name), source.kind or spec.evaluate_as, f"{key}.kind")
    if kind == "classification" and not source.data.is_catalog:
        reader.notes += classes_without_rows(
            parts, "only measured, not learned", "only learned, not measured"
        )
    templates = source.templates
    if templates is None and source.data.is_catalog:
        templates = card_of(str(source.data.source))[0].texts
    train = source.train_template
    language = source.data.language
    also = tuple(_further(spec, source, i, key, reader) for i in range(len(source.also)))
    return Group(source.name, parts, kind, None, templates, rule, language, key, train, source.measure, also)


def _further(spec: ScenarioSpec, source: SourceSpec, place: int, key: str, reader: Reader) -> EvalSet:
    """Return further test data of a source as an evaluation set; its task is set by the caller.

    Raises:
        DataError: if it holds no such rows.
    """
    given, key = source.also[place], f"{key}.also.{place}"
    table = reader.read(given.data, f"{key}.data")
    reader.kind_of(table, given.kind, f"{key}.kind")
    if table.has("class_key"):
        prefix = None if spec.merge_classes else source.name
        table = reader.with_keys(table, _keys([table], prefix, source.name)[0])
    rows = matcher(given.where, f"{key}.where")(table)
    name = f"{source.name} ({given.kind})"
    if given.kind == "retrieval":
        rows, entries = rows.where("caption", lambda text: text is not None and text != ""), None
    else:
        rows = with_class(rows)
        entries = class_entries(
            rows, given.templates or _templates(given, key, reader) or spec.class_templates
        )
    if len(rows) == 0:
        raise DataError(f"{table.name}: {key} ({name}) holds no rows to measure.")
    return EvalSet(name, given.kind, rows.renamed(name), None, "part", entries)


def _templates(given: AlsoSpec, key: str, reader: Reader) -> tuple[str, ...] | None:
    """Return the templates of a public data set's card, or those of a file beside the data; `None` without."""
    if given.data.is_catalog:
        return card_of(str(given.data.source))[0].texts
    found = templates_beside(reader.paths.located(given.data, f"{key}.data").sources)
    return None if found is None else found[0]


def _without_classes(source: SourceSpec, tables: Sequence[Table], key: str) -> Callable[[Table], Table]:
    """Return a function that keeps the rows whose class is not listed in `without`.

    Raises:
        ConfigError: for a class that does not exist.
    """
    names = {name for table in tables if table.has("class_key") for name in _names(table)}
    for name in source.without:
        if name not in names:
            raise ConfigError(
                f"{key}.without: {name!r} is none of the classes.{did_you_mean(name, map(str, names))}"
            )
    return lambda rows: rows.select([i for i, name in enumerate(_names(rows)) if name not in source.without])


def _keys(tables: Sequence[Table], prefix: str | None, source: str) -> list[list[str | None]]:
    """Return class keys for the tables of a source, such that equal keys in several sources mean the same class.

    Numbers and folder names have a meaning only in their own source, so the name of a class becomes its key. Classes
    of one source that share a name keep their own keys, prefixed with the source's name.

    Args:
        tables: of the source.
        prefix: separates its classes from those of other sources; `None` if equal names are one class.
        source: its name.
    """
    named = [list(zip(t.column("class_key"), _names(t), strict=True)) for t in tables]
    keys_of: dict[str, set[str]] = {}
    for pairs in named:
        in_table: dict[str, set[str]] = {}
        for key, name in pairs:
            in_table.setdefault(str(name), set()).add(str(key))
        for name, keys in in_table.items():  # per table: the test data may number the classes differently
            keys_of[name] = keys if len(keys) > len(keys_of.get(name, ())) else keys_of[name]

    def key_for(key: str | None, name: str | None) -> str | None:
        if key is None:
            return None
        if len(keys_of[str(name)]) > 1:
            return f"{source}/{key}"
        return str(name) if prefix is None else f"{prefix}/{name}"

    return [[key_for(key, name) for key, name in pairs] for pairs in named]


def _names(table: Table) -> list[str | None]:
    keys = table.column("class_key")
    if not table.has("class_name"):
        return keys
    return [key if name is None else name for key, name in zip(keys, table.column("class_name"), strict=True)]
