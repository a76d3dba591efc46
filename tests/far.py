"""A store below a `file://` URL for tests: two versions, and an index with vectors of the first one."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from everclip.search import adding
from everclip.search.index import Index
from everclip.store.creating import create_store
from everclip.store.indexed import model_of
from moving import moved

ITEMS = 24


def images_in(folder: Path, micro_folder: Path) -> Path:
    """Write a table of images to index; return its file."""
    path = folder / "images.parquet"
    pq.write_table(pq.read_table(micro_folder / "data.parquet").slice(0, ITEMS), path)
    return path


def behind(folder: Path, micro_folder: Path) -> Path:
    """Make a store whose v0002 serves while its index holds vectors of v0001; return its folder."""
    images = images_in(folder, micro_folder)
    store = create_store(f"file://{folder / 'store'}", str(micro_folder / "model"), method="finetune")
    with store.changing_index("index"):
        adding.add(Index.create(store.path), model_of(store), adding.images_of([str(images)])[0])
    with store.changing("update") as action:
        action.version = moved(store)
        store.point_to(action.version)
    return folder / "store"
