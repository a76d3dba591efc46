"""The export of `text-ridge`: what its loader gives without everclip is what the method gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_text_ridge import captioned, learner, of, pictures
from typer.testing import CliRunner

from everclip.cli.export import run_export
from everclip.cli.main import app
from everclip.contracts import ClassEntry, LabelSpace
from everclip.errors import ConfigError, EverclipError
from everclip.learner import Learner
from everclip.learner.evaluate import load_model
from everclip.models import exported_correction
from everclip.models.backbone import load_backbone
from everclip.models.export import probes
from everclip.models.exported_correction import CorrectedClip
from micro import of_classes

GAMMA = 300.0
"""Narrow, because the texts of a CLIP with random weights are close together."""
FAR = ["zzz 9 9 9", "?", "x" * 9]
TEMPLATES = ("{}", "a {} here")


def learned(micro_folder: Path, folder: Path) -> Learner:
    """Save a learner that learned two tasks of classes."""
    made = learner(micro_folder, gamma=GAMMA, shrinkage=1.0)
    for number in range(2):
        made.learn(of_classes(pictures(micro_folder), number, 2 * number, 2 * number + 1))
    made.save(folder)
    return made


@torch.inference_mode()
def texts_of(made: Learner, texts: list[str]) -> torch.Tensor:
    return made.method.eval().encode_texts(made.method.backbone.tokenise(texts))["embedding"]


@torch.inference_mode()
def images_of(made: Learner) -> torch.Tensor:
    method = made.method.eval()
    return method.encode_images(torch.stack([method.backbone.preprocess(p) for p in probes()]))["embedding"]


SCRIPT = """
import sys
sys.modules["everclip"] = None  # the folder, torch, open_clip and safetensors are all there is
import json
import torch
from PIL import Image
from safetensors.torch import save_file
folder, files, texts, far, names, templates = json.loads(sys.argv[1])
sys.path.insert(0, folder)
from corrected import CorrectedClip
model = CorrectedClip(folder)
images = [Image.open(file) for file in files]
index = model.encode_images(images)
tokens = model.tokenizer([*texts, *far])
with torch.no_grad():
    plain = model.clip.encode_text(tokens, normalize=True)
