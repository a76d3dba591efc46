"""`everclip diagnose`: two models on the same items, the page with the same numbers, and limits for pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from everclip.config import EvaluationConfig
from everclip.diagnosis.block_similarity import block_outputs, compare_blocks
from everclip.diagnosis.diagnose import Options, diagnose, target_of_data
from everclip.diagnosis.diagnosis_page import write_diagnosis
from everclip.diagnosis.diagnosis_text import diagnosis_text
from everclip.errors import ConfigError, DataError, DivergedError, Interrupted
from everclip.features.pictures import Pictures
from everclip.learner.core import Learner
from everclip.learner.evaluate import load_model
from everclip.learner.tasks import make_task
from everclip.models.modules.towers import tower_of
from everclip.run import execute
from everclip.running import pages

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def old(micro_folder: Path) -> Learner:
    return load_model(str(micro_folder / "model"))


@pytest.fixture(scope="module")
def new(micro_folder: Path) -> Learner:
    """The same model with other weights in its second half of each tower."""
    learner = load_model(str(micro_folder / "model"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in learner.method.backbone.clip.named_parameters():
            if "resblocks.1" in name:
                values.add_(0.3 * torch.randn(values.shape, generator=generator))
    return learner


def found(old: Learner, new: Learner, micro_folder: Path, **options: Any) -> Any:
    targets = target_of_data(str(micro_folder / "data.parquet"), "kept", None)
    targets += target_of_data(str(micro_folder / "reference.parquet"), "new", None)
    return diagnose(old, new, ("old", "new"), targets, Options(**options), EvaluationConfig())


@pytest.fixture(scope="module")
def compared(old: Learner, new: Learner, micro_folder: Path) -> Any:
    return found(old, new, micro_folder)


def test_swapping_the_models_swaps_every_number(
    compared: Any, old: Learner, new: Learner, micro_folder: Path
) -> None:
    swapped = found(new, old, micro_folder).diagnosis
    for one, other in zip(compared.diagnosis.sets, swapped.sets, strict=True):
        assert one.score.change.value == pytest.approx(-other.score.change.value)
        for a, b in zip(one.flips, other.flips, strict=True):
            assert (a.negative, a.positive) == (b.positive, b.negative)
        assert {c.name: (c.lost, c.gained, c.p) for c in one.classes} == {
            c.name: (c.gained, c.lost, c.p) for c in other.classes
        }
        assert one.calibration == (
            other.calibration
            and type(other.calibration)(old=other.calibration.new, new=other.calibration.old)
        )
        assert [h.old for h in one.hubs] == [h.new for h in other.hubs]


def test_flips_and_scores_agree(compared: Any) -> None:
    for s in compared.diagnosis.sets:
        flips = s.flips[0]
        if s.kind == "classification":
            assert flips.positive.value - flips.negative.value == pytest.approx(s.score.change.value)
            assert sum(c.lost for c in s.classes) == round(flips.negative.value * flips.items)
            assert len(s.lost) == min(24, sum(c.lost for c in s.classes))
        for image in s.lost:
            assert image.old.answer == image.truth != image.new.answer
            assert image.old.probability == image.old.right_probability


def test_a_second_time_gives_the_same(compared: Any, old: Learner, new: Learner, micro_folder: Path) -> None:
    again = found(old, new, micro_folder).diagnosis
    assert again.model_copy(update={"seconds": 0, "encoded": 0}) == compared.diagnosis.model_copy(
        update={"seconds": 0, "encoded": 0}
    )


def test_a_model_against_itself_is_unchanged(old: Learner, micro_folder: Path) -> None:
    of = found(old, load_model(str(micro_folder / "model")), micro_folder).diagnosis
    assert of.verdict.state == "unchanged"
    assert all(not s.lost and not s.gained and s.score.change.nothing for s in of.sets)
    assert of.blocks == {}
    assert any("embeddings, search results and blocks are equal" in note for note in of.notes)


def test_a_tolerance_decides_what_is_safe(old: Learner, new: Learner, micro_folder: Path) -> None:
    generous = found(old, new, micro_folder, tolerance=1.0, blocks=False).diagnosis
    assert generous.verdict.state == "safe"


def test_groups_are_the_values_of_a_column(old: Learner, new: Learner, micro_folder: Path) -> None:
    s = found(old, new, micro_folder, groups=("time",), blocks=False).diagnosis.sets[0]
    parts = s.groups["time"]
    assert sum(part.items for part in parts) == s.score.items
    total = sum(part.items * part.new for part in parts) / s.score.items
    assert total == pytest.approx(s.score.second.value)


def test_blocks_before_a_change_are_equal_and_later_ones_differ(
    old: Learner, new: Learner, micro_folder: Path
) -> None:
    data = target_of_data(str(micro_folder / "data.parquet"), "kept", None)[0].sets[0].data
    captions = [str(caption) for caption in data.column("caption")]
    similar, notes = compare_blocks(old, new, Pictures.of(data), captions)
    assert not notes
    for values in similar.values():
        assert values[0] == pytest.approx(1, abs=1e-9)
        assert values[1] is not None
        assert values[1] < 0.999
    for side in ("image", "text"):
        assert not any(block._forward_hooks for block in tower_of(old.method.backbone.clip, side).blocks)


def test_towers_without_blocks_are_said_in_one_line(old: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Mock(side_effect=ConfigError("method.trainable: modules cannot grow inside this tower"))
    monkeypatch.setattr("everclip.diagnosis.block_similarity.tower_of", refused)
    similar, notes = compare_blocks(old, old, Pictures.distinct([])[0], ["a", "b"])
    assert similar == {}
    assert [note.partition(" towers are not both")[0] for note in notes] == ["the image", "the text"]


def test_block_outputs_do_not_depend_on_the_batches(old: Learner) -> None:
    tokens = old.method.backbone.tokenise(["one", "two", "three"])
    outputs = block_outputs(old, "text", [tokens[:2], tokens[2:]])
    assert [len(values) for values in outputs] == [3] * len(outputs)
    torch.testing.assert_close(block_outputs(old, "text", [tokens])[0], outputs[0])


def test_the_page_and_the_terminal_say_the_same_as_the_numbers(compared: Any, tmp_path: Path) -> None:
    page, numbers = write_diagnosis(compared, tmp_path / "page.html")
    document = json.loads(numbers.read_text())
    text, html = diagnosis_text(compared.diagnosis, 100), page.read_text()
    assert text.startswith(document["verdict"]["sentence"])
    wide = [line for line in text.splitlines()[2:7] if len(line) > 100]
    assert not wide
    assert document["verdict"]["sentence"].split(". ")[0] in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    for s in document["sets"]:
        assert f"{100 * s['score']['first']['value']:.1f}" in text
        assert f"{100 * s['score']['second']['value']:.1f}" in html


def test_names_cannot_inject(compared: Any, tmp_path: Path) -> None:
    hostile = compared.diagnosis.model_copy(update={"old": "<script>alert(1)</script>"})
    page, _ = write_diagnosis(type(compared)(hostile, compared.sets), tmp_path / "page.html")
    assert "<script>" not in page.read_text()


# -- the command ----------------------------------------------------------------------------------------------


def test_a_limit_ends_with_its_own_code_after_everything_is_written(
    command: Call, micro_folder: Path, tmp_path: Path
) -> None:
    data, model = micro_folder / "data.parquet", micro_folder / "model"
    other = tmp_path / "other"
    other.symlink_to(model)
    call = ("diagnose", model, other, "--data", data, "-o", tmp_path / "d.html", "--json")
    code, out, _ = command(*call, "--fail-if", "retention<0.98")
    assert code == 0
    assert json.loads(out)["numbers"]["retention"] == 1
    code, _, err = command(*call, "--fail-if", "retention>=1")
    assert code == 8
    assert "retention is 1, and --fail-if says retention>=1" in err
    assert (tmp_path / "d.html").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--fail-if", "retenton<1"), "Did you mean 'retention'"),
        (("-o", "page.txt"), "ending in .html"),
        (("--group", "nowhere"), "no data have a column 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_refused(
    command: Call, micro_folder: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    other = tmp_path / "other"
    other.symlink_to(micro_folder / "model")
    models = micro_folder / "model", other
    code, _, err = command("diagnose", *models, "--data", micro_folder / "data.parquet", *more)
    assert code == 2
    assert said in err


def folder_of(path: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (path / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (90 * number, 10, 10)).save(path / name / "1.png")
    return path


def test_data_of_one_class_say_nothing(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.symlink_to(micro_folder / "model")
    code, _, err = command(
        "diagnose", micro_folder / "model", other, "--data", folder_of(tmp_path / "d", "cup")
    )
    assert (code, "it has one class ('cup')" in err) == (3, True)


def test_templates_beside_the_data_count_as_they_do_for_eval(
    command: Call, micro_folder: Path, tmp_path: Path
) -> None:
    data, model, other = folder_of(tmp_path / "d", "cup", "box"), micro_folder / "model", tmp_path / "other"
    other.symlink_to(model)
    (data / "zeroshot_classification_templates.txt").write_text("a {}\nthe {}\n")
    code, out, _ = command("diagnose", model, other, "--data", data, "--json")
    assert code == 0
    assert any("texts around class names are the 2 of" in note for note in json.loads(out)["notes"])
    code, out, _ = command("diagnose", model, other, "--data", data, "--json", "--template", "{}")
    assert not any("are the 2 of" in note for note in json.loads(out)["notes"])


def test_nothing_to_measure_on_and_no_run_are_said(command: Call, micro_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.symlink_to(micro_folder / "model")
    code, _, err = command("diagnose", micro_folder / "model", other)
    assert (code, "name data with --data" in err) == (2, True)
    code, _, err = command("diagnose", micro_folder / "model")
    assert (code, "is not the folder of a run" in err) == (2, True)


def test_a_run_compares_its_first_row_with_its_last(
    micro_config: Callable[..., Any], command: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config("classes", "method=finetune", "training.steps=2", "report=true")
    results = execute(config)
    folder = Path(config.output)
    document = json.loads((folder / "diagnosis.json").read_text())
    scores = {s["name"]: s["score"] for s in document["sets"]}
    rows = {row.index: row.scores for row in results.rows}
    protocol = results.matrix.protocol
    last = max(rows)
    for name, score in scores.items():
        measured = rows[last][name][protocol][score["metric"]]
        assert score["second"]["value"] == pytest.approx(measured.value, abs=1e-6)
    assert 'href="diagnosis.html"' in (folder / "report.html").read_text()
    code, out, _ = command("diagnose", folder, "--json")
    assert code == 0
    again = json.loads(out)
    assert [s["score"] for s in again["sets"]] == [s["score"] for s in document["sets"]]
    (folder / "diagnosis.html").unlink()
    (folder / "report.html").unlink()
    with (
        monkeypatch.context() as patch
    ):  # an image cannot be read any more: the report is written all the same
        patch.setattr(
            "everclip.diagnosis.of_run.write_run_diagnosis", Mock(side_effect=DataError("no image"))
        )
        execute(config)
    assert not (folder / "diagnosis.html").is_file()
    assert 'href="diagnosis.html"' not in (folder / "report.html").read_text()
    execute(config)  # finished: only what is missing is written
    assert (folder / "diagnosis.html").is_file()
    pages.remove_outdated(folder, report=True)
    assert not list(folder.glob("*.html")) + list(folder.glob("diagnosis.*"))


@pytest.mark.slow
def test_a_run_stopped_in_its_diagnosis_keeps_its_result_and_goes_on_there(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(*more: str) -> Any:
        return micro_config("time", "method=finetune", "training.steps=2", "report=true", *more)

    execute(
        config('scenario.tasks=[{name: "2001", where: {time: 2001}}, {name: "2002", where: {time: 2002}}]')
    )
    folder = Path(config().output)
    with monkeypatch.context() as patch:
        stopped = Mock(side_effect=Interrupted("SIGTERM"))
        patch.setattr("everclip.diagnosis.of_run.write_run_diagnosis", stopped)
        with pytest.raises(Interrupted):
            execute(config(), extend=True)
    result = (folder / "results.json").read_bytes()
    assert json.loads(result)["status"] == "finished"
    assert not (folder / "diagnosis.json").exists()  # not that of the shorter run
    execute(config())
    assert len(json.loads((folder / "diagnosis.json").read_text())["sets"]) == 5
    assert (folder / "results.json").read_bytes() == result


def test_a_model_whose_weights_are_not_numbers_is_said(old: Learner, micro_folder: Path) -> None:
    damaged = load_model(str(micro_folder / "model"))
    with torch.no_grad():
        damaged.method.backbone.clip.visual.proj.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"data.*: an embedding or a score of the model is NaN"):
        found(old, damaged, micro_folder)


def test_wide_spaces_of_two_widths_are_not_compared_item_by_item(compared: Any) -> None:
    from everclip.diagnosis.seen import Embedded
    from everclip.diagnosis.set_changes import SearchResults, query_changes, space_changes

    def embedded(width: int) -> Embedded:
        generator = torch.Generator().manual_seed(width)
        images, texts = (torch.randn(40, width, generator=generator) for _ in range(2))
        names = [f"text {i}" for i in range(40)]
        return Embedded(list(range(40)), images, texts, torch.arange(40), names, texts)

    values, turned = space_changes(embedded(8), embedded(12))
    assert turned == {}
    assert {"modality_gap"} <= {v.name for v in values}
    assert not any("rotation" in v.name for v in values)
    queries = query_changes(embedded(8), SearchResults.of(embedded(8)), SearchResults.of(embedded(12)))
    assert queries is not None
    assert 0 <= queries.kept <= 1
    assert np.isfinite([v.new for v in values]).all()


def test_of_many_texts_some_are_searched_for_and_named_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.diagnosis import set_changes
    from everclip.diagnosis.seen import Embedded

    monkeypatch.setattr(set_changes, "SPACE_ITEMS", 7)
    units = torch.eye(30)

    def embedded(turn: int) -> Embedded:
        names = [f"text {i}" for i in range(30)]
        return Embedded(
            list(range(30)), units, units.roll(turn, 0), torch.arange(30), names, units.roll(turn, 0)
        )

    results = [set_changes.SearchResults.of(embedded(turn)) for turn in (0, 1)]
    queries = set_changes.query_changes(embedded(0), *results)
    assert queries is not None
    assert queries.count == 6
    for query in queries.most_changed:
        assert query.text == f"text {query.old[0]}"


def test_captions_that_only_one_tokenizer_tells_apart_are_compared_one_by_one(
    micro_folder: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {
            "image": Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)),
            "caption": f"aaaaaaaaaaaaaa {i}",
        }
        for i in range(12)
    ]
    for i, row in enumerate(rows):
        row["image"].save(tmp_path / f"{i}.png")
    (tmp_path / "long.csv").write_text(
        "image,caption\n" + "".join(f"{i}.png,{row['caption']}\n" for i, row in enumerate(rows))
    )
    before = load_model(str(micro_folder / "model"))
    after = Learner.create(str(micro_folder / "model"), "cll-clip", {"steps": 1, "batch_size": 4})
    after.learn(
        make_task(str(tmp_path / "long.csv"), name="en", validation=0)
    )  # merges make the captions short
    target = target_of_data(str(tmp_path / "long.csv"), "kept", None)
    for models, sign in (((before, after), 1), ((after, before), -1)):
        of = diagnose(*models, ("old", "new"), target, Options(blocks=False), EvaluationConfig()).diagnosis
        (one,) = of.sets
        assert [flips.items for flips in one.flips] == [12, 12]
        assert any("each caption is an item" in note for note in of.notes)
        gained = one.flips[0].positive.value - one.flips[0].negative.value
        # The model before reads twelve equal texts, so every image is right for each of them.
        assert sign * gained < 0
