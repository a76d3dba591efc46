"""The search index of a store: which version answers, and what moving the index to another version takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.errors import CheckpointError, ConfigError
from everclip.search.comparing import compared_line
from everclip.search.embedding import SearchModel
from everclip.search.index import Index, View
from everclip.search.records import FOLDER, SERVING
from everclip.search.reembedding import estimate_of
from everclip.search.ways import Estimate
from everclip.store.versions import Store


def has_index(store: Path) -> bool:
    """Whether a store has a search index; needs no search library."""
    return (store / FOLDER / SERVING).is_file()


def model_of(store: Store, version: str | None = None) -> SearchModel:
    """Load a version for search; default: the current one."""
    name = version or store.current.version
    return SearchModel(store.load(name), name)


def model_at(store: Path, version: str) -> SearchModel:
    """Load a version of the store in a folder for search; other processes call it by its name."""
    return model_of(Store(store), version)


@dataclass(frozen=True, eq=False)
class Answering:
    """The version that answers.

    Attributes:
        model: encodes the queries.
        newer: the current version of the store, if it is another one with another image space.
    """

    model: SearchModel
    newer: str | None

    def note(self, store: str) -> str | None:
        """Return what a user of a store (folder or URL) should know if a newer version serves."""
        if self.newer is None:
            return None
        return (
            f"note: {self.newer} serves, and the index holds vectors of {self.model.version}, so {self.model.version} "
            f"answers; `everclip reindex {store}` moves the index (`--dry-run` says what that takes)"
        )


def answering(store: Store, index: Index) -> Answering:
    """Load the version that answers a search.

    The current version answers if it encodes images as the index was encoded, even if its text tower has learned since.
    Else the version answers whose vectors these are.

    Raises:
        ConfigError: if the index holds no images, or its version is not in the store any more.
        CheckpointError: if the version is damaged.
    """
    state = index.state
    if state.space is None:
        raise ConfigError(f"{store.place}: the index holds no images yet; `everclip index` adds some.")
    current = store.current.version
    if store.version(current).towers.get("image") == state.space.tower:
        model = model_of(store, current)
        if model.key == state.serving:
            return Answering(model, None)
    if state.space.version not in store.ids():
        raise ConfigError(
            f"{store.place}: {state.space.version}, whose vectors the index holds, is not in the store any more. "
            f"`everclip reindex {store.place}` moves the index to {current}."
        )
    model = model_of(store, state.space.version)
    if model.key != state.serving:
        raise ConfigError(
            f"{store.place}: {state.space.version} encodes images in another way than when they were indexed (another "
            f"release of everclip?). `everclip reindex {store.place}` embeds them again."
        )
    return Answering(model, None if current == state.space.version else current)


def estimate_after_update(store: Store) -> Estimate | None:
    """Return what embedding the whole index again takes, if an update changes the image tower; `None` without an index.

    The version that serves is timed: the next one has the same architecture.
    """
    if not has_index(store.path):
        return None
    view = Index(store.path).view()
    return estimate_of(view, model_of(store), range(view.items.count_rows()))


def index_lines(document: Mapping[str, Any] | None) -> list[str]:
    """Return what `index_document` found as lines; none without an index."""
    if document is None:
        return []
    if document.get("problem"):
        return [f"index: {document['problem']}"]
    lines = [
        f"index: {document['items']:,} items; {document['serving'] or 'no version'} answers, "
        f"{'approximate' if document['approximate'] else 'exact'} search"
    ]
    for space in document["spaces"]:
        mark = "*" if space["serving"] else " "
        left = f", {space['missing']:,} without a vector" if space["missing"] else ""
        aside = f", {space['set_aside']:,} unreadable" if space["set_aside"] else ""
        lines.append(
            f"  {mark} {space['version']}  {space['vectors']:,} vectors ({space['how']}){left}{aside}"
        )
        if space["compared"]:
            lines.append(f"      {space['compared']}")
    return lines


def index_document(store: Store) -> dict[str, Any] | None:
    """Return what `status` says of the index; `None` without one, and only `problem` if it is damaged."""
    if not has_index(store.path):
        return None
    try:
        return _document(Index(store.path).view())
    except CheckpointError as error:
        return {"problem": str(error)}


def _document(view: View) -> dict[str, Any]:
    state = view.state
    spaces = []
    for key, space in state.spaces.items():
        missing = len(view.missing(key).keys() - space.set_aside.keys())
        compared = space.compared
        spaces.append(
            {
                "version": space.version,
                "serving": key == state.serving,
                "vectors": view.vectors(key).count_rows(),
                "missing": missing,
                "set_aside": len(space.set_aside),
                "how": space.how,
                "recall": None if space.ann is None else space.ann.recall.model_dump(),
                "compared": None if compared is None else compared_line(compared, space.version),
            }
        )
    return {
        "items": view.items.count_rows(),
        "serving": None if state.space is None else state.space.version,
        "approximate": state.space is not None and state.space.ann is not None,
        "spaces": spaces,
    }