save_file({
    "images": index,
    "texts": model.encode_texts([*texts, *far]),
    "plain": plain,
    "scores": model.scores(images, names, templates),
    "learned": model.scores(images),
    "found": torch.tensor(model.search([*texts, *far], index, top=3)),
}, folder + "/found.safetensors")
"""


def test_an_export_gives_what_the_method_gives_in_a_process_without_everclip(
    micro_folder: Path, tmp_path: Path
) -> None:
    learned(micro_folder, tmp_path / "learner")
    made = Learner.load(tmp_path / "learner")
    exported, _, card = run_export(str(tmp_path / "learner"), tmp_path / "to")
    assert exported.parity.correction is not None
    assert exported.parity.correction <= 1e-6
    texts, names = list(made.method.structure()["texts"]), ["class 0", "class 3", "something else"]
    files = []
    for number, picture in enumerate(probes()):
        picture.save(tmp_path / f"{number}.png")
        files.append(str(tmp_path / f"{number}.png"))
    argument = json.dumps([str(tmp_path / "to"), files, texts, FAR, names, TEMPLATES])
    subprocess.run([sys.executable, "-c", SCRIPT, argument], check=True)
    found = load_file(tmp_path / "to/found.safetensors")

    images, corrected = images_of(made), texts_of(made, [*texts, *FAR])
    assert (found["images"] - images).abs().max() <= 1e-6
    assert (found["texts"] - corrected).abs().max() <= 1e-6
    assert torch.equal(found["texts"][len(texts) :], found["plain"][len(texts) :])
    assert (found["texts"] - found["plain"])[: len(texts)].norm(dim=1).min() > 0.1
    assert torch.equal(found["found"], (corrected @ images.T).topk(3).indices)
    for key, offered, templates in (
        ("scores", names, TEMPLATES),
        ("learned", [f"class {i}" for i in range(4)], ("a {}",)),
    ):
        space = LabelSpace(tuple(ClassEntry(name, name, templates) for name in offered))
        bank = made.method.class_bank(space)
        expected = made.method.class_scores({"embedding": images}, space, bank)
        assert (found[key] - expected).abs().max() <= 1e-6
    assert card["source"]["method"]["name"] == "text-ridge"


def test_the_command_says_what_lies_beside_and_the_readme_is_honest(
    micro_folder: Path, tmp_path: Path
) -> None:
    made = learned(micro_folder, tmp_path / "learner")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "learner"), str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert "text correction: 4 texts; corrected.py loads it" in done.output
    assert "corrected text embeddings" in done.output
    readme = (tmp_path / "to/README.md").read_text(encoding="utf-8")
    assert "From the learner `learner`." in readme
    assert "Texts: 4 learned (of 4 classes)." in readme
    changes = readme.split("## What it changes")[1].split("## What it learned")[0]
    assert "{" not in changes  # every place is filled
    for line in json.loads((tmp_path / "to/card.json").read_text())["usage"]:
        assert line in readme
        assert line in done.output
    rule = json.loads((tmp_path / "to/correction.json").read_text(encoding="utf-8"))
    assert rule["texts"] == [f"a class {i}" for i in range(4)]
    assert rule["classes"][0] == {"name": "class 0", "templates": ["a {}"]}
    # 12 bytes per value and text, 8 per value for the spare direction, and a header.
    width = made.method.backbone.embedding_width()
    size = (tmp_path / "to/correction.safetensors").stat().st_size
    assert 0 <= size - (12 * width * 4 + 8 * width) < 1000
    assert (
        len({(tmp_path / "to" / name).stat().st_mode for name in ("card.json", "correction.safetensors")})
        == 1
    )
    # A correction is not lost silently: everclip says who reads it.
    with pytest.raises(
        ConfigError, match=r"text correction \(correction\.json\)\. Only corrected\.py .*run folder"
    ):
        load_model(str(tmp_path / "to"))
    notes = load_backbone(str(tmp_path / "to")).notes
    assert any(n.startswith("the text correction beside the weights (correction.json) is not") for n in notes)


def test_force_replaces_an_export_but_no_folder_with_another_readme(
    micro_folder: Path, tmp_path: Path
) -> None:
    learned(micro_folder, tmp_path / "learner")
    run_export(str(tmp_path / "learner"), tmp_path / "to")
    run_export(str(micro_folder / "model"), tmp_path / "to", force=True)
    assert not (tmp_path / "to/correction.json").exists()
    (tmp_path / "to/README.md").write_text("# My thesis")
    with pytest.raises(ConfigError, match=r"not an earlier export \(it holds README\.md\)"):
        run_export(str(micro_folder / "model"), tmp_path / "to", force=True)


def test_captions_reference_texts_and_a_spare_direction_are_exported(
    micro_folder: Path, tmp_path: Path
) -> None:
    made = learner(micro_folder, gamma=GAMMA, shrinkage=1.0)
    made.learn(captioned(micro_folder, 0, 24))
    regression = of(made).regression
    assert regression is not None
    regression.spare[-1] = 1  # random towers leave no such direction
    regression.weights *= 0.5
    made.save(tmp_path / "learner")
    exported, _, _ = run_export(str(tmp_path / "learner"), tmp_path / "to")
    assert exported.parity.correction is not None
    assert exported.parity.correction <= 1e-6
    model = CorrectedClip(tmp_path / "to")
    texts = list(made.method.structure()["texts"])
    assert (model.encode_texts(texts) - texts_of(made, texts)).abs().max() <= 1e-6
    assert model.encode_texts(texts)[:, -1].min() > 0.2
    assert model.correct(torch.zeros(0, 32)).shape == (0, 32)
    with pytest.raises(ValueError, match=r"learned captions, not classes\. Give names"):
        model.classify(probes())
    with pytest.raises(ValueError, match=r"template 'a photo': expected \{\} in the place of the name"):
        model.classify(probes(), ["a", "b"], ["a photo"])
    assert set(model.classify(probes(), [texts[0], "?"])) <= {texts[0], "?"}


def test_half_precision_keeps_the_correction_exact(micro_folder: Path, tmp_path: Path) -> None:
    made = learned(micro_folder, tmp_path / "learner")
    exported, _, _ = run_export(str(tmp_path / "learner"), tmp_path / "to", half=True)
    assert exported.parity.correction is not None
    assert 0 < exported.parity.correction < 0.1
    stored = load_file(tmp_path / "to/correction.safetensors")
    regression = of(made).regression
    assert regression is not None
    assert torch.equal(stored["weights"], regression.weights)


def test_before_the_first_task_the_export_is_the_plain_model(micro_folder: Path, tmp_path: Path) -> None:
    learner(micro_folder).save(tmp_path / "learner")
    exported, _, _ = run_export(str(tmp_path / "learner"), tmp_path / "to")
    assert exported.parity.correction is None
    assert not (tmp_path / "to/corrected.py").exists()


def test_texts_of_a_task_in_progress_are_not_called_learned(micro_folder: Path) -> None:
    made = learner(micro_folder)
    data = pictures(micro_folder)
    made.learn(of_classes(data, 0, 0, 1))
    task = of_classes(data, 1, 1, 4)
    made.method.begin_task(task, made.past())
    regression = of(made).regression
    assert regression is not None
    regression.counts += 1  # as after the first batch
    correction = made.method.text_correction()
    assert correction is not None
    assert correction.texts == ("a class 0", "a class 1")
    assert [entry["name"] for entry in correction.rule["classes"]] == ["class 0", "class 1"]
    assert made.method.outside_towers == "a regression over 2 texts was learned"


def test_an_export_whose_correction_differs_is_not_written(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(micro_folder, tmp_path / "learner")
    real = CorrectedClip.correct
    monkeypatch.setattr(CorrectedClip, "correct", lambda self, texts: real(self, texts) * 1.001)
    with pytest.raises(EverclipError, match=r"corrected text embeddings 0\.00\d+ \(allowed"):
        run_export(str(tmp_path / "learner"), tmp_path / "to")
    assert not (tmp_path / "to").exists()


# -- damaged exports --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_folder(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    learned(micro_folder, folder / "learner")
    run_export(str(folder / "learner"), folder / "to")
    return folder / "to"


def changed_rule(**fields: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "correction.json"
        rule = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(
            json.dumps({k: v for k, v in (rule | fields).items() if v is not None}), encoding="utf-8"
        )

    return change


def changed_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "correction.safetensors")
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "correction.safetensors")

    return changed


def other_towers(folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state["text_projection"] = -state["text_projection"]
    save_file(state, folder / "open_clip_model.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no rule": (lambda f: (f / "correction.json").unlink(), r"correction\.json: cannot be read"),
    "no JSON": (lambda f: (f / "correction.json").write_text("{"), r"correction\.json: not valid JSON"),
    "another format": (changed_rule(format=2), "expected a text correction of format 1"),
    "a list": (lambda f: (f / "correction.json").write_text("[]"), "expected a text correction of format 1"),
    "no gamma": (changed_rule(gamma=None), "'gamma' is missing"),
    "no text": (changed_rule(texts=[]), "'texts' is missing, empty"),
    "texts of another type": (changed_rule(texts="a"), "'texts' is missing, empty or of another type"),
    "no tensors": (
        lambda f: (f / "correction.safetensors").unlink(),
        r"correction\.safetensors: cannot be read",
    ),
    "cut off": (
        lambda f: (f / "correction.safetensors").write_bytes(
            (f / "correction.safetensors").read_bytes()[:-9]
        ),
        r"correction\.safetensors: cannot be read",
    ),
    "a tensor too few": (changed_tensors(lambda t: t.pop("spare")), "expected support"),
    "rows that do not fit": (
        changed_tensors(lambda t: t.update(weights=t["weights"][1:])),
        r"expected support \(T, D\), weights \(T, D\) and spare",
    ),
    "not finite": (
        changed_tensors(lambda t: t["weights"].view(-1)[:1].fill_(float("nan"))),
        "weights holds numbers",
    ),
    "another width": (
        changed_tensors(lambda t: t.update({k: v[..., :-1] for k, v in t.items()})),
        "corrects embeddings of 31 numbers, but those of the model have 32",
    ),
    "other weights": (other_towers, "does not give the embedding of 'a class 0'.*belong to another model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_refused(damage: str, exported_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    for file in exported_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(ValueError, match=message):
        CorrectedClip(folder)


def test_the_script_names_images_in_the_shell(
    exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probes()[0].save(tmp_path / "photo.png")
    monkeypatch.setattr(exported_correction, "__file__", str(exported_folder / "corrected.py"))
    monkeypatch.setattr(
        sys, "argv", ["corrected.py", str(tmp_path / "photo.png"), "--name", "b", "--name", "a"]
    )
    exported_correction.main()
    (answer,) = CorrectedClip(exported_folder).classify(probes()[:1], ["b", "a"])
    assert capsys.readouterr().out == f"{tmp_path / 'photo.png'}\t{answer}\n"
    monkeypatch.setattr(sys, "argv", ["corrected.py", str(tmp_path / "none.png")])
    with pytest.raises(SystemExit):
        exported_correction.main()
    assert "none.png" in capsys.readouterr().err


def test_the_loader_is_the_file_in_the_folder(exported_folder: Path) -> None:
    source = Path(exported_correction.__file__).read_bytes()
    assert (exported_folder / "corrected.py").read_bytes() == source
    assert b"import everclip" not in source.replace(b"does not import everclip", b"")
    assert open_clip.__name__.encode() in source
