"""CLL-CLIP on small languages: which rows train, what is counted, what the teacher gives, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

import micro
from everclip.contracts import Task
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner import Learner
from everclip.methods.cll_clip.method import SOURCE, CllClip
from everclip.methods.cll_clip.settings import CllClipSettings
from everclip.models.modules.token_rows import embedding_of

WORDS = {
    "en": ("red", "green", "blue", "grey"),
    "de": ("rot rotes", "grün", "blau blaues", "grau"),
    "hi": ("लाल लाल", "हरा हरा", "नीला", "धूसर"),
}


def language(index: int, name: str, source: bool = True) -> Task:
    draw = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {k: [] for k in ("id", "image_id", "image", "caption", "language")}
    sources = []
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 90)
        rows["id"].append(f"{number}")
        rows["image_id"].append(f"{number}")
        rows["image"].append(micro.picture(colour, number, draw))
        rows["caption"].append(f"{WORDS[name][number % 4]} {WORDS[name][number // 4]}")
        sources.append(f"{WORDS['en'][number % 4]} {WORDS['en'][number // 4]}" if number != 5 else None)
    rows["language"] = [name] * 12
    columns = pa.table({**rows, "image": pa.array(rows["image"], pa.binary())})
    if source:
        columns = columns.append_column("source_caption", pa.array(sources))
    return Task(index, name, Table(columns, name=name), language=name)


def learner(micro_folder: Path, training: dict[str, Any] | None = None, **settings: Any) -> Learner:
    steps = {"steps": 4, "batch_size": 6, "lr": 1e-2, "warmup": 0, "weight_decay": 0.5, "threads": 1}
    return Learner.create(str(micro_folder / "model"), "cll-clip", {**steps, **(training or {})}, **settings)


def method_of(model: Learner) -> CllClip:
    assert isinstance(model.method, CllClip)
    return model.method


def table_of(model: Learner) -> torch.Tensor:
    """Return the whole table, with the rows that are taken out in their places."""
    embedding: Any = embedding_of(model.method.backbone.clip)
    return embedding(torch.arange(embedding.num_embeddings)).detach()


def test_only_rows_that_a_language_uses_move_and_only_they_have_moments(micro_folder: Path) -> None:
    model = learner(micro_folder)
    before = table_of(model)
    model.learn(language(0, "de"))
    now, method = table_of(model), method_of(model)
    used = method.counts > torch.cat([torch.full((514,), 2.0), torch.ones(len(now) - 514)])
    assert len(now) == len(method.backbone.tokenizer.encoder) > 514
    assert not used[[512, 513]].any()  # start and end
    moved = (now[:514] != before).any(dim=1)
    assert torch.equal(moved, used[:514])
    rows = method.get_parameter("backbone.clip.token_embedding.rows")
    assert len(rows) == int(used.sum()) == len(method.row_scale)
    other = {n: p for n, p in method.named_parameters() if p.requires_grad}
    assert set(other) == {"backbone.clip.token_embedding.rows", "tau"}


def test_factors_follow_the_counts(micro_folder: Path) -> None:
    model = learner(micro_folder)
    model.learn(language(0, "de"))
    method = method_of(model)
    factors = method.row_scale[:, 0]
    embedding: Any = embedding_of(method.backbone.clip)
    ids = (embedding.slots >= 0).nonzero()[:, 0]
    assert torch.equal(factors, torch.where(ids < 514, 0.5, 1.0))
    counts = method.counts.clone()
    model.learn(language(1, "de"))  # the same texts again: nothing new
    assert torch.equal(method.row_scale[:, 0], torch.where(ids < 514, 1 / 3, 1 / 2))
    assert torch.equal(method.counts[ids], counts[ids] + 1)
    assert float(method.uses.sum()) == 0


def test_saving_and_loading_counts_nothing(micro_folder: Path, tmp_path: Path) -> None:
    model = learner(micro_folder)
    model.learn(language(0, "de"))
    counts = method_of(model).counts.clone()
    model.save(tmp_path / "one")
    model.save(tmp_path / "one")
    again = Learner.load(tmp_path / "one")
    again.save(tmp_path / "two")
    twice = Learner.load(tmp_path / "two")
    assert torch.equal(method_of(twice).counts, counts)
    texts = ["rotes blau", "red", "नीला"]
    assert torch.equal(twice.encode(texts=texts)["texts"], model.encode(texts=texts)["texts"])
    for each in (model, twice):
        each.learn(language(1, "hi"))
    assert torch.equal(table_of(twice), table_of(model))
    assert torch.equal(method_of(twice).counts, method_of(model).counts)


@pytest.mark.parametrize("rows", ["decay", "update", "gradient", "none"])
def test_what_the_other_rows_do(micro_folder: Path, rows: str) -> None:
    model = learner(micro_folder, rows=rows)
    model.learn(language(0, "de"))
    before, old = table_of(model), len(table_of(model))
    model.learn(language(1, "hi"))
    method = method_of(model)
    unused = method.counts[:old] == 1
    unused[:514] = method.counts[:514] == 2
    unused[[0, 512, 513]] = False
    now = table_of(model)[:old]
    if rows in ("decay", "update"):
        assert torch.equal(now[unused], before[unused])
    else:
        shrunk = before[unused] * (1 - 1e-2 * 0.5) ** 4
        assert torch.allclose(now[unused], shrunk, rtol=1e-4)


def test_the_source_caption_of_each_row_and_the_image_are_the_targets(micro_folder: Path) -> None:
    model = learner(micro_folder)
    task = language(0, "de")
    model.method.begin_task(task, model.past())
    (phase,) = model.plan(task)
    streams = dict(phase.streams)
    model.engine.columns.prepare(model.method, streams)
    batch = {"main": model.engine.maker.batch(streams["main"], "s/main", 0)}
    model.engine.columns.add(batch, streams, "s", 0)
    teacher = model.method.teacher_of("initial")
    columns = batch["main"]
    assert "image" not in columns
    for row, name in enumerate(columns["id"]):
        source = task.train.value("source_caption", int(name))
        found = columns[SOURCE][row]
        if source is None:
            assert found.isnan().all()
            continue
        expected = teacher.encode_text(teacher.tokenise([source]), unit=False)[0]
        assert torch.allclose(found, expected, atol=1e-5)
        assert abs(float(found.norm()) - 1) > 1e-3  # not of unit length
        pixels = model.store.get(task.train, int(name))
        image = teacher.encode_image(teacher.preprocess(pixels)[None], unit=False)[0]
        assert torch.allclose(columns["image_raw@initial"][row], image, atol=1e-5)


def test_two_languages_of_the_same_images_encode_them_once(micro_folder: Path) -> None:
    model = learner(micro_folder)
    model.learn(language(0, "de"))
    assert model.features.encoded == 12
    model.learn(language(1, "hi"))
    assert model.features.encoded == 12


def test_stored_captions_count_their_language_again_and_keep_their_targets(micro_folder: Path) -> None:
    model = learner(micro_folder, replay={"kind": "balanced", "size": 8, "target": "student"})
    model.learn(language(0, "de"))
    method = method_of(model)
    counts, stored = method.counts.clone(), method._stored.clone()
    assert stored.shape == (8, 32)
    name = method.buffer.items[3][1]  # type: ignore[union-attr]
    caption = language(0, "de").train.value("caption", int(name))
    expected = method.backbone.encode_text(method.backbone.tokenise([caption]), unit=False)[0]
    assert torch.allclose(stored[3], expected, atol=1e-5)
    model.learn(language(1, "hi"))
    kept = [row for row, item in enumerate(method.buffer.items) if item[0] == "task 0"]  # type: ignore[union-attr]
    assert len(kept) == 4
    assert all((method._stored[row] == stored).all(dim=1).any() for row in kept)
    german = torch.arange(len(counts)) >= 514  # tokens that Hindi does not use
    assert (method.counts[: len(counts)] == counts + 1)[german].any()  # by the stored captions alone


@pytest.mark.parametrize("target", ["teacher", "student"])
def test_stored_captions_have_a_loss_of_their_own(micro_folder: Path, target: str) -> None:
    model = learner(micro_folder, replay={"kind": "reservoir", "size": 8, "target": target})
    losses: list[set[str]] = []
    step = model.engine._step

    def spy(*given: Any) -> Any:
        log = step(*given)
        losses.append(set(log.losses))
        return log

    model.engine._step = spy  # type: ignore[method-assign]
    model.learn(language(0, "de"))
    assert losses[-1] == {"text", "image"}
    model.learn(language(1, "hi"))
    assert losses[-1] == {"text", "image", "memory"}


def test_a_task_without_source_captions_is_drawn_to_its_own(micro_folder: Path) -> None:
    model = learner(micro_folder)
    task = language(0, "en", source=False)
    model.method.begin_task(task, model.past())
    assert "no source captions" in model.plan(task)[0].notes[0]


def test_captions_longer_than_the_context_are_said(micro_folder: Path) -> None:
    model = learner(micro_folder)
    task = language(0, "hi")
    model.method.begin_task(task, model.past())
    (phase,) = model.plan(task)
    assert "longer than the 12 tokens that the model reads" in phase.notes[0]
    found = method_of(model).notes["languages"][0]
    assert found["name"] == "hi"
    assert 0 < found["cut"] <= 1


def test_the_notes_say_what_changed_for_earlier_languages(micro_folder: Path) -> None:
    model = learner(micro_folder)
    model.learn(language(0, "de"))
    model.learn(language(1, "hi"))
    (found,) = method_of(model).notes["languages"]
    assert found["changed"] == {"de": 0.0}
    assert 0 <= found["overlap"]["de"] < 0.5
    again = Task(2, "german again", language(2, "de").train)
    model.learn(again)
    (found,) = method_of(model).notes["languages"]
    assert found["overlap"]["de"] == 1


def test_lora_and_prompts_train_with_the_rows(micro_folder: Path) -> None:
    model = learner(micro_folder, trainable=[{"lora": {"rank": 2}}, {"prompt": {"count": 2}}])
    names = [n for n in model.method.trainable if "lora" in n or "prompt" in n]
    assert names
    assert not any("visual" in name for name in model.method.trainable)
    before = {n: model.method.get_parameter(n).detach().clone() for n in names}
    model.learn(language(0, "de"))
    assert any(not torch.equal(model.method.get_parameter(n), before[n]) for n in names)


def test_everything_can_train_as_in_the_ablation(micro_folder: Path) -> None:
    model = learner(micro_folder, trainable=["text"])
    assert not any(n.endswith("token_embedding.weight") for n in model.method.trainable[1:])
    model.learn(language(0, "de"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["image"], "cll-clip trains parts of the text tower only"),
        ([{"lora": {"tower": "both"}}], "cll-clip trains the text tower only"),
        (["nothing"], "is not a part of a backbone"),
        ("lora", "expected a list of parts"),
    ],
)
def test_what_is_not_of_the_text_tower_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CllClipSettings(trainable=value)


def test_a_language_without_text_is_refused(micro_folder: Path) -> None:
    model = learner(micro_folder)
    empty = language(0, "de").train.with_column("caption", [" "] * 12)
    with pytest.raises(DataError, match=r"task 'de': no caption of 'de' holds text"):
        model.method.check_task(Task(0, "de", empty))


def test_a_tokenizer_that_cannot_grow_is_refused(micro_folder: Path) -> None:
    model = learner(micro_folder)
    backbone = model.method.backbone
    backbone.tokenizer = object()
    with pytest.raises(ConfigError, match=r"vocabulary of .* cannot grow"):
        CllClip(backbone, CllClipSettings())
