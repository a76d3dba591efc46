"""What a phase takes from the buffer: shares of its batches, samples that penalties see, embeddings for a choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, Past, Task
from everclip.data.pictures.images import ImageStore
from everclip.data.table import Table
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures
from everclip.features.service import FeatureService
from everclip.methods import replayed
from everclip.methods.build import build_method
from everclip.methods.penalties.lwf import MEMORY
from everclip.methods.settings import SlotSettings
from everclip.models.backbone import load_backbone

CLASSES = (ClassEntry("new", "new"),)
EARLIER = (ClassEntry("old", "old"),)
LOOKING = {"lwf": {"images": "memory"}}


@pytest.fixture
def tables(micro_folder: Path) -> tuple[Table, Table]:
    """The task's 30 samples, and 10 that are stored."""
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    return data.select(range(30)), data.select(range(30, 40))


def mix(
    tables: tuple[Table, Table], classes: Any = None, stored: bool = True, **settings: Any
) -> replayed.PhaseData:
    task = Task(1, "now", tables[0], None, classes)
    given = {k: settings.pop(k) for k in ("penalties", "loss") if k in settings}
    chosen = SlotSettings(replay={"kind": "reservoir", **settings}, **given)
    past = Past((Task(0, "before", tables[1], None, EARLIER),))
    return replayed.mix(task, classes, (tables[1],) if stored else (), chosen, past)


def test_without_stored_samples_a_batch_is_the_tasks_own(tables: tuple[Table, Table]) -> None:
    found = mix(tables, CLASSES, stored=False)
    assert [(source.table, source.weight) for source in found.sources] == [(tables[0], 1.0)]
    assert (found.classes, found.memory, found.stretch, found.notes) == (CLASSES, None, 1.0, ())


@pytest.mark.parametrize(
    ("settings", "share", "stretch"),
    [
        ({"share": 0.2}, 0.2, 1.0),
        ({"share": None}, 0.25, 1.0),  # 10 of 40
        ({"share": 0.2, "beside": True}, 0.2, 1.25),
        ({"share": None, "beside": True}, 0.25, 4 / 3),
    ],
)
def test_stored_samples_take_their_share(
    tables: tuple[Table, Table], settings: dict[str, Any], share: float, stretch: float
) -> None:
    found = mix(tables, **settings)
    assert [source.table for source in found.sources] == [tables[0], tables[1]]
    assert [source.weight for source in found.sources] == pytest.approx([1 - share, share])
    assert found.stretch == pytest.approx(stretch)
    assert (found.classes, found.memory, found.notes) == (None, None, ())


def test_what_penalties_see_of_the_stored_samples(tables: tuple[Table, Table]) -> None:
    for use, sources in (("both", 2), ("distil", 1)):
        found = mix(tables, use=use, penalties=LOOKING)
        assert (len(found.sources), found.memory, found.notes) == (sources, tables[1], ())
        (name, stream) = next(iter(replayed.memory_streams(found, 16).items()))
        assert (name, [s.table for s in stream.sources], stream.batch_size) == (MEMORY, [tables[1]], 16)
        assert (stream.view, stream.order, stream.columns) == ("eval", "shuffle", ("image",))
    assert replayed.memory_streams(mix(tables), 16) == {}
    for use, said in (("train", ()), ("both", (replayed.UNUSED,)), ("distil", (replayed.UNUSED,))):
        found = mix(tables, use=use, penalties={"lwf": {"images": "batch"}})
        assert (found.memory, found.notes) == (None, said)


def test_classes_so_far_are_learned_together_or_captions_where_a_stored_sample_has_none(
    tables: tuple[Table, Table],
) -> None:
    kept = tuple(ClassEntry(key, key, tasks=(0,)) for key in dict.fromkeys(tables[1].column("class_key")))
    again = ClassEntry(kept[0].key, kept[0].name, tasks=(1,))
    task = Task(1, "now", tables[0], None, (*CLASSES, again))
    chosen = SlotSettings(replay={"kind": "reservoir"})
    both = replayed.mix(
        task, task.classes, (tables[1],), chosen, Past((Task(0, "old", tables[1], None, kept),))
    )
    assert both.classes is not None
    assert [entry.key for entry in both.classes] == [*(entry.key for entry in kept), "new"]
    assert both.classes[0].tasks == (0, 1)
    assert both.notes == ()
    captions = replayed.mix(task, task.classes, (tables[1],), chosen, Past())
    assert (captions.classes, captions.notes) == (None, (replayed.REPLAYED_CAPTIONS,))
    labels = SlotSettings(replay={"kind": "reservoir"}, loss="labels")
    assert replayed.mix(task, task.classes, (tables[1],), labels, Past()).classes == (*CLASSES, again)


def test_embeddings_are_those_of_each_image_whatever_the_blocks(
    tables: tuple[Table, Table], micro_folder: Path
) -> None:
    method: Any = build_method(MethodConfig(), load_backbone(str(micro_folder / "model"))).eval()
    store, table = ImageStore(), tables[0]
    pixels = torch.stack([method.backbone.preprocess(store.get(table, i)) for i in range(len(table))])
    with torch.no_grad():
        expected = method.encode_images(pixels)["embedding"]
    encoder = image_encoder(method, method.encoder_keys())
    for size, workers in ((256, 1), (30, 0), (7, 1), (7, 3), (1, 2)):
        service = FeatureService(store, workers)
        embeddings = service.images(encoder, Pictures.of(table), block=size)["embedding"]
        assert torch.allclose(embeddings, expected, atol=1e-6)


def test_joint_learns_the_task_and_the_base_in_one_phase(
    tables: tuple[Table, Table], micro_folder: Path
) -> None:
    method = build_method(MethodConfig(name="joint"), load_backbone(str(micro_folder / "model")))
    task, given = Task(0, "all", tables[0], None, CLASSES), TrainingConfig(steps=3, batch_size=9)
    for base in (None, tables[1]):
        (phase,) = method.phases(task, Past(base=base, training=given))
        (stream,) = phase.streams.values()
        ids = [*tables[0].ids, *(base.ids if base is not None else ())]
        assert (phase.name, stream.batch_size, stream.classes) == ("train", 9, CLASSES)
        assert [source.table.ids for source in stream.sources] == [ids]
    (captions,) = method.phases(Task(0, "all", tables[0]), Past(training=given))
    assert captions.streams["main"].classes is None
