"""CoLeCLIP against golden numbers and twins: prompts that nothing reads, the vocabulary, both stages, inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import module_models as models
import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, VisionTransformer
from torch.nn import functional

from everclip.contracts import Batch, ClassEntry, LabelSpace, Past, Progress, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.evaluation.banks import measuring
from everclip.methods.build import build_method
from everclip.methods.coleclip import CoLeClip, merged
from everclip.methods.coleclip_parts import losses
from everclip.methods.coleclip_parts.settings import CoLeClipSettings
from everclip.methods.coleclip_parts.vocabulary import Vocabulary
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.modules import lora, task_prompts
from everclip.models.modules.grow import grown, insert
from everclip.models.modules.settings import LoraSettings
from everclip.models.modules.towers import Tower, tower_of

GOLDEN = Path(__file__).parents[1] / "golden"
SCALE = torch.tensor(100.0)


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"coleclip_{name}.npz") as found:
        return {key: torch.as_tensor(found[key]) for key in found.files}


# -- task prompts ---------------------------------------------------------------------------------------------


def golden_tower(g: dict[str, torch.Tensor]) -> Tower:
    visual = VisionTransformer(32, 16, 32, 2, 4, 4.0, output_dim=16, act_layer=QuickGELU)
    rename = {"__": ".", "attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj."}
    state = {}
    for key, value in g.items():
        if key.startswith("w_") and key != "w_task_prompt":
            name = key[2:]
            for old, new in rename.items():
                name = name.replace(old, new)
            state[name] = value
    visual.load_state_dict(state)
    visual.eval().requires_grad_(False)
    return Tower("image", visual, visual.transformer, tuple(visual.transformer.resblocks))


@pytest.mark.parametrize("masked", [False, True])
def test_prompts_are_the_published_ones(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = golden("task_prompt_vit")
    tower = golden_tower(g)
    task_prompts.insert(tower)
    prompts = tower.root.task_prompts
    if masked:
        monkeypatch.setattr(task_prompts, "_plain", lambda block: False)
    for number, wanted in ((2, g["tokens_out_two_tasks"]), (3, g["tokens_out"])):
        while len(prompts) < number:
            prompts.add(0, tower.root.proj)
        for value, own in zip(prompts.tokens, g["w_task_prompt"], strict=False):
            value.data.copy_(own)
        with torch.inference_mode():
            whole, outputs = task_prompts.encode(tower, g["image"])
        assert torch.allclose(outputs, wanted[:, :-1], atol=2e-6)
        assert torch.allclose(whole, wanted[:, -1], atol=2e-6)
        assert torch.allclose(whole, g["cls_frozen"], atol=2e-6)
    assert torch.equal(task_prompts.mask(3, 1, 5, whole), g["attn_mask"])


def with_prompts(clip: Any, tasks: int, count: int = 1) -> Tower:
    tower = tower_of(clip, "image")
    task_prompts.insert(tower, count)
    names = tuple(
        f"visual.task_prompts.{task_prompts.of(clip).add(0, clip.logit_scale)}" for _ in range(tasks)
    )
    models.shake(clip, names)
    return tower


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("model", models.CASES)
def test_the_picture_is_encoded_as_without_prompts_and_later_tasks_change_none(
    model: str, batch_first: bool
) -> None:
    if model == "custom blocks" and not batch_first:
        pytest.skip("open_clip's custom blocks are batch-first")
    clip = models.build(model, batch_first)
    before, state = models.embeddings(clip), models.state(clip)
    pixels, _ = models.inputs(clip)
    tower = with_prompts(clip, 3, count=2)
    with torch.no_grad():
        plain = clip.encode_image(pixels)
        whole, outputs = task_prompts.encode(tower, pixels)
        task_prompts.of(clip).tokens = task_prompts.of(clip).tokens[:2]
        fewer = task_prompts.encode(tower, pixels)[1]
        alone = task_prompts.encode(tower, pixels[:1])[1]
    assert torch.allclose(whole, plain, atol=1e-6)
    if model != "custom blocks":
        assert torch.equal(whole, plain)
    assert outputs.shape == (len(pixels), 3, 32)
    assert torch.allclose(outputs[:, :2], fewer, atol=1e-6)
    assert torch.allclose(fewer[:1], alone, atol=1e-6)
    assert (outputs[:, 1] - outputs[:, 2]).abs().max() > 1e-3
    task_prompts.remove(clip)
    assert models.same(models.embeddings(clip), before)
    assert models.state(clip).keys() == state.keys()


def test_two_streams_and_one_masked_sequence_agree_in_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = models.build("vit").requires_grad_(False)
    tower = with_prompts(clip, 3, count=2)
    pixels, _ = models.inputs(clip)
    token = task_prompts.of(clip).tokens[2].requires_grad_(True)
    found = []
    for plain in (True, False):
        monkeypatch.setattr(task_prompts, "_plain", lambda block, plain=plain: plain)
        _, outputs = task_prompts.encode(tower, pixels)
        found.append((outputs, torch.autograd.grad(outputs.square().sum(), token)[0]))
    (one, one_gradient), (two, two_gradient) = found
    assert torch.allclose(one, two, atol=1e-6)
    assert torch.allclose(one_gradient, two_gradient, rtol=1e-4, atol=1e-6)
    assert one_gradient.abs().max() > 0


# -- text LoRA ------------------------------------------------------------------------------------------------


def test_lora_of_keys_and_values_with_learned_factors() -> None:
    g = golden("kv_lora")
    settings = LoraSettings(targets=("k", "v"), rank=5, learned_scale=True)
    update = lora.LowRank(g["qkv_w"], ("q", "k", "v"), ("k", "v"), settings, torch.Generator())
    out = functional.linear(g["x"], update(g["qkv_w"]), g["qkv_b"])
    assert torch.equal(out, functional.linear(g["x"], g["qkv_w"], g["qkv_b"]))
    assert torch.allclose(out, g["out_at_init"], atol=1e-6)
    with torch.no_grad():
        for target in ("k", "v"):
            update.down[target].copy_(g[f"A_{target}"])
            update.up[target].copy_(g[f"B_{target}"])
            update.scale[target].copy_(g[f"scale_{target}"])
    out = functional.linear(g["x"], update(g["qkv_w"]), g["qkv_b"])
    assert torch.allclose(out, g["out"], atol=1e-5)
    out.square().sum().backward()
    assert all(float(update.scale[target].grad.abs()) > 0 for target in ("k", "v"))


@pytest.mark.parametrize("model", ["vit", "custom text"])
def test_lora_sleeps_and_leaves(model: str) -> None:
    clip = models.build(model)
    before = models.embeddings(clip)
    new = insert(clip, "lora", {"tower": "text", "targets": ["k", "v"], "rank": 3, "learned_scale": True})
    tower = tower_of(clip, "text")
    assert lora.size(tower, new.settings) == sum(clip.get_parameter(n).numel() for n in new.parameters)  # type: ignore[arg-type]
    models.shake(clip, new.parameters)
    assert not torch.equal(models.embeddings(clip)[1], before[1])
    with lora.asleep(clip):
        assert models.same(models.embeddings(clip), before)
    assert not torch.equal(models.embeddings(clip)[1], before[1])
    lora.remove(clip)
    assert models.same(models.embeddings(clip), before)


# -- vocabulary and losses ------------------------------------------------------------------------------------


def entries(*names: str, tasks: tuple[int, ...] = (0,)) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(name, name, ("a {}", "the {}"), tasks) for name in names)


def test_the_vocabulary_moves_as_published() -> None:
    g = golden("vocab_momentum")
    vocabulary = Vocabulary(10)
    vocabulary.begin(entries(*"abcd"), 0, g["init_vocab"])
    for step, text in enumerate(g["text_features"]):
        moved = vocabulary.combined(text)
        assert torch.allclose(moved, g["text_embedding"][step], atol=1e-6)
        assert vocabulary.start is not None
        assert torch.allclose(losses.distance(moved, vocabulary.start), g["reg_loss"][step], atol=1e-6)
        vocabulary.update(moved, float(g["momentum"]))
        assert torch.allclose(vocabulary.rows, g["vocab_after_step"][step], atol=1e-6)
        assert torch.allclose(vocabulary.rows.norm(dim=1), torch.ones(4), atol=1e-6)


def test_the_regulariser_has_no_gradient_of_rounding() -> None:
    start = functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = start.clone().requires_grad_(True)
    losses.distance(functional.normalize(start + text, dim=1), start).backward()
    assert text.grad is not None
    assert float(text.grad.abs().max()) < 0.05


def test_merged_features() -> None:
    g = golden("feature_merge")
    tokens = g["encoder_tokens"]
    assert torch.allclose(merged(tokens[:, :-1], tokens[:, -1]), g["merged"], atol=1e-7)


def stage_case() -> dict[str, torch.Tensor]:
    """The golden case with the columns' owners: current class 1 belongs to the earlier task 1 too."""
    g = golden("stage_losses")
    owned = torch.zeros(9, 3, dtype=torch.bool)
    owned[:4, 2] = owned[1, 1] = True
    owned[torch.arange(4, 9), g["prev_vocab_task"]] = True
    bank = torch.cat([g["text_embedding_current"], g["prev_vocab"]])
    return g | {"owned": owned, "bank": bank, "groups": owned[4:, :2].T}


