"""Training that cannot learn is refused before its first step; what gives the same tokens is one text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from build import picture, text
from PIL import Image, ImageDraw

from everclip.config import resolve_config
from everclip.contracts import ClassEntry, Source, Stream, Task
from everclip.data.sampling.same_texts import TextKeys, first_same_class, keys_by_text
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.evaluation.shared_answers import shared_answers
from everclip.learner import Learner, make_task
from everclip.learner.evaluate import evaluate_model, load_model
from everclip.learner.learnable import require_learnable
from everclip.methods.losses import class_cross_entropy
from everclip.models.backbone import load_backbone
from everclip.run import Run, execute
from everclip.training.progress import Progress

Command = Callable[..., tuple[int, str, str]]
COLOURS = ("cat", "dog", "bird", "bus", "ant", "bee", "tram")
QUIET = Progress(quiet=True)


def classes(folder: Path, names: dict[str, str], per: int = 6) -> Path:
    """Write class folders, each in a colour."""
    for number, (name, colour) in enumerate(names.items()):
        for i in range(per):
            picture(folder / name / f"{i}.png", colour, (32, 32), 50 * number + i)
    return folder


def drawn(file: Path, kind: int, seed: int) -> None:
    """Draw a coloured shape that the built-in model knows by its name."""
    shown = Image.new("RGB", (48, 48), "white")
    x, y = 6 + seed % 5, 6 + seed % 7
    box, draw = (x, y, x + 26, y + 26), ImageDraw.Draw(shown)
    corners = [(x, y + 26), (x + 13, y), (x + 26, y + 26)]
    if kind == 0:
        draw.rectangle(box, (230, 20, 20 + seed))
    elif kind == 1:
        draw.ellipse(box, (20, 40 + seed, 230))
    elif kind == 2:
        draw.polygon(corners, (20, 180, 40 + seed))
    else:
        draw.polygon([*corners, (x + 13, y + 20)], (seed, seed, seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    shown.save(file)


def stream(folder: Path, extra: str, data: str = "data") -> Path:
    """Write the YAML of a class stream."""
    base = (
        f"version: 1\nname: small\nsummary: small\nkind: classes\ndata: {{source: {data}}}\n"
        "protocols: [{name: own}, {name: all, space: all}]\nheadline: {protocol: all, metric: accuracy}\n"
        "training: {steps: 2, batch_size: 4, lr: 1.0e-4, device: cpu}\n"
    )
    return text(folder / "s.yaml", base + extra)


def table(folder: Path, captions: list[str], *, same: bool = False) -> Path:
    """Write a table of pictures with captions."""
    lines = ["file,caption"]
    for i, caption in enumerate(captions):
        picture(folder / f"{i}.png", COLOURS[i % 7], (32, 32), 0 if same else i)
        lines.append(f'{0 if same else i}.png,"{caption}"')
    return text(folder / "list.csv", "\n".join(lines) + "\n")


# -- one answer -----------------------------------------------------------------------------------------------


def test_b30_one_class_a_task_is_refused_before_the_first_step(tmp_path: Path, command: Command) -> None:
    classes(tmp_path / "data", {"cat": "cat", "dog": "dog", "bird": "bird"})
    file = stream(tmp_path, "per_task: 1\nsplit: {test: 0.4, validation: 0.1}\n")
    for arguments in ((), ("--dry-run",)):
        code, _, error = command("run", str(file), "method=finetune", f"output={tmp_path}/out", *arguments)
        assert code == 3
        assert "has one class" in error
        assert "scenario.per_task" in error
        assert "method=replay" in error
    assert not (tmp_path / "out" / "results.json").exists()


def test_b02_replay_takes_one_class_a_task_and_says_what_the_first_task_does(
    tmp_path: Path, command: Command
) -> None:
    classes(tmp_path / "data", {"cat": "cat", "dog": "dog"})
    file = stream(tmp_path, "per_task: 1\nsplit: {test: 0.4, validation: 0.1}\n")
    _, shown, _ = command("run", str(file), "method=replay", f"output={tmp_path}/out", "--dry-run")
    assert "has one text and no earlier task to compare it with" in shown
    execute(str(file), "method=replay", f"output={tmp_path}/out", progress=QUIET)
    log = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["labels"] > 0 for entry in log] == [False, False, True, True]


@pytest.mark.parametrize("method", ["rail", "zero-shot"])
def test_b30_methods_that_compare_nothing_take_one_class(tmp_path: Path, method: str) -> None:
    classes(tmp_path / "data", {"cat": "cat", "dog": "dog"})
    file = stream(tmp_path, "per_task: 1\nsplit: {test: 0.4, validation: 0.1}\n")
    Run.of(resolve_config(str(file), [f"method={method}", f"output={tmp_path}/out"]), QUIET)


@pytest.mark.parametrize("method", ["icarl", "lwf", "finetune", "moe-adapters-cil"])
def test_b02_methods_without_others_in_the_softmax_are_refused(tmp_path: Path, method: str) -> None:
    classes(tmp_path / "data", {"cat": "cat", "dog": "dog"})
    file = stream(tmp_path, "per_task: 1\nsplit: {test: 0.4, validation: 0.1}\n")
    with pytest.raises(DataError, match="nothing to tell apart"):
        Run.of(resolve_config(str(file), [f"method={method}", f"output={tmp_path}/out"]), QUIET)


def test_b30_groups_take_numbers_as_names_and_a_class_left_over_is_named(tmp_path: Path) -> None:
    classes(tmp_path / "data", {"10": "cat", "2": "dog", "bee": "bee"})
    given = ["method=finetune", f"output={tmp_path}/out"]
    file = stream(tmp_path, "groups: [[10, 2], [bee]]\nsplit: {test: 0.4, validation: 0.1}\n")
    with pytest.raises(DataError, match=r"task 'classes 3-3' has one class \('bee'\)"):
        Run.of(resolve_config(str(file), given), QUIET)
    file = stream(tmp_path, "groups: [[10, 2, bee]]\nsplit: {test: 0.4, validation: 0.1}\n")
    assert [c.name for c in Run.of(resolve_config(str(file), given), QUIET).tasks[0].classes] == [
        "10",
        "2",
        "bee",
    ]
    file = stream(tmp_path, "groups: [[10, yes]]\nsplit: {test: 0.4, validation: 0.1}\n")
    with pytest.raises(ConfigError, match="reads this name as True; put it in quotes"):
        Run.of(resolve_config(str(file), given), QUIET)


@pytest.mark.parametrize(
    "captions", [["a cat"] * 5, ["a cat", "A  Cat ", "a cat\u00a0", "a cát", "a ca\u0301t"][:3]]
)
def test_b04_captions_of_one_text_are_refused(tmp_path: Path, captions: list[str]) -> None:
    file = table(tmp_path, captions)
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "device": "cpu"})
    with pytest.raises(DataError, match=r"have one text \('a cat'"):
        learner.learn(make_task(str(file), validation=0))
    with pytest.raises(DataError, match="captions are one text"):
        evaluate_model(load_model("builtin:tiny"), "builtin:tiny", [str(file)])


def test_b28_a_batch_of_one_pair_is_refused_and_a_batch_too_large_is_said(tmp_path: Path) -> None:
    task = Learner.create("builtin:tiny", "zero-shot").learn(
        make_task(str(table(tmp_path, ["one", "two", "three"])), validation=0)
    )
    method = Learner.create("builtin:tiny", "finetune").method
    with pytest.raises(ConfigError, match=r"training\.batch_size: 1 compares"):
        require_learnable(method, [task], 1)
    assert require_learnable(method, [task], 3).notes == ()
    (note,) = require_learnable(method, [task], 6).notes
    assert "takes 6 of its 3 training rows, so it contains each row 2.0 times; training.batch_size=3" in note


@pytest.mark.parametrize("count", [1, 2, 3, 65])
def test_b28_few_pictures_train_or_are_refused(tmp_path: Path, count: int) -> None:
    file = table(tmp_path, [f"bird number {i}" for i in range(count)])
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "batch_size": 8, "device": "cpu"})
    if count == 1:
        with pytest.raises(DataError, match="nothing to tell apart"):
            learner.learn(make_task(str(file), validation=0))
        return
    before = learner.method.weights()
    learner.learn(make_task(str(file), validation=0))
    assert any(not torch.equal(before[k], v) for k, v in learner.method.weights().items())


def test_one_picture_with_many_captions_is_refused(tmp_path: Path) -> None:
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "device": "cpu"})
    with pytest.raises(DataError, match="show the same image"):
        learner.learn(make_task(str(table(tmp_path, ["one", "two", "three"], same=True)), validation=0))


def test_a_loss_without_gradient_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 50, "device": "cpu", "batch_size": 2})
    monkeypatch.setattr(
        type(learner.method), "forward", lambda self, batch, at: {"flat": 0 * self.backbone.logit_scale}
    )
    with pytest.raises(ConfigError, match=r"task 1, .*no trained weight had a gradient in the first 4 steps"):
        learner.learn(make_task(str(table(tmp_path, ["one", "two", "three"])), validation=0))


def test_a_method_of_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "device": "cpu"}, trainable=[])
    with pytest.raises(ConfigError, match=r"method\.trainable: \[\] trains nothing"):
        learner.learn(make_task(str(table(tmp_path, ["one", "two", "three"])), validation=0))


def test_classes_whose_names_are_unknown_signs_are_one_text(tmp_path: Path) -> None:
    """A tokenizer that knows no such script gives all of them the same tokens; a template may hide names as well."""
    names = ["word " * 40 + end for end in ("one", "two")]
    rows = [
        {"image": picture(tmp_path / f"{i}.png", "cat", (32, 32), i), "class_name": n}
        for i, n in enumerate(names * 2)
    ]
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "device": "cpu"})
    with pytest.raises(DataError, match=r"has 2 classes of one text .* differ only after the last token"):
        learner.learn(make_task(rows, validation=0))


# -- equal tokens ---------------------------------------------------------------------------------------------

SAME = ["café", "cafe\u0301", "CAFÉ", " café ", "café\n"]


def test_b07_texts_of_equal_tokens_are_one() -> None:
    tokenise = load_backbone("builtin:tiny").tokenise
    assert len(set(keys_by_text(tokenise, SAME).values())) == 1
    assert len(set(keys_by_text(tokenise, ["a cat", "a dog"]).values())) == 2
    long = ["word " * 100 + end for end in ("one", "two")]  # the context ends before they differ
    assert len(set(keys_by_text(tokenise, long).values())) == 1
    entries = [
        ClassEntry("n1", "crane"),
        ClassEntry("n2", "crane"),
        ClassEntry("n3", "Crane ", ("{}", "a {}")),
    ]
    assert first_same_class(TextKeys(tokenise), entries) == [0, 0, 2]


def test_b20_twins_are_one_positive_set_in_the_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    image, bank = (torch.nn.functional.normalize(torch.randn(n, 8, generator=draw)) for n in (5, 3))
    labels = torch.tensor([0, 1, 2, 3, 1])
    twins, same = torch.cat([bank, bank[1:2]]), torch.tensor([0, 1, 2, 1])
    scale = torch.tensor(10.0)
    merged = class_cross_entropy(image, bank, torch.tensor([0, 1, 2, 1, 1]), scale)
    assert torch.equal(class_cross_entropy(image, twins, labels, scale, 0.0, same), merged)
    assert float(class_cross_entropy(image, twins, labels, scale)) > float(merged)


def test_b20_either_of_two_classes_of_one_text_is_right() -> None:
    keys = TextKeys(load_backbone("builtin:tiny").tokenise)
    entries = [ClassEntry("n3", "dog"), ClassEntry("n1", "crane"), ClassEntry("n2", "Crane")]
    scores = torch.tensor([[0.1, 0.5, 0.5], [0.6, 0.2, 0.2], [0.1, 0.4, 0.4]])
    found = shared_answers(keys, entries, scores, torch.tensor([2, 0, 1]))
    assert found.scores.shape == (3, 2)
    assert found.labels.tolist() == [1, 0, 1]
    assert (found.scores.argmax(dim=1) == found.labels).all()
    apart = torch.tensor([[0.1, 0.5, 0.4]] * 3)  # a method that learned to tell them apart by their pictures
    assert shared_answers(keys, entries, apart, torch.tensor([2, 0, 1])).scores.shape == (3, 3)


def test_b20_eval_and_the_plan_name_classes_of_one_text(tmp_path: Path, command: Command) -> None:
    lines = ["file,class_id,class_name,split"]
    for k, (key, name) in enumerate((("n01", "crane"), ("n02", "crane"), ("n03", "dog"), ("n04", "Dog"))):
        for i in range(6):
            picture(tmp_path / f"{key}_{i}.png", COLOURS[k], (32, 32), 50 * k + i)
            lines.append(f"{key}_{i}.png,{key},{name},{'test' if i < 2 else 'train'}")
    text(tmp_path / "list.csv", "\n".join(lines) + "\n")
    found = evaluate_model(load_model("builtin:tiny"), "builtin:tiny", [str(tmp_path / "list.csv")])
    assert any("'crane' (n01) = 'crane' (n02)" in note for note in found.notes)
    assert any("'dog' (n03) = 'Dog' (n04)" in note for note in found.notes)
    assert found.sets[0].ambiguous == 0
    file = stream(tmp_path, "per_task: 4\nsplit: {column: split, validation: 0.1}\n", "list.csv")
    _, shown, _ = command("run", str(file), "method=finetune", f"output={tmp_path}/out", "--dry-run")
    assert "'dog' (n03) = 'Dog' (n04)" in shown
    twins = stream(
        tmp_path, "per_task: 2\norder: given\nsplit: {column: split, validation: 0.1}\n", "list.csv"
    )
    code, _, error = command("run", str(twins), "method=finetune", f"output={tmp_path}/out")
    assert code == 3
    assert "has 2 classes of one text ('crane', 'crane')" in error


def test_b29_captions_that_differ_in_blanks_or_case_are_one(tmp_path: Path) -> None:
    captions = ["red cat", "blue dog ", "Red  cat", "blue dog"]
    file = table(tmp_path, captions)
    found = evaluate_model(load_model("builtin:tiny"), "builtin:tiny", [str(file)])
    plain = evaluate_model(
        load_model("builtin:tiny"),
        "builtin:tiny",
        [str(table(tmp_path / "p", [c.strip().lower().replace("  ", " ") for c in captions]))],
    )
    assert found.sets[0].scores["mean_r1"] == plain.sets[0].scores["mean_r1"]
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "device": "cpu"})
    task: Task = Learner.create("builtin:tiny", "zero-shot").learn(make_task(str(file), validation=0))
    batch: Any = learner.engine.maker.batch(Stream((Source(task.train),), 4, order="cycle"), "s", 0)
    key = batch["text_key"].tolist()
    assert key[0] == key[2] != key[1] == key[3]
    assert isinstance(task.train, Table)


# -- check ----------------------------------------------------------------------------------------------------


def _findings(command: Command, *arguments: object) -> dict[str, dict[str, Any]]:
    _, shown, _ = command("check", *arguments, "--json")
    document = json.loads(shown)
    return {"counts": document} | {finding["code"]: finding for finding in document["findings"]}


def test_b29_check_counts_what_the_tokenizer_tells_apart(tmp_path: Path, command: Command) -> None:
    found = _findings(command, table(tmp_path, ["red cat", "red cat ", "Red  Cat", "blue dog"]))
    assert (found["counts"]["captions"]["written"], found["counts"]["captions"]["distinct"]) == (4, 2)
    assert "'red cat' = 'red cat ' = 'Red  Cat'" in found["same-text"]["message"]
    assert found["counts"]["captions"]["most_shared"] == [{"name": "red cat", "count": 3}]
    found = _findings(command, table(tmp_path / "one", ["red cat", "RED cat", "red cat "]))
    assert found["one-text"]["level"] == "stop"


def test_b20_check_counts_classes_by_key_and_names_twins(tmp_path: Path, command: Command) -> None:
    lines = ["file,class_id,class_name"]
    for k, (key, name) in enumerate((("n01", "crane"), ("n02", "crane"), ("n03", "dog"), ("n04", "Dog"))):
        picture(tmp_path / f"{k}.png", COLOURS[k], (32, 32), k)
        lines.append(f"{k}.png,{key},{name}")
    found = _findings(command, text(tmp_path / "list.csv", "\n".join(lines) + "\n"))
    assert len(found["counts"]["classes"]["counts"]) == 4
    assert "'crane' (n01) = 'crane' (n02); 'dog' (n03) = 'Dog' (n04)" in found["same-name"]["message"]


def test_b07_unicode_forms_of_a_class_are_one_class(tmp_path: Path, command: Command) -> None:
    for k, (side, name) in enumerate(
        (("train", "caf\u00e9"), ("train", "dog"), ("test", "cafe\u0301"), ("test", "dog"))
    ):
        for i in range(3):
            picture(tmp_path / "d" / side / name / f"{i}.png", COLOURS[k % 2], (32, 32), 10 * k + i)
    found = _findings(command, tmp_path / "d")
    assert "not-trained" not in found
    assert [entry["name"] for entry in found["counts"]["classes"]["counts"]] == ["caf\u00e9", "dog"]


def test_b02_check_names_classes_without_test_pictures(tmp_path: Path, command: Command) -> None:
    for side, names in (("train", ("ant", "bee", "cat")), ("test", ("bee", "cat"))):
        classes(tmp_path / "d" / side, dict.fromkeys(names, "cat"), per=2)
    found = _findings(command, tmp_path / "d")
    assert "'ant'" in found["not-tested"]["message"]


# -- sides ----------------------------------------------------------------------------------------------------


def test_b04_marked_sides_that_share_pictures_stop_unless_told_otherwise(
    tmp_path: Path, command: Command
) -> None:
    for side, first in (("train", 0), ("test", 4)):
        for k, name in enumerate(("ant", "bee")):
            for i in range(6):
                picture(
                    tmp_path / "data" / side / name / f"{side}{i}.png", name, (32, 32), 100 * k + first + i
                )
    file = stream(tmp_path, "per_task: 2\nsplit: {column: split}\n")
    given = ("run", str(file), "method=finetune", f"output={tmp_path}/out")
    code, _, error = command(*given)
    assert code == 3
    assert "4 of 12 test images are also training images" in error
    assert "train4.png = " in error
    assert "test0.png" in error
    assert "split.shared: remove" in error
    code, shown, _ = command(*given, "scenario.split.shared=remove", "--dry-run")
    assert code == 0
    assert "rows are left out, because their images are measured" in shown


@pytest.mark.parametrize(
    "verb", [("init-config",), ("suggest",), ("eval", "builtin:tiny", "--no-cache", "--on")]
)
def test_b04_what_check_stops_the_other_roads_stop(
    tmp_path: Path, command: Command, verb: tuple[str, ...]
) -> None:
    file = table(tmp_path, ["red cat", "Red cat", "red cat ", "RED CAT"] * 8)
    assert command("check", file)[0] == 3
    code, _, error = command(*verb, file)
    assert code == 3
    assert "one text" in error
    assert "red cat" in error.lower()


# -- at the end -----------------------------------------------------------------------------------------------


def test_a_rate_that_wrecks_the_model_is_said_at_the_end(tmp_path: Path, command: Command) -> None:
    for k, name in enumerate(("red square", "blue circle", "green triangle", "black star")):
        for i in range(20):
            drawn(tmp_path / "data" / name / f"{i}.png", k, i)
    file = stream(tmp_path, "per_task: 4\nsplit: {test: 0.5, validation: 0.1}\n")
    given = (
        "method=finetune",
        "backbone=builtin:tiny",
        "training.lr=10",
        "training.steps=8",
        f"output={tmp_path}/out",
        "report=false",
    )
    code, shown, _ = command("run", str(file), *given)
    assert code == 0
    assert "WARNING: after training, classes 1-4" in shown
    assert "training.lr (it was 10" in shown
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [event["kind"] for event in document["events"]].count("collapsed") == 1


def test_eval_warns_of_pictures_that_were_learned_from(tmp_path: Path) -> None:
    file = table(tmp_path / "seen", [f"number {i}" for i in range(6)])
    other = tmp_path / "new"
    for i in range(4):
        picture(other / f"{i}.png", "bee", (32, 32), 900 + i)
    text(other / "list.csv", "file,caption\n" + "\n".join(f"{i}.png,bee {i}" for i in range(4)) + "\n")
    learner = Learner.create("builtin:tiny", "finetune", {"steps": 1, "device": "cpu", "batch_size": 4})
    learner.learn(make_task(str(file), validation=0))
    learner.save(tmp_path / "kept")
    for model in (learner, Learner.load(tmp_path / "kept")):
        found = evaluate_model(model, "mine", [str(file), str(other / "list.csv")])
        warned = [note for note in found.notes if "was trained on" in note]
        assert len(warned) == 1
        assert "6 of its images" in warned[0]
