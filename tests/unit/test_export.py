"""Exports: what plain open_clip loads is the model, bit for bit; what a folder cannot hold is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backbone_zoo as zoo
import numpy as np
import open_clip
import pytest
import torch
from rail_fixtures import FORMS, maker, pictures
from safetensors.torch import load_file, save_file
from test_backbones_kinds import TEXTS, siglip_with_tokenizer, write_tokenizer
from typer.testing import CliRunner

from everclip.cli.export import run_export
from everclip.cli.main import app
from everclip.data.table import Table
from everclip.errors import ConfigError, EverclipError
from everclip.learner import Learner
from everclip.models import export as module
from everclip.models.backbone import load_backbone
from everclip.models.export import export_backbone, probes
from everclip.models.export_parity import DRAWINGS
from everclip.models.exported_classifier import Classifier
from everclip.run import execute
from everclip.training.progress import Progress
from micro import of_classes


def plain(folder: Path, length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings of the probes and of some texts by the lines of Python that an export prints."""
    names: dict[str, Any] = {}
    for line in json.loads((folder / "card.json").read_text())["usage"]:
        exec(line.replace("FOLDER", str(folder)), names)
    model = names["model"].eval()
    with torch.no_grad():
        pixels = torch.stack([names["preprocess"](picture) for picture in probes()])
        texts = model.encode_text(names["tokenizer"](TEXTS), normalize=True)
        return model.encode_image(pixels, normalize=True), texts


def own(learner: Learner) -> tuple[torch.Tensor, torch.Tensor]:
    method = learner.method.eval()
    with torch.no_grad():
        pixels = torch.stack([method.backbone.preprocess(picture) for picture in probes()])
        texts = method.encode_texts(method.backbone.tokenise(TEXTS))
        return method.encode_images(pixels)["embedding"], texts["embedding"]


def same(one: tuple[torch.Tensor, torch.Tensor], two: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("kind", zoo.MODELS)
def test_an_export_is_the_model_bit_for_bit(kind: str, tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "from", zoo.MODELS[kind])
    exported, backbone, _ = run_export(str(folder), tmp_path / "to")
    assert (exported.parity.images, exported.parity.texts, exported.parity.pixels) == (0, 0, 0)
    assert load_backbone(str(tmp_path / "to")).fingerprints() == backbone.fingerprints()
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess(picture) for picture in probes()])
        model = (backbone.encode_image(pixels), backbone.encode_text(backbone.tokenise(TEXTS)))
    assert same(plain(tmp_path / "to"), model)


def test_half_precision_shows_what_it_costs(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "from", zoo.MODELS["siglip"])
    exported, backbone, _ = run_export(str(folder), tmp_path / "to", half=True)
    assert 0 < exported.parity.images < 0.01
    stored = load_file(tmp_path / "to" / "open_clip_model.safetensors")
    assert stored["visual.trunk.pos_embed"].dtype == torch.float16
    assert torch.equal(stored["logit_scale"], backbone.clip.get_parameter("logit_scale").data)
    assert json.loads((tmp_path / "to/card.json").read_text())["precision"] == "fp16"


def test_numbers_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "from", zoo.MODELS["vit"])
    backbone = load_backbone(str(folder))
    backbone.clip.get_parameter("token_embedding.weight").data[-1, -1] = 1e6
    with pytest.raises(
        ConfigError, match=r"'token_embedding\.weight' holds numbers too large for half precision"
    ):
        export_backbone(backbone, tmp_path / "to", {}, half=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["from"]


def test_vocabularies_travel_with_the_weights(micro_folder: Path, tmp_path: Path) -> None:
    run_export(str(micro_folder / "model"), tmp_path / "merges")
    modes = {
        (tmp_path / "merges" / name).stat().st_mode for name in ("open_clip_config.json", module.WEIGHTS)
    }
    assert len(modes) == 1  # safetensors alone would keep its file from every other user
    assert (tmp_path / "merges/merges.txt.gz").is_file()
    plain(tmp_path / "merges")
    folder = zoo.write(tmp_path / "siglip", siglip_with_tokenizer())
    write_tokenizer(folder, ["a", "red", "square"])
    run_export(str(folder), tmp_path / "words")
    assert (tmp_path / "words/tokenizer.json").is_file()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'words'}")(TEXTS)
    assert torch.equal(tokens, load_backbone(str(folder)).tokenise(TEXTS))