def test_both_stages_are_the_published_ones() -> None:
    g = stage_case()
    tokens, current = g["visual_tokens"], g["text_embedding_current"]
    found = losses.local(tokens[:, 2], tokens[:, 3], current, g["labels"], SCALE)
    assert torch.allclose(found, g["stage1_loss"], atol=1e-5)
    visual = SCALE * losses.token_scores(tokens, g["bank"], g["owned"])
    whole = SCALE * tokens[:, -1] @ g["bank"].T
    assert torch.allclose(visual, g["vis_logits"], atol=1e-4)
    assert torch.allclose(whole, g["cls_logits"], atol=1e-4)
    every = torch.ones(1, 4, dtype=torch.bool)
    assert torch.allclose(losses.energies(visual[:, :4], every, SCALE)[:, 0], g["cur_energy"], atol=1e-6)
    assert torch.allclose(losses.energies(visual[:, 4:], g["groups"], SCALE).T, g["prev_energy"], atol=1e-6)
    kept, limits = losses.admitted(visual, 4, g["groups"], SCALE, 0.7)
    assert torch.allclose(limits, g["gamma"], atol=1e-6)
    assert torch.equal(kept, g["mask"] == 0)
    wrong = visual.gather(1, g["labels"][:, None])[:, 0] < visual.max(dim=1).values
    assert torch.equal(wrong, g["misclassified"])
    found = losses.with_negatives(visual, whole, 4, g["labels"], kept)
    assert torch.allclose(found, g["stage2_loss"], atol=1e-5)


