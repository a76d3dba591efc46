"""Defects that a user's trial and an attack found, each held by a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import everclip
from everclip.config import resolve_config
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.splits import carve
from everclip.errors import ConfigError, DataError, DivergedError
from everclip.training.checkpoint import Checkpoints
from micro import picture


def write(path: Path, rows: int = 6, **more: Any) -> Path:
    draw = np.random.default_rng(0)
    images = [picture((20 * i, 90, 30), i, draw) for i in range(rows)]
    columns = {"image": pa.array(images, pa.binary()), "caption": [f"thing {i}" for i in range(rows)], **more}
    pq.write_table(pa.table(columns), path)
    return path


def test_captions_with_ids_of_their_own_still_belong_to_one_picture(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pictures = [picture((i, 90, 30), i, draw) for i in range(40)]
    images = [data for data in pictures for _ in range(5)]
    path = tmp_path / "captions.parquet"
    ids = [str(i) for i in range(200)]
    pq.write_table(pa.table({"id": ids, "image": pa.array(images, pa.binary()), "caption": ids}), path)
    rest, carved = carve(read(DataSpec(source=str(path))).table, 0.3)
    assert len(carved)
    assert not set(rest.column("image")) & set(carved.column("image"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"caption": [1.5] * 6}, "expected text"),
        ({"caption": [[1.5]] * 6}, "expected text"),
        ({"keywords": ["red,green"] * 6}, "expected lists"),
        ({"id": [None, *"abcde"]}, "missing-id"),
        ({"image": pa.array([None] * 6, pa.binary())}, "no-image"),
        ({"image": pa.array([b"hello"] * 6, pa.binary())}, "row 1: begins with 68656c6c6f"),
    ],
)
def test_columns_of_the_wrong_kind_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(DataSpec(source=str(write(tmp_path / "data.parquet", **more))))


def test_a_mapped_column_takes_the_place_of_one_that_had_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", title=[f"title {i}" for i in range(6)])
    table = read(DataSpec(source=str(path), columns={"caption": "title"})).table
    assert table.column("caption")[0] == "title 0"


def test_exploded_weights_are_never_saved(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    fast = ("training.lr=1e30", "training.warmup=0", "checkpoint.every_steps=1", "training.steps=3")
    config = micro_config("single", *fast)
    with pytest.raises(DivergedError, match="task 1, phase 'train', step"):
        everclip.execute(config)
    held = Checkpoints(tmp_path / "run", config.checkpoint).latest()
    assert held is not None
    assert all(bool(t.isfinite().all()) for k, t in held.tensors.items() if k.startswith("model/"))


def test_a_finished_run_gets_the_report_it_lacks(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    everclip.execute(micro_config("single", "method=zero-shot"))
    assert not (tmp_path / "run" / "report.html").exists()
    everclip.execute(micro_config("single", "method=zero-shot", "report=true"))
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_damaged_result_is_built_again(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    config = micro_config("single", "method=zero-shot")
    before = everclip.execute(config).without_timing()
    (tmp_path / "run" / "results.json").write_text("{")
    again = everclip.execute(config)
    assert again.without_timing() == before
    assert [event.kind for event in again.events] == ["damaged result"]


def test_lost_features_of_row_0_are_an_event_and_no_end(
    micro_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everclip import run

    class Stop(BaseException):
        pass

    def crash(name: str) -> None:
        if name == "after step":
            raise Stop

    config = micro_config("single")
    monkeypatch.setattr(run, "crash_point", crash)
    with pytest.raises(Stop):
        everclip.execute(config)
    monkeypatch.undo()
    (tmp_path / "run" / "rows" / "000.features.safetensors").unlink()
    result = everclip.execute(config)
    assert [event.kind for event in result.events] == ["lost features"]
    assert result.rows[1].representation["image_rotation_deg"] is None


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        ("classes", "scenario.order=[class-0, class-0, class-1]", "more than once"),
        ("time", "scenario.protocols=[{name: all}, {name: all, space: all}]", "different names"),
        ("time", "scenario.split.validation=0.99", "holds no rows"),
        ("time", "evaluation.top_k=[1, 0]", "top_k"),
        ("time", "evaluation.top_k=[]", "top_k"),
        ("time", "training.betas=[2, 3]", "betas"),
        ("time", "training.lr=.inf", "lr"),
        ("time", "output=", "output"),
        ("time", "method.settings=3", "method.settings"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run(
    micro_config: Callable[..., Any], kind: str, override: str, message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        everclip.execute(micro_config(kind, override))


def test_odd_yaml_is_refused_in_words(tmp_path: Path) -> None:
    for number, text in enumerate(
        ("1: 2", "kind: time\nname: a\nsummary: b\nversion: abc", "a: " + "[" * 20000)
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=str(number)):
            resolve_config(str(file))


def test_a_method_file_with_a_slip_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine(:\n    pass\n")
    with pytest.raises(ConfigError, match="line 1"):
        everclip.registry.load_object(f"{file}:Mine")
    with pytest.raises(ConfigError, match="add the class"):
        resolve_config("emoji-time", [f"method={file}"])


def test_a_forward_that_returns_no_losses_is_named(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from everclip import SlotMethod\n"
        "class Mine(SlotMethod):\n    def forward(self, batch, progress):\n        return 3\n"
    )
    with pytest.raises(ConfigError, match="returned int; expected a dict"):
        everclip.execute(micro_config("single", f"method={file}:Mine"))


def test_no_hit_at_all_does_not_claim_certainty(micro_config: Callable[..., Any]) -> None:
    result = everclip.execute(micro_config("time", "method=zero-shot"))
    cells = [
        c for s in result.rows[0].scores.values() for p in s.values() for c in p.values() if c.value == 0
    ]
    bounded = [c for c in cells if c.high is not None]
    assert bounded
    assert all(c.high > 0 for c in bounded)


def test_a_picture_longer_than_it_is_wide_by_far_is_refused(tmp_path: Path) -> None:
    import io

    from PIL import Image

    from everclip.data.pictures.images import decode

    file = io.BytesIO()
    Image.new("RGB", (1, 8000)).save(file, "PNG")
    with pytest.raises(DataError, match="100-fold"):
        decode(file.getvalue(), "strip")


def test_the_stream_of_the_documentation_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/own-stream.md, followed to the letter on drawn pictures."""
    from everclip.scenarios.load import load_scenario

    text = (Path(__file__).parents[2] / "docs" / "own-stream.md").read_text()
    document = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img").mkdir()
    draw = np.random.default_rng(0)
    lines = ["file,title,year"]
    for i in range(120):
        (tmp_path / "img" / f"{i}.png").write_bytes(picture((i, 90, 255 - i), i, draw))
        lines.append(f"img/{i}.png,thing {i},{2023 + i % 3}")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    for key in ("training", "backbone"):
        document.pop(key)
    assert [task.name for task in load_scenario(document).tasks] == ["2024", "2025"]
