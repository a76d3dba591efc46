"""Exports to other layouts: the same embeddings, refusals of what a layout cannot hold, LoRA alone, model cards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import backbone_zoo as zoo
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from everclip.cli.export import run_export
from everclip.cli.main import app
from everclip.errors import ConfigError, EverclipError
from everclip.learner import Learner
from everclip.models import export_adapter, export_transformers
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.export import export_backbone
from everclip.models.export_parity import TEXTS, Parity, probes
from everclip.models.export_tokenizer import pad_id, read_tokens, write_tokenizer
from everclip.models.export_transformers import TRANSFORMERS, renamed
from everclip.models.transformers_layout import convert
from everclip.store.creating import create_store
from everclip.store.loading import load_any
from everclip.store.versions import Store


def embeddings(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        pixels = torch.stack([backbone.preprocess(image) for image in probes()])
        return backbone.encode_image(pixels), backbone.encode_text(backbone.tokenise(list(TEXTS)))


def lora(micro_folder: Path, folder: Path, slot: dict[str, Any] | None = None) -> Path:
    """Save a learner with LoRA in both towers, none of it zero."""
    slot = slot or {"lora": {"rank": 2, "alpha": 3.0, "targets": ["q", "v", "out", "mlp"]}}
    learner = Learner.create(str(micro_folder / "model"), "finetune", {"steps": 2}, trainable=[slot])
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in learner.method.named_parameters():
            if name in learner.method.trainable and ".parametrizations." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    learner.save(folder)
    return folder


# -- CLIPModel ------------------------------------------------------------------------------------------------------


def test_open_clip_to_clip_model_and_back_is_the_same_model(micro_folder: Path, tmp_path: Path) -> None:
    source = load_backbone(str(micro_folder / "model"))
    exported, _, _ = run_export(str(micro_folder / "model"), tmp_path / "one", form="transformers")
    assert exported.parity == Parity(0, 0, 0, 0, True)
    back = load_backbone(str(tmp_path / "one"))
    assert back.fingerprints() == source.fingerprints()
    for a, b in zip(embeddings(back), embeddings(source), strict=True):
        assert (a - b).abs().max() <= 1e-6
    run_export(str(tmp_path / "one"), tmp_path / "two")
    assert load_backbone(str(tmp_path / "two")).fingerprints() == source.fingerprints()


def test_names_of_tensors_have_an_inverse() -> None:
    for custom in (False, True):
        cfg = {**zoo.MODELS["vit"], "custom_text": custom}
        state = {k.removeprefix("text."): v for k, v in zoo.make(cfg).state_dict().items()}
        back = convert(renamed(state))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.slow
def test_clip_model_keeps_resizing_activation_and_half(tmp_path: Path) -> None:
    folder = zoo.write(
        tmp_path / "from", zoo.MODELS["vit"]
    )  # QuickGELU, squash, bilinear, open_clip's vocabulary
    exported, backbone, _ = run_export(str(folder), tmp_path / "to", form="transformers", half=True)
    assert 0 < exported.parity.images < 0.01
    config = json.loads((tmp_path / "to/config.json").read_text())
    assert config["text_config"]["hidden_act"] == config["vision_config"]["hidden_act"] == "quick_gelu"
    assert load_file(tmp_path / "to/model.safetensors")["visual_projection.weight"].dtype == torch.float16
    back = load_backbone(str(tmp_path / "to"))
    assert (back.layout and back.layout.preprocess_cfg) == (
        backbone.layout and backbone.layout.preprocess_cfg
    )


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("resnet", r"image tower of another kind \(ModifiedResNet\)"),
        ("siglip", r"image tower of another kind \(TimmModel, VisionTransformer\)"),
        ("coca", r"text decoder \(CoCa\)"),
    ],
)
def test_what_a_clip_model_cannot_hold_is_refused(kind: str, found: str, tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "from", zoo.MODELS[kind])
    with pytest.raises(ConfigError, match=rf"CLIPModel.*{found}.*--format open_clip"):
        run_export(str(folder), tmp_path / "to", form="transformers")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("side", "change", "found"),
    [
        ("vision_cfg", {"attentional_pool": True, "attn_pooler_heads": 2}, "attentional pooling"),
        ("vision_cfg", {"pool_type": "avg"}, r"vision_cfg\.pool_type = 'avg'"),
        ("vision_cfg", {"ls_init_value": 0.1}, r"vision_cfg\.ls_init_value = 0\.1"),
        ("text_cfg", {"no_causal_mask": True}, r"text_cfg\.no_causal_mask = True"),
        ("text_cfg", {"proj_bias": True}, r"text_cfg\.proj_bias = True"),
    ],
)
def test_settings_without_a_place_are_named(
    side: str, change: dict[str, Any], found: str, tmp_path: Path
) -> None:
    cfg = {**zoo.MODELS["custom-text"], side: {**zoo.MODELS["custom-text"][side], **change}}
    folder = zoo.write(tmp_path / "from", cfg)
    with pytest.raises(ConfigError, match=found):
        run_export(str(folder), tmp_path / "to", form="transformers")


def test_a_wrong_clip_model_is_not_written(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_transformers.save_file

    def damaged(state: dict[str, torch.Tensor], *rest: Any, **more: Any) -> None:
        state["text_model.encoder.layers.0.self_attn.k_proj.weight"].view(-1)[0] += 0.5
        real(state, *rest, **more)

    monkeypatch.setattr(export_transformers, "save_file", damaged)
    with pytest.raises(EverclipError, match="does not give the model's embeddings"):
        run_export(str(micro_folder / "model"), tmp_path / "to", form="transformers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["micro", "builtin:tiny"])
def test_transformers_itself_gives_the_embeddings(name: str, micro_folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = load_backbone(str(micro_folder / "model") if name == "micro" else name)
    export_backbone(backbone, tmp_path / "to", {}, layout=TRANSFORMERS)
    model = transformers.CLIPModel.from_pretrained(tmp_path / "to").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "to")
    batch = processor(
        text=list(TEXTS),
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=backbone.tokenizer.context_length,
    )
    pixels = torch.stack([backbone.preprocess(image) for image in probes()])
    with torch.inference_mode():
        found = (model.get_image_features(pixel_values=pixels), model.get_text_features(**batch))
    for one, expected in zip(found, embeddings(backbone), strict=True):
        rows = one if isinstance(one, torch.Tensor) else one.pooler_output
        assert (torch.nn.functional.normalize(rows, dim=1) - expected).abs().max() <= 1e-6


# -- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["micro", "builtin:tiny"])
def test_tokens_without_open_clip_are_the_same(name: str, micro_folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model") if name == "micro" else name)
    write_tokenizer(backbone, tmp_path)
    texts = [
        *TEXTS,
        "it's the DOG's 3rd   bone;\tO'Neill's",
        "Straße İstanbul ﬁn",
        "O’Neill’s “best”",
        "a" * 90,
        "🎈🎈 ✨ 12 345",
    ]
    ids = read_tokens(tmp_path, texts, backbone.tokenizer.context_length, pad_id(backbone))
    assert torch.equal(ids, backbone.tokenise(texts))


# -- ONNX -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["micro", *zoo.MODELS])
def test_onnxruntime_gives_the_embeddings(name: str, micro_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = micro_folder / "model" if name == "micro" else zoo.write(tmp_path / "from", zoo.MODELS[name])
    exported, _, _ = run_export(str(folder), tmp_path / "to", form="onnx")
    assert exported.parity.tokens
    assert max(exported.parity.images, exported.parity.texts) <= 1e-5


@pytest.mark.slow
def test_the_script_of_an_onnx_export_needs_neither_torch_nor_everclip(
    micro_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run_export(str(micro_folder / "model"), tmp_path / "to", form="onnx")
    backbone = load_backbone(str(micro_folder / "model"))
    probes()[0].save(tmp_path / "photo.png")
    script = (
        "import sys, json\n"
        "sys.modules.update(everclip=None, torch=None, open_clip=None, transformers=None)\n"
        f"sys.path.insert(0, {str(tmp_path / 'to')!r})\n"
        "from PIL import Image\n"
        "from usage import OnnxClip\n"
        f"model = OnnxClip({str(tmp_path / 'to')!r})\n"
        f"image = Image.open({str(tmp_path / 'photo.png')!r})\n"
        f"print(json.dumps([model.encode_images([image]).tolist(), model.encode_texts({list(TEXTS)!r}).tolist()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    images, texts = (torch.tensor(rows) for rows in json.loads(done.stdout))
    expected = embeddings(backbone)
    assert (images - expected[0][:1]).abs().max() <= 1e-5
    assert (texts - expected[1]).abs().max() <= 1e-5


def test_half_precision_of_onnx_and_unknown_formats_are_refused(micro_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match="--half is for"):
        run_export(str(micro_folder / "model"), tmp_path / "to", form="onnx", half=True)
    with pytest.raises(ConfigError, match=r"--format: 'onx' is not known.*onnx"):
        run_export(str(micro_folder / "model"), tmp_path / "to", form="onx")
    assert list(tmp_path.iterdir()) == []


# -- LoRA alone -----------------------------------------------------------------------------------------------------

SLOTS: dict[str, dict[str, Any]] = {
    "all targets": {},
    "learned scale": {"lora": {"rank": 2, "learned_scale": True, "targets": ["k"]}},
    "shared, one tower": {"lora": {"rank": 3, "shared": True, "targets": ["q", "k", "v"], "tower": "image"}},
}


@pytest.mark.parametrize("case", SLOTS)
def test_lora_alone_on_the_start_model_is_the_merged_model(
    case: str, micro_folder: Path, tmp_path: Path
) -> None:
    learner = lora(micro_folder, tmp_path / "learner", SLOTS[case])
    exported, _, _ = run_export(str(learner), tmp_path / "lora", adapter_only=True)
    assert max(exported.parity.images, exported.parity.texts) <= 1e-6
    _, merged, _ = run_export(str(learner), tmp_path / "merged")
    start = load_backbone(str(micro_folder / "model"))
    moved = max((a - b).abs().max() for a, b in zip(embeddings(start), embeddings(merged), strict=True))
    assert moved > 0.01
    back = load_backbone({"name": str(micro_folder / "model"), "adapter": str(tmp_path / "lora")})
    for a, b in zip(embeddings(back), embeddings(merged), strict=True):
        assert (a - b).abs().max() <= 1e-6
    assert torch.equal(back.logit_scale, merged.logit_scale)


def test_what_an_adapter_cannot_hold_is_refused(micro_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a backbone, which holds no LoRA"):
        run_export(str(micro_folder / "model"), tmp_path / "to", adapter_only=True)
    adapter = lora(micro_folder, tmp_path / "adapter", {"adapter": {}})
    with pytest.raises(ConfigError, match=r"the model holds \d+ x adapter, which has no place"):
        run_export(str(adapter), tmp_path / "to", adapter_only=True)
    learner = Learner.load(lora(micro_folder, tmp_path / "lora"))
    with torch.no_grad():
        learner.method.backbone.clip.get_parameter("ln_final.weight").add_(0.1)
    learner.save(tmp_path / "more")
    with pytest.raises(ConfigError, match=r"1 weights outside LoRA differ.*ln_final\.weight"):
        run_export(str(tmp_path / "more"), tmp_path / "to", adapter_only=True)
    with pytest.raises(ConfigError, match="leave out --half"):
        run_export(str(tmp_path / "lora"), tmp_path / "to", adapter_only=True, half=True)
    assert not (tmp_path / "to").exists()


@pytest.mark.slow
def test_peft_itself_gives_the_embeddings(micro_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    run_export(str(micro_folder / "model"), tmp_path / "start", form="transformers")
    for number, slot in enumerate(SLOTS.values()):
        learner = lora(micro_folder, tmp_path / f"learner{number}", slot)
        run_export(str(learner), tmp_path / f"lora{number}", adapter_only=True)
        start = transformers.CLIPModel.from_pretrained(tmp_path / "start")
        model = peft.PeftModel.from_pretrained(start, tmp_path / f"lora{number}").eval()
        backbone = Learner.load(learner).method.backbone.eval()
        pixels = torch.stack([backbone.preprocess(image) for image in probes()])
        ids = backbone.tokenise(list(TEXTS))
        with torch.inference_mode():
            found = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=ids)
        for one, expected in zip(found, embeddings(backbone), strict=True):
            rows = one if isinstance(one, torch.Tensor) else one.pooler_output
            assert (torch.nn.functional.normalize(rows, dim=1) - expected).abs().max() <= 1e-6


# -- cards, stores and folders --------------------------------------------------------------------------------------


def test_a_version_of_a_store_is_a_model_with_its_gates_on_the_card(
    micro_folder: Path, tmp_path: Path
) -> None:
    create_store(tmp_path / "shop", str(micro_folder / "model"))
    store = Store(tmp_path / "shop")
    assert load_any(str(store.path)).method.backbone.fingerprints() == store.version("v0001").towers
    done = CliRunner().invoke(app, ["export", f"{store.path}@v0001", str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "to/README.md").read_text(encoding="utf-8")
    assert card.startswith("# shop@v0001, exported by everclip\n")
    assert "## Gates\n\nVersion v0001 of a store: accepted." in card
    with pytest.raises(ConfigError, match="there is no version 'v0009'; there are v0001"):
        load_any(f"{store.path}@v0009")
    with pytest.raises(ConfigError, match="its backbone cannot be changed"):
        load_any(str(store.path), {"weights": "random"})


def test_the_card_says_what_was_learned_and_where_it_ends(micro_folder: Path, tmp_path: Path) -> None:
    exported, _, _ = run_export(str(lora(micro_folder, tmp_path / "learner")), tmp_path / "to")
    card = (tmp_path / "to/README.md").read_text(encoding="utf-8")
    assert "Method: `finetune`" in card
    assert "Merged into the weights: lora" in card
    assert "Texts are cut off after 12 tokens" in card
    assert f"image embeddings: {exported.parity.images:g}" in card
    for line in json.loads((tmp_path / "to/card.json").read_text())["usage"]:
        assert line in card


def test_an_export_in_another_layout_is_replaced_and_nothing_else(micro_folder: Path, tmp_path: Path) -> None:
    model = str(micro_folder / "model")
    run_export(model, tmp_path / "to", form="transformers")
    with pytest.raises(ConfigError, match="exists already; --force replaces it"):
        run_export(model, tmp_path / "to")
    run_export(model, tmp_path / "to", force=True)
    assert not (tmp_path / "to/config.json").exists()
    theirs = tmp_path / "theirs"
    run_export(model, theirs, form="transformers")
    (theirs / "card.json").unlink()  # as a folder that was fetched
    with pytest.raises(ConfigError, match="is not an earlier export"):
        run_export(model, theirs, force=True)
    shutil.rmtree(theirs)
    run_export(model, theirs)
    (theirs / "README.md").write_text("# My own page\n")
    with pytest.raises(ConfigError, match=r"not an earlier export \(it holds README\.md\)"):
        run_export(model, theirs, force=True)


@pytest.mark.slow
def test_heads_have_no_place_in_other_layouts(micro_folder: Path, tmp_path: Path) -> None:
    from test_text_ridge_export import learned

    learned(micro_folder, tmp_path / "learner")
    with pytest.raises(ConfigError, match=r"a text correction beside its towers.*--format open_clip"):
        run_export(str(tmp_path / "learner"), tmp_path / "to", form="transformers")


def test_a_damaged_adapter_is_noticed(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(state: dict[str, torch.Tensor], *rest: Any, **more: Any) -> None:
        next(iter(state.values())).mul_(2)
        save_file(state, *rest, **more)

    learner = lora(micro_folder, tmp_path / "learner")
    monkeypatch.setattr(export_adapter, "save_file", damaged)
    with pytest.raises(EverclipError, match="the start model with the adapter does not give"):
        run_export(str(learner), tmp_path / "to", adapter_only=True)
    assert not (tmp_path / "to").exists()