def test_stage_two_equals_a_loop_over_samples() -> None:
    g = stage_case()
    # Confusable logits, so that the admitted negatives decide the loss.
    visual, whole = g["vis_logits"] / 30, g["cls_logits"] / 30
    kept, _ = losses.admitted(visual, 4, g["groups"], SCALE, 0.7)
    total = 0.0
    for i, label in enumerate(g["labels"].tolist()):
        wrong = bool(visual[i, label] < visual[i].max())
        columns = [c for c in range(9) if c < 4 or (wrong and kept[i, c])]
        for logits in (visual[i], whole[i]):
            total += float(torch.logsumexp(logits[columns], 0) - logits[label]) / 2
    found = losses.with_negatives(visual, whole, 4, g["labels"], kept)
    assert float(found) == pytest.approx(total / 12, rel=1e-5)
    none = torch.cat([torch.ones(12, 4), torch.zeros(12, 5)], dim=1).bool()
    assert float(losses.with_negatives(visual, whole, 4, g["labels"], none)) < float(found)


def test_a_task_all_of_whose_classes_recur_is_skipped() -> None:
    visual = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([[True, True], [False, False]])
    kept, limits = losses.admitted(visual, 3, groups, SCALE, 0.7)
    alone, limit = losses.admitted(visual, 3, groups[:1], SCALE, 0.7)
    assert torch.equal(kept, alone)
    assert limits[0] == limit[0]
    assert limits[1] == torch.inf
    empty, _ = losses.admitted(visual[:, :3], 3, torch.zeros(2, 0, dtype=torch.bool), SCALE, 0.7)
    assert empty.shape == (6, 3)
    assert bool(empty.all())


def test_scaled_cosines_of_one_do_not_overflow() -> None:
    tokens = functional.normalize(torch.ones(2, 3, 4), dim=2)
    bank = tokens[0, :2]
    visual = SCALE * losses.token_scores(tokens, bank, torch.eye(2, dtype=torch.bool))
    kept, limits = losses.admitted(visual, 1, torch.ones(1, 1, dtype=torch.bool), SCALE, 0.7)
    found = losses.with_negatives(visual, visual, 1, torch.zeros(2, dtype=torch.int64), kept)
    assert bool(torch.isfinite(torch.cat([visual.flatten(), limits, found[None]])).all())


