"""Defects that were found by reading, each held by a test."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import everclip
from everclip.config import BackboneConfig, MethodConfig, resolve_config
from everclip.contracts import Progress, Source, Stream
from everclip.data.pictures.images import ImageStore
from everclip.data.sampling.splits import carve
from everclip.data.table import Table
from everclip.errors import ConfigError, RunFolderError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.registry import benchmarks
from everclip.scenarios.load import load_scenario
from everclip.training.engine import set_modes
from everclip.training.precision import Precision


def table(colour: str, count: int = 3, **more: Any) -> Table:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    ids = [str(i) for i in range(count)]
    columns = {"id": ids, "image": pa.array([file.getvalue()] * count, pa.binary()), **more}
    return Table(pa.table(columns))


def test_equal_ids_in_two_tables_are_two_pictures() -> None:
    store, red, blue = ImageStore(), table("red"), table("blue")
    assert store.get(red, 0).getpixel((0, 0)) == (255, 0, 0)
    assert store.get(blue, 0).getpixel((0, 0)) == (0, 0, 255)
    assert store.get(red.select([2, 0]), 1) is store.get(red, 0)


def test_captions_of_one_picture_go_to_one_side_of_a_split() -> None:
    pictures = [f"p{i // 5}" for i in range(500)]
    rest, carved = carve(table("red", 500, image_id=pictures), 0.3)
    assert carved.identities()
    assert rest.identities()
    assert not set(rest.identities()) & set(carved.identities())


@pytest.mark.parametrize("name", ["emoji-time", "emoji-classes", "emoji-styles", "emoji-base"])
def test_no_measured_drawing_is_byte_identical_to_a_training_drawing(name: str) -> None:
    settings = ("training", "backbone", "method", "evaluation")
    document = {k: v for k, v in benchmarks()[name].document.items() if k not in settings}
    scenario = load_scenario(document)
    trained = {data for task in scenario.tasks for data in task.train.column("image")}
    trained |= set(scenario.base.column("image")) if scenario.base else set()
    measured = {data for s in scenario.eval_sets for data in s.data.column("image")}
    measured |= {data for task in scenario.tasks if task.val for data in task.val.column("image")}
    assert not trained & measured


def test_a_fingerprint_depends_on_every_column() -> None:
    assert table("red", keywords=["a"] * 3).fingerprint != table("red", keywords=["b"] * 3).fingerprint


def test_changed_data_are_refused_by_a_run_that_began_with_others(
    micro_folder: Path, micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    columns = pq.read_table(micro_folder / "data.parquet")
    data = tmp_path / "data.parquet"
    pq.write_table(columns, data)
    config = micro_config("time", f"scenario.data.source={data}", "method=zero-shot")
    everclip.execute(config)
    renamed = pa.array([f"{c} again" for c in columns.column("caption").to_pylist()])
    pq.write_table(columns.set_column(columns.column_names.index("caption"), "caption", renamed), data)
    with pytest.raises(RunFolderError, match="data have changed"):
        everclip.execute(config)


def test_a_tracker_records_numbers(micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    seen: list[str] = []

    class Recorder:
        requires_logging_directory = False

        name = "recorder"

        def __init__(self, name: str) -> None:
            self._started = False

        def start(self) -> None:
            self._started = True

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            assert self._started

        def log(self, values: dict[str, float], step: int) -> None:
            assert self._started
            seen.extend(values)

        def finish(self) -> None:
            seen.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    everclip.execute(micro_config("single", "trackers=[recorder]", "training.steps=2"))
    assert {"contrastive", "lr", "row/last", "finished"} <= set(seen)


def test_precision_may_differ_between_runs_of_one_process(micro_config: Callable[..., Any]) -> None:
    for precision in ("fp32", "bf16", "fp32"):
        config = micro_config("single", f"training.precision={precision}", output=precision)
        assert everclip.execute(config).status == "finished"


@pytest.mark.gpu
def test_the_scaler_comes_back_with_its_state() -> None:
    first, again = (Precision("fp16", torch.device("cuda")) for _ in range(2))
    assert first.scaler is not None
    assert again.scaler is not None
    first.scaler.scale(torch.ones((), device="cuda"))
    first.scaler.update(128.0)
    again.load(first.tensors())
    assert again.scaler.get_scale() == 128.0


@pytest.mark.parametrize("metric", ["mean_r7", "accuracy"])
def test_a_headline_that_no_task_set_measures_is_refused(
    micro_config: Callable[..., Any], metric: str
) -> None:
    with pytest.raises(ConfigError, match="headline"):
        everclip.execute(micro_config("time", f"scenario.headline.metric={metric}"))


def test_zero_shot_trains_nothing_and_says_so(micro_config: Callable[..., Any]) -> None:
    result = everclip.execute(micro_config("single", "method=zero-shot"))
    assert result.method["cost"]["trainable_parameters"] == 0


def test_the_logit_scale_leaves_its_bound_again(micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    with torch.no_grad():
        backbone.clip.logit_scale.fill_(9.0)
    backbone.bound_logit_scale(100.0)
    assert float(backbone.logit_scale.detach()) == pytest.approx(100.0)
    backbone.logit_scale.backward()
    assert float(backbone.clip.logit_scale.grad) > 0


def test_the_configuration_of_a_run_can_be_run_again(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = micro_config("time", "method=zero-shot")
    everclip.execute(config)
    again = resolve_config(str(tmp_path / "run" / "config.yaml"))
    settled = config.model_copy(update={"training": config.training.model_copy(update={"precision": "fp32"})})
    assert again.identity() == settled.identity()
    assert everclip.execute(config).status == "finished"  # `auto` and what it was settled to are one run
    assert everclip.execute(again).status == "finished"


def test_looking_at_a_finished_run_does_not_change_it(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = micro_config("single", "method=zero-shot")
    everclip.execute(config)
    before = (tmp_path / "run" / "results.json").read_bytes()
    everclip.execute(config)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_another_method_does_not_inherit_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    document = {"benchmark": "emoji-time", "method": {"name": "wise-ft", "merge": {"alpha": 0.3}}}
    file.write_text(yaml.safe_dump(document))
    assert resolve_config(str(file)).method.settings["merge"]["alpha"] == 0.3
    assert "merge" not in resolve_config(str(file), ["method=replay"]).method.settings


def test_a_resolved_configuration_takes_no_overrides(micro_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="no further settings"):
        everclip.execute(micro_config("single"), "seed=7")


def test_a_learner_is_not_saved_into_a_run(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    everclip.execute(micro_config("single", "method=zero-shot"))
    learner = Learner.load(tmp_path / "run")
    with pytest.raises(RunFolderError, match="belongs to a run"):
        learner.save(tmp_path / "run")


def test_a_loaded_learner_knows_what_it_learned(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    config = micro_config("classes", "method=replay")
    result = everclip.execute(config)
    scenario = load_scenario(config.scenario)
    learner = Learner.load(tmp_path / "run", scenario)
    assert len(learner.tasks) == len(scenario.tasks)
    scores = learner.evaluate(scenario)
    for column in result.columns:
        assert scores[column.name]["seen"] == result.rows[-1].scores[column.name]["seen"]


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[0].requires_grad_(False)
    set_modes(module, training=True)
    module(torch.randn(8, 2))
    assert module[0].running_mean.eq(0).all()
    assert not module[2].running_mean.eq(0).all()


def test_closed_form_phases_see_every_sample_once(
    micro_folder: Path, micro_config: Callable[..., Any]
) -> None:
    from everclip.contracts import Phase

    config = micro_config("single")
    task = load_scenario(config.scenario).tasks[0]
    learner = Learner.create(str(micro_folder / "model"), training={"steps": 1})
    seen: list[str] = []
    learner.method.forward = lambda batch, progress: (  # type: ignore[method-assign]
        seen.extend(batch["main"]["id"]) or {"sum": torch.zeros(())}
    )
    phase = Phase("solve", {"main": Stream((Source(task.train),), 8)}, optimiser=None)
    learner.engine.run(learner.method, phase, 0)
    assert sorted(seen) == sorted(task.train.ids)


def test_features_of_another_model_are_not_taken_from_the_cache(
    micro_folder: Path, micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(micro_folder / "model", other)
    document = json.loads((other / "open_clip_config.json").read_text())
    document["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (other / "open_clip_config.json").write_text(json.dumps(document))
    shared = ("method=zero-shot", f"evaluation.cache={tmp_path / 'cache'}")
    plain = micro_config("single", f"backbone={other}", "method=zero-shot", output="plain")
    everclip.execute(micro_config("single", *shared, output="first"))
    cached = everclip.execute(micro_config("single", f"backbone={other}", *shared, output="second"))
    assert cached.rows[0].representation == everclip.execute(plain).rows[0].representation


def test_damaged_features_in_the_cache_are_encoded_again_and_the_result_says_so(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    settings = ("method=zero-shot", f"evaluation.cache={cache}")
    whole = everclip.execute(micro_config("single", *settings, output="first"))
    assert [event for event in whole.events if event.kind == "damaged cache"] == []
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = everclip.execute(micro_config("single", *settings, output="second"))
    assert [event.kind for event in again.events if file.name in event.message] == ["damaged cache"]
    assert again.rows[0].scores == whole.rows[0].scores


@pytest.mark.parametrize(("trainable", "expected"), [(("image",), 117.3), (("image", "logit-scale"), 100.0)])
def test_a_frozen_logit_scale_stays_above_the_bound_and_a_trained_one_comes_under_it(
    micro_folder: Path, trainable: tuple[str, ...], expected: float
) -> None:
    """SigLIP's is about 117."""
    backbone = load_backbone(BackboneConfig(name=str(micro_folder / "model")))
    method = build_method(MethodConfig(name="finetune", settings={"trainable": trainable}), backbone)
    with torch.no_grad():
        backbone.clip.logit_scale.fill_(math.log(117.3))
    method.after_step(Progress(task=0, phase="learn", repeat=0, step=0, steps=1, seed=0))
    assert float(backbone.logit_scale.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_running_mean_never_ends_empty(micro_config: Callable[..., Any]) -> None:
    """A running mean whose first snapshot never came due takes the last model."""
    config = micro_config(
        "single",
        "training.steps=2",
        "method.merge.kind=running-mean",
        "method.merge.every=10",
        "method.merge.start=0.9",
    )
    result = everclip.execute(config)
    assert result.rows[1].step == 2


@pytest.mark.parametrize("grid", ["[]", "[0.5, 1.5]"])
def test_a_grid_outside_the_unit_interval_is_refused(micro_config: Callable[..., Any], grid: str) -> None:
    with pytest.raises(ConfigError, match="grid"):
        everclip.execute(micro_config("time", "method=wise-ft", f"method.merge.grid={grid}"))


def test_templates_without_a_place_are_refused(micro_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="exactly once"):
        everclip.execute(micro_config("classes", 'scenario.class_templates=["no place"]'))
