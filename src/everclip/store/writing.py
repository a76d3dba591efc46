"""Write a version into the folder of a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.torch import load_file

from everclip.data.table import Table
from everclip.files import crash_point, file_digest, folder_atomic, write_text_atomic
from everclip.learner.core import Learner
from everclip.sealing import sealed
from everclip.store.objects import Objects
from everclip.store.paths import HELD_OUT, LEARNER, MANIFEST, OBJECTS, VERSIONS
from everclip.store.records import Version
from everclip.training.checkpoint import STATE, TENSORS


def write_version(
    store: Path,
    learner: Learner,
    version: Version,
    held_out: Table | None,
    pages: Callable[[Path], None] | None = None,
) -> Version:
    """Write a version into a store's folder; see `Store.add`."""
    objects = Objects(store / OBJECTS)
    with folder_atomic(store / VERSIONS / version.id) as folder:
        saved = learner.save(folder / LEARNER)
        tensors = objects.put_tensors(load_file(saved / TENSORS))
        state = objects.put((saved / STATE).read_bytes())
        crash_point("in store: objects")
        shutil.rmtree(folder / LEARNER / "checkpoints")
        if held_out is not None and len(held_out):
            pq.write_table(held_out.arrow(), folder / HELD_OUT)
        files = {str(p.relative_to(folder)): file_digest(p) for p in _files(folder)}
        written = version.model_copy(update={"tensors": tensors, "learner": state, "files": files})
        if pages is not None:
            pages(folder)  # not among the files that are checked: a page is no part of the model
        write_text_atomic(folder / MANIFEST, sealed(written))
    return written


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