# -- the method -----------------------------------------------------------------------------------------------


def task(index: int, *names: str) -> Task:
    table = Table(
        pa.table({"id": [f"{index}-{n}" for n in names], "image": [b""] * len(names)}), name=str(index)
    )
    return Task(index, f"task {index}", table, classes=entries(*names, tasks=(index,)))


class Walk:
    """A method that learns tasks from noise, step by step, without engine or pictures."""

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        self.method = CoLeClip(backbone, CoLeClipSettings(**settings))
        self.tasks: list[Task] = []
        self.losses: list[dict[str, float]] = []

    def learn(self, *names: str, steps: int = 4, batch: int = 6, until: int | None = None) -> Task:
        method, now = self.method, task(len(self.tasks), *names)
        method.begin_task(now, Past(tuple(self.tasks)))
        (phase,) = method.phases(now, Past(tuple(self.tasks)))
        trained = [method.get_parameter(n) for group in phase.param_groups for n in group.names]
        optimiser = torch.optim.Adam(trained, lr=1e-2)
        for step in range(steps if until is None else until):
            optimiser.zero_grad()
            found = method(self.batch(now, step, batch), Progress(now.index, "train", 0, step, steps, 0))
            torch.stack(list(found.values())).sum().backward()
            assert all(p.grad is not None for p in trained)
            optimiser.step()
            method.after_step(Progress(now.index, "train", 0, step, steps, 0))
            self.losses.append({name: float(value.detach()) for name, value in found.items()})
        if until is None:
            method.end_task(now, Past(tuple(self.tasks)), lambda: {})
            self.tasks.append(now)
        return now

    def batch(self, now: Task, step: int, size: int) -> Batch:
        draw = torch.Generator().manual_seed(100 * now.index + step)
        classes = now.classes or ()
        return {
            "main": {
                "image": torch.randn(size, 3, 16, 16, generator=draw),
                "label": torch.randint(len(classes), (size,), generator=draw),
                "class_tokens": self.method.backbone.tokenise([c.prompts()[0] for c in classes]),
            }
        }


@pytest.fixture
def walk(micro_folder: Path) -> Walk:
    return Walk(load_backbone(str(micro_folder / "model")))


PICTURES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(9))


def scores(method: Any, space: LabelSpace) -> torch.Tensor:
    with measuring(method.eval()):
        return method.class_scores(method.encode_images(PICTURES), space, method.class_bank(space))


def zero_shot_scores(method: Any, space: LabelSpace) -> torch.Tensor:
    with measuring(method.eval()):
        return method.backbone.encode_image(PICTURES) @ method.class_bank(space)["zero_shot"].T


def test_before_the_first_task_it_is_zero_shot_and_unseen_classes_stay_so(walk: Walk) -> None:
    method, unseen = walk.method, LabelSpace(entries("cat", "dog", "owl", tasks=(5,)))
    frozen = zero_shot_scores(method, unseen)
    assert torch.equal(scores(method, unseen), frozen)
    walk.learn("cow", "hen")
    walk.learn("pig", "cow")
    assert torch.equal(scores(method, unseen), frozen)
    both = LabelSpace((*unseen.entries, *entries("cow")))
    assert torch.allclose(scores(method, both)[:, :3], frozen, atol=1e-7)


def test_only_prompt_lora_and_own_rows_change(walk: Walk) -> None:
    method = walk.method
    frozen = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    walk.learn("cow", "hen")
    prompt, rows = method.prompts.tokens[0].detach().clone(), method.vocabulary.rows.clone()
    assert grown(method.backbone.clip) == {"task-prompts": 1}
    walk.learn("pig", "hen")
    after = method.backbone.state_dict()
    assert set(after) - set(frozen) == {f"clip.visual.task_prompts.tokens.{i}" for i in range(2)}
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    assert torch.equal(method.prompts.tokens[0], prompt)
    assert torch.equal(method.vocabulary.rows[0], rows[0])
    assert not torch.equal(method.vocabulary.rows[1], rows[1])
    assert method.vocabulary.owners == [[0], [0, 1], [1]]
    assert torch.allclose(method.vocabulary.rows.norm(dim=1), torch.ones(3), atol=1e-6)