# -- runs and learners ----------------------------------------------------------------------------------------------


def test_a_run_is_exported_with_its_provenance(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    config = micro_config("time", "method=replay", "training.steps=2")
    results = execute(config, progress=Progress(quiet=True))
    done = CliRunner().invoke(app, ["export", config.output, str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert (
        "equal tokens, largest difference of pixels 0, image embeddings 0, text embeddings 0" in done.output
    )
    assert same(plain(tmp_path / "to"), own(Learner.load(config.output)))
    card = json.loads((tmp_path / "to/card.json").read_text())
    assert card["towers"] == results.provenance["towers"]
    source = card["source"]
    assert (source["kind"], source["method"]["name"], source["status"]) == ("run", "replay", "finished")
    assert source["metrics"] == results.metrics
    assert source["data"] == results.provenance["data"]
    assert source["towers_before"] != card["towers"]
    assert load_backbone(str(tmp_path / "to")).fingerprints() == card["towers"]


def test_lora_is_merged_and_adapters_are_refused(micro_folder: Path, tmp_path: Path) -> None:
    def saved(slot: dict[str, Any], name: str) -> Path:
        learner = Learner.create(str(micro_folder / "model"), "finetune", {"steps": 2}, trainable=[slot])
        with torch.no_grad():
            for parameter_name, parameter in learner.method.named_parameters():
                if parameter_name in learner.method.trainable:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        learner.save(tmp_path / name)
        return tmp_path / name

    lora = saved({"lora": {"rank": 2}}, "lora")
    exported, _, _ = run_export(str(lora), tmp_path / "to")
    assert exported.merged == ("lora",)
    assert same(plain(tmp_path / "to"), own(Learner.load(lora)))
    plain_keys = load_file(micro_folder / "model/open_clip_model.safetensors").keys()
    assert load_file(tmp_path / "to/open_clip_model.safetensors").keys() == plain_keys
    adapter = saved({"adapter": {}}, "adapter")
    with pytest.raises(ConfigError, match=r"only hold a plain CLIP.*adapter.*run folder"):
        run_export(str(adapter), tmp_path / "to2")
    assert not (tmp_path / "to2").exists()


# -- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_not_overwritten(micro_folder: Path, tmp_path: Path) -> None:
    model, target = str(micro_folder / "model"), tmp_path / "to"
    target.mkdir()
    run_export(model, target)
    before = (target / "card.json").read_text()
    with pytest.raises(ConfigError, match="exists already; --force replaces it"):
        run_export(model, target)
    (target / "card.json").write_text("mine")
    run_export(model, target, force=True)
    assert (target / "card.json").read_text() == before
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not an earlier export \(it holds thesis\.tex\)"):
        run_export(model, target, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        run_export(model, tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "to"]


def test_an_export_that_differs_fails_and_leaves_nothing(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.save_file

    def damaged(state: dict[str, torch.Tensor], *rest: Any, **more: Any) -> None:
        state["visual.proj"].view(-1)[0] += 1e-3
        real(state, *rest, **more)

    earlier = tmp_path / "to"
    run_export(str(micro_folder / "model"), earlier)
    before = (earlier / "open_clip_model.safetensors").read_bytes()
    monkeypatch.setattr(module, "save_file", damaged)
    done = CliRunner().invoke(app, ["export", str(micro_folder / "model"), str(earlier), "--force"])
    assert isinstance(done.exception, EverclipError)
    assert done.exception.exit_code == 1
    assert "image embeddings 0.00" in str(done.exception)
    assert (earlier / "open_clip_model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["to"]


def test_a_method_that_predicts_by_more_than_its_weights_is_noticed(
    micro_folder: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    with pytest.raises(EverclipError, match="may use more than the weights of its backbone to predict"):
        export_backbone(
            backbone, tmp_path / "to", {}, encode_images=lambda x: backbone.encode_image(x).roll(1, dims=1)
        )


def test_what_open_clip_cannot_load_is_no_export(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise OSError("no config.json of the text tower")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", fail)
    with pytest.raises(EverclipError, match=r"cannot load the written folder \(no config\.json"):
        run_export(str(micro_folder / "model"), tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


def test_other_tokens_are_noticed(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(micro_folder / "model", tmp_path / "model"))
    backbone = load_backbone(str(model))
    real = backbone.tokenizer
    backbone.tokenizer = lambda texts: real([text.upper() + "!" for text in texts])
    backbone.tokenizer.context_length = real.context_length
    with pytest.raises(EverclipError, match="different tokens"):
        export_backbone(backbone, tmp_path / "to", {})


def test_json_and_weights_options(micro_folder: Path, tmp_path: Path) -> None:
    arguments = ["export", str(micro_folder / "model"), str(tmp_path / "to"), "--json", "--weights", "random"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.output)
    assert document["source"] == {
        "kind": "backbone",
        "name": str(micro_folder / "model"),
        "weights": "random",
    }
    assert document["parity"].pop("head") is None
    assert document["parity"].pop("correction") is None
    assert max(document["parity"].pop("images"), document["parity"].pop("texts")) <= 1e-6
    assert document["parity"] == {"pixels": 0, "logit_scale": 0, "tokens": True}


@pytest.mark.parametrize(
    "form", [form if i < 1 else pytest.param(form, marks=pytest.mark.slow) for i, form in enumerate(FORMS)]
)
def test_what_rail_learned_is_exported_and_loaded_with_open_clip_alone(
    form: str, micro_folder: Path, tmp_path: Path
) -> None:
    data = pictures(micro_folder)
    learner = maker(micro_folder)(**FORMS[form])
    for number in range(2):
        learner.learn(of_classes(data, number, number))
    learner.save(tmp_path / "learner")
    exported, _, _ = run_export(str(tmp_path / "learner"), tmp_path / "to")
    assert exported.parity.head is not None
    assert exported.parity.head <= 1e-6
    names = [entry.name for number in range(2) for entry in of_classes(data, number, number).classes or ()]
    files = photos(learner, data, tmp_path)
    usage = json.loads((tmp_path / "to/card.json").read_text())["usage"]
    printed = "\n".join(usage).replace("photo.jpg", str(files[0]))
    # A fresh interpreter that may not import everclip: the folder and open_clip are all there is.
    script = (
        "import sys, json\n"
        "sys.modules['everclip'] = None\n"
        f"exec({printed!r})\n"
        "import PIL.Image\n"
        f"model = Classifier({str(tmp_path / 'to')!r})\n"
        f"images = [PIL.Image.open(f).convert('RGB') for f in {[str(f) for f in files]!r}]\n"
        f"print(json.dumps([model.classify(images), model.classify(images, {[*names, 'something else']!r})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for offered, answers in zip((names, [*names, "something else"]), json.loads(done.stdout), strict=True):
        assert answers == [name for name, _ in learner.classify(files, offered, ("a {}",))]
    if form == next(iter(FORMS)):
        command = [sys.executable, str(tmp_path / "to/classify.py"), str(files[0]), str(files[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said = [name for name, _ in learner.classify(files[:2], names, ("a {}",))]
        assert done.stdout.splitlines() == [f"{f}\t{n}" for f, n in zip(files[:2], said, strict=True)]


def photos(learner: Learner, data: Table, folder: Path) -> list[Path]:
    files = []
    for number in range(0, len(data), 7):
        file = folder / f"{number}.png"
        learner.store.get(data, number).save(file)
        files.append(file)
    return files


def test_an_exported_head_changes_answers_and_says_how_many_classes(
    micro_folder: Path, tmp_path: Path
) -> None:
    data = pictures(micro_folder)
    learner = maker(micro_folder)(fusion=1.0, dimension=200)
    learner.learn(of_classes(data, 0, 0, 1, 2))
    learner.save(tmp_path / "learner")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "learner"), str(tmp_path / "to")])
    assert result.exit_code == 0, result.output
    assert "class head: 3 classes; classify.py loads it" in result.output
    rule = json.loads((tmp_path / "to/head.json").read_text())
    assert rule["features"] == "relu"
    assert rule["fusion"] == 1.0
    # A head that was changed on disk gives other answers, so the comparison at export would notice.
    head = load_file(tmp_path / "to/head.safetensors")
    save_file({**head, "weights": head["weights"] * 0}, tmp_path / "to/head.safetensors")
    changed = Classifier(tmp_path / "to")
    assert float(changed.scores(probes()).abs().max()) == 0.0


def test_the_probes_hold_real_images() -> None:
    found = probes()
    drawn = [np.asarray(image) for image in found[-DRAWINGS:]]
    assert len(found) > DRAWINGS
    assert all(one.shape == (64, 64, 3) and len(np.unique(one)) > 20 for one in drawn)
    assert not np.array_equal(drawn[0], drawn[1])
