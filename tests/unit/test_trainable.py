"""The slot `trainable`: what is named moves, every tensor of it; what is not named stays bit for bit, buffers too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import module_models as models
import open_clip
import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import Task
from everclip.data.pictures.images import PixelFormat
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.methods.frozen import embeddings
from everclip.methods.settings import SlotSettings
from everclip.methods.trainable import choose, parts_of
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.modules.towers import plain_name

MODELS = (
    "vit",
    "layer scale",
    "custom blocks",
    "custom text",
    "custom text, no mask, last",
    "resnet",
    "timm",
)
LORA = {"lora": {"rank": 2, "targets": ["q", "k", "v", "out", "mlp"]}}
SLOTS: dict[str, list[Any]] = {
    "towers": ["image", "text", "logit-scale"],
    "one tower": ["text"],
    "blocks": ["image-blocks:last1", "text-blocks:0"],
    "layernorms": ["image-layernorm", "text-layernorm"],
    "biases": ["image-bias", "text-bias"],
    "projections": ["image-projection", "text-projection"],
    "embeddings": ["image-embeddings", "text-embeddings"],
    "logit scale": ["logit-scale"],
    "batch norms": ["image-batchnorm"],
    "lora": [LORA],
    "adapter": [{"adapter": {"width": 3}}],
    "parallel adapter": [{"adapter": {"form": "parallel", "width": 3}}],
    "prompts": [{"prompt": {"tower": "both", "count": 2, "depth": "all"}}],
    "words as prompts": [{"prompt": {"tower": "text", "init": "ab"}}],
    "text modules alone": [
        {"lora": {"tower": "text", "rank": 2}},
        {"adapter": {"tower": "text", "width": 2}},
    ],
    "lora with its weights": ["image-blocks:1", {"lora": {"tower": "image", "blocks": 1, "rank": 2}}],
    "a mixture": ["image-layernorm", "text-bias", "logit-scale", {"lora": {"tower": "text", "rank": 2}}],
}


@pytest.fixture(scope="module")
def task(micro_folder: Path) -> Task:
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    return Task(0, "first", data.select(range(24)), data.select(range(24, 40)))


@pytest.fixture(scope="module")
def backbone(micro_folder: Path) -> Callable[[str], Backbone]:
    """Return a function (name of a small model) -> backbone with the vocabulary of the tests."""
    tokenizer = load_backbone(str(micro_folder / "model")).tokenizer

    def make(name: str) -> Backbone:
        clip = models.build(name)
        size = clip.visual.image_size
        side = size[0] if isinstance(size, tuple) else size
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        transform = open_clip.image_transform(side, is_train=False, mean=mean, std=std)
        return Backbone(clip, tokenizer, transform, PixelFormat(side, mean, std), name).eval()

    return make


def build(backbone: Backbone, *trainable: Any, **settings: Any) -> Method:
    return build_method(
        MethodConfig(name="finetune", settings={"trainable": trainable, **settings}), backbone
    )


def learn(method: Method, task: Task, **training: Any) -> None:
    config = TrainingConfig(
        **{"steps": 4, "batch_size": 8, "lr": 1e-2, "warmup": 0, "device": "cpu", "workers": 0, **training}
    )
    Learner(method, config).learn(task)


def lacking(model: str, slot: str) -> str | None:
    """Say what of a slot value a model does not have."""
    wanted = str(SLOTS[slot])
    if model == "resnet" and "image-layernorm" in wanted:
        return "image-layernorm"
    if model != "resnet" and "batchnorm" in wanted:
        return "image-batchnorm"
    grows_in_image = any(
        isinstance(e, dict) and next(iter(e.values())).get("tower", "both") != "text" for e in SLOTS[slot]
    )
    return "image tower" if model in models.OTHERS and grows_in_image else None


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_trainable_tensor_moves_and_every_frozen_one_stays(
    model: str, slot: str, backbone: Callable[[str], Backbone], task: Task
) -> None:
    missing = lacking(model, slot)
    if missing is not None:
        with pytest.raises(ConfigError, match=missing):
            build(backbone(model), *SLOTS[slot])
        return
    method = build(backbone(model), *SLOTS[slot])
    before = {k: v.clone() for k, v in method.state_dict().items()}
    learn(method, task)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert trained
    batchnorms = _moving_statistics(method)
    after = method.state_dict()
    for name, old in before.items():
        moved = not torch.equal(after[name], old)
        assert moved == (name in trained or name in batchnorms), name


def test_the_bias_of_siglip_trains_under_its_loss_alone(
    backbone: Callable[[str], Backbone], task: Task
) -> None:
    name = "custom text, no mask, last"
    with pytest.raises(ConfigError, match="learns only from the sigmoid loss"):
        build(backbone(name), "logit-bias")
    with pytest.raises(ConfigError, match=r"contrast.*logit bias"):
        build(backbone("vit"), "text", contrast="sigmoid")
    method = build(backbone(name), "logit-bias", contrast="sigmoid", loss="captions")
    before = {k: v.clone() for k, v in method.state_dict().items()}
    learn(method, task)
    assert [k for k, v in method.state_dict().items() if not torch.equal(v, before[k])] == [
        "backbone.clip.logit_bias"
    ]


def _moving_statistics(method: Method) -> set[str]:
    """Running statistics move exactly where the norm itself trains."""
    found: set[str] = set()
    for place, module in method.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and any(p.requires_grad for p in module.parameters()):
            found |= {f"{place}.{name}" for name, _ in module.named_buffers()}
    return found


# -- what the words mean --------------------------------------------------------------------------------------


def plain(names: list[str]) -> set[str]:
    return {plain_name(n) for n in names}


@pytest.mark.parametrize(
    ("model", "wanted", "expected"),
    [
        ("vit", "image-blocks:1", lambda n: n.startswith("visual.transformer.resblocks.1.")),
        ("vit", "image-blocks:last1", lambda n: n.startswith("visual.transformer.resblocks.1.")),
        ("vit", "text-blocks:first1", lambda n: n.startswith("transformer.resblocks.0.")),
        ("vit", "text-blocks:0-1", lambda n: n.startswith("transformer.resblocks.")),
        ("custom text", "text-blocks:last1", lambda n: n.startswith("text.transformer.resblocks.1.")),
        ("resnet", "image-blocks:last2", lambda n: n.startswith(("visual.layer3.", "visual.layer4."))),
        ("resnet", "image-blocks:0", lambda n: n.startswith("visual.layer1.")),
        ("timm", "image-blocks:3-5", lambda n: n.startswith(tuple(f"visual.trunk.blocks.{i}." for i in (3, 4, 5)))),
        ("timm", "image-projection", lambda n: n.startswith("visual.head.proj.")),
        ("resnet", "image-projection", lambda n: n.startswith("visual.attnpool.c_proj.")),
        ("custom text, no mask, last", "text-projection", lambda n: n.startswith("text.text_projection.")),
        ("vit", "image-bias", lambda n: n.startswith("visual.") and n.endswith("bias")),
        ("vit", "text-embeddings", lambda n: n in ("positional_embedding", "token_embedding.weight")),
        ("vit", "image-embeddings",
         lambda n: n in ("visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding")),
        ("resnet", "image-embeddings", lambda n: n.startswith(("visual.conv", "visual.bn"))),
        ("resnet", "image-batchnorm", lambda n: ".bn" in n or ".downsample.1." in n),
    ],
)  # fmt: skip
def test_words_name_these_parameters(model: str, wanted: str, expected: Callable[[str], bool]) -> None:
    clip = models.build(model)
    names = {n for n, _ in clip.named_parameters()}
    assert set(choose(clip, [wanted])) == {n for n in names if expected(n)} != set()


@pytest.mark.parametrize("module", [LORA, {"adapter": {}}, {"prompt": {"tower": "both"}}])
def test_what_is_grown_belongs_to_its_module_alone(module: dict[str, Any], micro_folder: Path) -> None:
    bare = load_backbone(str(micro_folder / "model"))
    wanted = ["image", "text", "image-blocks:last1", "text-bias", "logit-scale"]
    expected = {w: set(choose(bare.clip, [w])) for w in wanted}
    method = build(load_backbone(str(micro_folder / "model")), "logit-scale", module)
    for word, names in expected.items():
        assert plain(choose(method.backbone.clip, [word])) == names
    (kind,) = module
    own = {n for n, parts in parts_of(method.backbone.clip).items() if parts == {kind}}
    assert own == set(choose(method.backbone.clip, [kind]))
    assert method.describe().trainable_parameters == 1 + sum(
        method.backbone.clip.get_parameter(n).numel() for n in own
    )
    count = sum(p.numel() for p in bare.parameters())
    assert method.describe().stored_parameters == count - 1 + method.describe().trainable_parameters


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("image-blocks", "needs a range"),
        ("image-blocks:3-1", "not a range"),
        ("image-blocks:last0", "names no block"),
        ("image-blocks:1-9", "0-1"),
        ("image-block:1", "image-blocks"),
        ("image-batchnorm", "no 'image-batchnorm'; it has image, image-.*image-blocks:0-1"),
        ({"lora": {"ranks": 3}}, "ranks.*rank"),
        ({"lora": 3}, "expected settings"),
        ({"text": {"a": 1}}, "takes no settings"),
        ({"lora": {}, "adapter": {}}, "one name per entry"),
        ({"lora": {"blocks": "x"}}, "not a range"),
        (7, "expected the name of a part, found 7"),
    ],
)
def test_what_does_not_fit_is_named(entry: Any, said: str, micro_folder: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build(load_backbone(str(micro_folder / "model")), entry)
    assert "method.trainable" in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_entries_have_one_form() -> None:
    given = [
        "lora",
        {"lora": {"tower": "text"}},
        {"image-blocks": 3},
        {"text-blocks": "last2"},
        "image-blocks:8-11",
    ]
    settings = SlotSettings(trainable=tuple(given))  # type: ignore[arg-type]
    assert settings.parts == ("lora", "lora", "image-blocks:3", "text-blocks:last2", "image-blocks:8-11")
    assert [s.tower for _, s in settings.modules] == ["both", "text"]
    dumped = settings.model_dump(mode="json")
    assert SlotSettings(**dumped) == settings
    assert dumped["trainable"][1]["lora"]["rank"] == 8


# -- with the other slots -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"merge": {"kind": "wise-ft", "alpha": 0.5}},
        {"merge": {"kind": "running-mean", "every": 1}},
        {"penalties": {"weight-constraint": {"weight": 1.0}}},
    ],
)
@pytest.mark.parametrize("slot", ["lora", "adapter", "prompts", "lora with its weights"])
def test_merging_and_penalties_know_grown_parameters(
    slot: str, settings: dict[str, Any], micro_folder: Path, task: Task
) -> None:
    with_it = build(load_backbone(str(micro_folder / "model")), *SLOTS[slot], **settings)
    without = build(load_backbone(str(micro_folder / "model")), *SLOTS[slot])
    start = {k: v.clone() for k, v in with_it.named_parameters()}
    learn(with_it, task)
    learn(without, task)
    one, other = dict(with_it.named_parameters()), dict(without.named_parameters())
    for name in with_it.trainable:
        assert not torch.equal(one[name], other[name])
        if settings.get("merge", {}).get("kind") == "wise-ft":
            assert torch.allclose(one[name], (start[name] + other[name]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ({"lora": {}}, "none"),
        ({"adapter": {"width": 3}}, "768 multiplications per image token"),
        ({"prompt": {"count": 3, "depth": "all"}}, "3 more tokens per image"),
        ({"prompt": {"tower": "text"}}, "none"),
    ],
)
def test_the_cost_of_a_picture_is_stated(module: dict[str, Any], said: str, micro_folder: Path) -> None:
    cost = build(load_backbone(str(micro_folder / "model")), module).describe()
    assert said in cost.extra_per_image


def test_fingerprints_follow_what_is_grown(micro_folder: Path, task: Task) -> None:
    method = build(load_backbone(str(micro_folder / "model")), {"lora": {"tower": "text", "rank": 2}})
    before = method.backbone.fingerprints()
    learn(method, task)
    after = method.backbone.fingerprints()
    assert before["image"] == after["image"]
    assert before["text"] != after["text"]


@pytest.mark.parametrize("slot", ["lora", "adapter", "prompts", "words as prompts"])
def test_a_saved_learner_comes_back_as_it_was(
    slot: str, micro_folder: Path, task: Task, tmp_path: Path
) -> None:
    learner = Learner.create(
        backbone=str(micro_folder / "model"),
        training={"steps": 3, "batch_size": 8, "device": "cpu"},
        trainable=SLOTS[slot],
    )
    learner.learn(task)
    learner.save(tmp_path / "saved")
    back = Learner.load(tmp_path / "saved")
    texts = ["red", "a rather long text of this kind"]
    assert torch.equal(back.encode(texts=texts)["texts"], learner.encode(texts=texts)["texts"])
    assert back.method.state_dict().keys() == learner.method.state_dict().keys()


# -- what is frozen costs nothing -----------------------------------------------------------------------------


def test_backward_stops_at_the_lowest_trainable_block(micro_folder: Path, task: Task) -> None:
    method = build(load_backbone(str(micro_folder / "model")), "image-blocks:last1")
    method.mark_trainable()
    method.train()
    blocks, seen = method.backbone.clip.visual.transformer.resblocks, []
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    pixels, ids = models.inputs(method.backbone.clip)
    image = embeddings(method.backbone, "image", {"image": pixels}, "image")
    text = embeddings(method.backbone, "text", {"tokens": ids}, "tokens")
    assert seen == [False, True]
    assert image.requires_grad
    assert not text.requires_grad


def test_a_frozen_tower_is_in_evaluation_mode(micro_folder: Path) -> None:
    method = build(load_backbone(str(micro_folder / "model")), "text-bias")
    method.mark_trainable()
    method.train()
    assert not any(m.training for m in method.backbone.clip.visual.modules())
    assert method.backbone.clip.transformer.training
    method = build(load_backbone(str(micro_folder / "model")), {"lora": {"tower": "image"}})
    method.mark_trainable()
    method.train()
    assert method.backbone.clip.visual.transformer.training
    assert not method.backbone.clip.transformer.training


def test_a_teacher_is_not_moved_by_what_grows_in_the_student(micro_folder: Path, task: Task) -> None:
    method = build(load_backbone(str(micro_folder / "model")), "lora", {"adapter": {"width": 3}})
    twin = copy.deepcopy(method.backbone)
    before = models.embeddings(twin.clip)
    learn(method, task)
    assert models.same(models.embeddings(twin.clip), before)
    assert not models.same(models.embeddings(method.backbone.clip), before)