def test_the_first_step_has_the_regulariser_of_frozen_texts(walk: Walk) -> None:
    walk.learn("cow", "hen")
    backbone = walk.method.backbone
    with torch.no_grad():
        first = backbone.encode_text(backbone.tokenise(["a cow", "a hen"]))
        both = backbone.encode_text(backbone.tokenise(["a cow", "a hen", "the cow", "the hen"]))
    start = functional.normalize(both.unflatten(0, (2, 2)).mean(dim=0), dim=1)
    wanted = (functional.normalize((start + first) / 2, dim=1) - start).norm(dim=1).mean()
    assert walk.losses[0]["vocabulary"] == pytest.approx(float(wanted), abs=2e-6)


def test_scores_follow_the_rule_of_tokens_class_by_class(walk: Walk) -> None:
    walk.learn("cow", "hen")
    walk.learn("pig", "hen")
    with measuring(walk.method):
        check_scores(walk.method, LabelSpace(entries("owl", "hen", "pig", "cow")))


def check_scores(method: Any, space: LabelSpace) -> None:
    images, rows = method.eval().encode_images(PICTURES), method.vocabulary.rows
    assert images["tokens"].shape == (7, 3, 32)
    assert torch.equal(images["tokens"][:, -1], images["embedding"])
    assert torch.equal(images["embedding"], method.backbone.encode_image(PICTURES))
    task0, task1, whole = images["tokens"].unbind(dim=1)
    wanted = [
        whole @ method.class_bank(space)["zero_shot"][0],
        torch.maximum(task0 @ rows[1], task1 @ rows[1]),
        task1 @ rows[2],
        task0 @ rows[0],
    ]
    assert torch.allclose(scores(method, space), torch.stack(wanted, dim=1), atol=1e-6)
    one = method.encode_images(PICTURES[2:3])
    assert torch.allclose(one["tokens"], images["tokens"][2:3], atol=1e-6)


def test_an_old_bank_gives_the_scores_of_the_vocabulary_as_it_is_now(walk: Walk) -> None:
    space = LabelSpace(entries("cow", "owl"))
    old = walk.method.class_bank(space)
    walk.learn("cow", "hen")
    images = walk.method.eval().encode_images(PICTURES)
    now = walk.method.class_scores(images, space, walk.method.class_bank(space))
    assert torch.equal(walk.method.class_scores(images, space, old), now)


def test_classes_are_known_by_key_in_the_stream_and_by_name_outside(walk: Walk) -> None:
    walk.learn("cow", "hen")
    of_another_source = ClassEntry("b/cow", "cow", ("a {}",), (1,))
    number_of_another_set = ClassEntry("cow", "apple", ("a {}",))
    of_a_user = ClassEntry("17", "hen", ("a {}",))
    assert walk.method.vocabulary.find([of_another_source, number_of_another_set, of_a_user]) == [
        None,
        None,
        1,
    ]


def test_twelve_tasks_single_classes_and_repeats(walk: Walk) -> None:
    names = [
        ("cow",),
        ("cow", "hen"),
        ("cow", "hen"),
        *((f"class {i}",) for i in range(8)),
        ("class 3", "hen", "cow"),
    ]
    for own in names:
        walk.learn(*own, steps=2, batch=1)
    method = walk.method
    assert len(method.prompts) == 12
    assert len(method.vocabulary) == 10
    assert method.vocabulary.owners[0] == [0, 1, 2, 11]
    assert all(np.isfinite(value) for found in walk.losses for value in found.values())
    assert bool(torch.isfinite(scores(method, LabelSpace(entries("cow", "class 3", "owl")))).all())


def test_stage_two_begins_after_half_of_the_steps(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[int] = []
    plain = losses.with_negatives

    def watched(*given: Any) -> torch.Tensor:
        late.append(len(walk.losses))
        return plain(*given)

    monkeypatch.setattr(losses, "with_negatives", watched)
    walk.learn("cow", "hen", steps=5)
    assert late == []
    walk.learn("pig", steps=5)
    assert late == [5 + 3, 5 + 4]


def test_the_text_tower_is_frozen_for_whoever_asks_inside_a_task(walk: Walk) -> None:
    method, tokens = walk.method, walk.method.backbone.tokenise(["a cow", "an owl"])
    with measuring(method):
        before = method.encode_texts(tokens)["embedding"]
    walk.learn("cow", "hen", until=3)
    with measuring(method):
        assert torch.equal(method.encode_texts(tokens)["embedding"], before)
        assert not torch.equal(method.backbone.encode_text(tokens), before)


@pytest.mark.parametrize("until", [None, 3])
def test_a_rebuilt_method_answers_the_same(walk: Walk, micro_folder: Path, until: int | None) -> None:
    walk.learn("cow", "hen")
    now = walk.learn("pig", "hen", until=until)
    again = Walk(load_backbone(str(micro_folder / "model"))).method
    again.grow(walk.method.structure())
    assert again.state_dict().keys() == walk.method.state_dict().keys()
    again.load_state_dict(walk.method.state_dict())
    again.load_extra(walk.method.extra_tensors(), walk.method.extra_state())
    space = LabelSpace(entries("cow", "hen", "pig", "owl"))
    assert torch.equal(scores(again, space), scores(walk.method, space))
    assert again.notes == walk.method.notes
    if until is not None:
        (phase,) = again.phases(now, Past())
        assert phase.param_groups == walk.method.phases(now, Past())[0].param_groups
        progress = Progress(1, "train", 0, 3, 4, 0)
        one, two = (m(walk.batch(now, 3, 6), progress) for m in (again, walk.method))
        assert all(torch.equal(one[name], two[name]) for name in two)


def test_without_momentum_rows_are_replaced_once(micro_folder: Path) -> None:
    walk = Walk(load_backbone(str(micro_folder / "model")), momentum=None)
    now = walk.learn("cow", "hen", until=3)
    start = walk.method.vocabulary.rows.clone()
    with torch.no_grad():
        text = walk.method._adapted(now.classes or ())
    walk.method.end_task(now, Past(), lambda: {})
    assert torch.allclose(walk.method.vocabulary.rows, functional.normalize(start + text, dim=1), atol=1e-6)
    assert all("vocabulary" not in found for found in walk.losses)


def test_templates_are_options_and_the_result_says_which(micro_folder: Path) -> None:
    found = {}
    for training, vocabulary in (("first", "all"), ("all", "all"), ("first", "first")):
        chosen = {"training": training, "vocabulary": vocabulary}
        walk = Walk(load_backbone(str(micro_folder / "model")), templates=chosen)
        walk.learn("cow", "hen", steps=2)
        assert walk.method.notes["coleclip"]["templates"] == chosen
        found[training, vocabulary] = walk.losses[0]["vocabulary"]
    # Text and start from the same templates are equal before anything was learned.
    assert found["all", "all"] < 1e-5
    assert found["first", "first"] < 1e-5
    assert found["first", "all"] > 1e-4


def test_published_counts() -> None:
    with torch.device("meta"):
        clip = CLIP(**open_clip.get_model_config("ViT-B-16"))
    settings = CoLeClipSettings()
    assert lora.size(tower_of(clip, "text"), settings.modules[0][1]) == 122_904  # type: ignore[arg-type]
    assert tower_of(clip, "image").width == 768


def test_the_cost_says_what_stays(walk: Walk) -> None:
    before = walk.method.describe()
    walk.learn("cow", "hen")
    after = walk.method.describe()
    assert before.trainable_parameters == after.trainable_parameters == 2 * 2 * (5 * 64 + 1) + 32
    assert after.stored_parameters - before.stored_parameters == 32 + 2 * 32
    assert after.growth_per_task.startswith("32 prompt values and 32 per new class; 1,284 LoRA values")
    assert after.extra_per_image == "task prompts: 1 more tokens per image"


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable": ["text"]},
        {"trainable": [{"lora": {"tower": "both"}}]},
        {"replay": {"kind": "all"}},
        {"merge": {"kind": "wise-ft"}},
        {"penalties": {"lwf": {}}},
        {"label_smoothing": 0.1},
    ],
)
def test_slots_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.*CoLeCLIP"):
        CoLeClipSettings(**settings)


def test_other_towers_and_captions_are_refused(micro_config: Callable[..., Any], micro_folder: Path) -> None:
    from everclip.run import execute

    with pytest.raises(ConfigError, match="needs classes"):
        execute(micro_config("time", "method=coleclip"))
    backbone = load_backbone(str(micro_folder / "model"))
    backbone.clip = models.build("resnet")
    config = micro_config("classes", "method=coleclip").method
    with pytest.raises(ConfigError, match="ResNet"):
        build_method(config, backbone)
