"""CoLeCLIP as a method: zero-shot before the first task, what changes, the rule of tokens, both stages, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import module_models as models
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from coleclip_fixtures import Walk, entries
from coleclip_fixtures import task as noise_task
from open_clip.model import CLIP
from torch.nn import functional

from everclip.config import GuardConfig
from everclip.contracts import ClassEntry, Cost, EvalSet, LabelSpace, Past, Progress
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.evaluation.classification import ensemble_bank
from everclip.features.encoding import measuring
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.coleclip import losses
from everclip.methods.coleclip.method import CoLeClip
from everclip.methods.coleclip.settings import CoLeClipSettings
from everclip.models.backbone import load_backbone
from everclip.models.modules import lora
from everclip.models.modules.grow import grown
from everclip.models.modules.towers import tower_of
from micro import of_classes


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


def test_the_regulariser_looks_back_on_the_start_of_a_row_not_on_where_it_has_moved(walk: Walk) -> None:
    walk.learn("cow", "hen", until=3)
    method = walk.method
    start, rows = method.vocabulary.start, method.vocabulary.rows[method.vocabulary.place]
    assert start is not None
    assert (rows - start).norm(dim=1).min() > 1e-2  # they have moved, so it matters which is looked at
    now = noise_task(0, "cow", "hen")
    batch = walk.batch(now, 3, 6)
    with torch.no_grad():
        found = method(batch, Progress(0, "train", 0, 3, 10, 0))["vocabulary"]
        texts = method.backbone.encode_text(batch["main"]["class_tokens"])
        moved = functional.normalize((rows + texts) / 2, dim=1)
    assert float(found) == pytest.approx(float((moved - start).norm(dim=1).mean()), rel=1e-4)
    assert float(found) != pytest.approx(float((moved - rows).norm(dim=1).mean()), rel=0.05)


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


def test_blending_goes_between_two_states_and_keeps_rows_of_unit_norm(walk: Walk) -> None:
    method = walk.method
    walk.learn("cow", "hen")
    before = {name: value.clone() for name, value in method.weights().items()}
    walk.learn("cow", "hen", until=3)
    after = {name: value.clone() for name, value in method.weights().items()}
    start = {name: torch.zeros_like(value) for name, value in after.items()}
    start["vocabulary.rows"] = before["vocabulary.rows"]
    assert (after["vocabulary.rows"] - start["vocabulary.rows"]).abs().max() > 1e-3
    for share in (0.0, 0.25, 1.0):
        method.blend(start, after, share)
        for name, value in method.weights().items():
            wanted = (1 - share) * start[name] + share * after[name]
            if name == "vocabulary.rows":
                wanted = functional.normalize(wanted, dim=1)
            assert torch.allclose(value, wanted, atol=1e-6), (name, share)


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


def test_the_loss_of_stage_two_is_that_of_both_tokens_sample_by_sample(walk: Walk) -> None:
    walk.learn("cow", "hen")
    walk.learn("pig", "ox", until=3)
    method, batch = walk.method, walk.batch(noise_task(1, "pig", "ox"), 3, 12)
    with torch.no_grad():
        found = float(method(batch, Progress(1, "train", 0, 3, 4, 0))["labels"])
        tokens = method.encode_images(batch["main"]["image"])["tokens"]
        own = method.vocabulary.combined(method.backbone.encode_text(batch["main"]["class_tokens"]))
        scale, earlier = method.backbone.logit_scale, method.vocabulary.rows[:2]
        # The task's own classes through its prompt, the earlier ones through theirs; all through the class token.
        visual = scale * torch.cat([tokens[:, 1] @ own.T, tokens[:, 0] @ earlier.T], dim=1)
        whole = scale * tokens[:, 2] @ torch.cat([own, earlier]).T
        lead = (visual[:, :2].logsumexp(dim=1) - visual[:, 2:].logsumexp(dim=1)) / scale
        admitted = lead > max(0.0, float(torch.quantile(lead, method.settings.quantile)))
        terms = []
        for i, label in enumerate(batch["main"]["label"].tolist()):
            wrong = bool(visual[i, label] < visual[i].max())
            columns = slice(0, 4 if wrong and bool(admitted[i]) else 2)
            terms += [float(z[i, columns].logsumexp(dim=0) - z[i, label]) for z in (visual, whole)]
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-4)


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
        backbone = walk.method.backbone
        prompts = [backbone.tokenise(list(entry.prompts())) for entry in now.classes or ()]
        text = torch.stack([ensemble_bank(backbone.encode_text(tokens)) for tokens in prompts])
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
    assert lora.size(tower_of(clip, "text"), settings.lora) == 122_904
    assert tower_of(clip, "image").width == 768


def test_the_cost_says_what_stays(walk: Walk) -> None:
    before = walk.method.describe()
    inside: list[Cost] = []
    begin = walk.method.begin_task

    def counting(*arguments: Any) -> None:
        begin(*arguments)
        inside.append(walk.method.describe())

    walk.method.begin_task = counting  # type: ignore[method-assign]
    walk.learn("cow", "hen")
    after = walk.method.describe()
    assert inside[0].active_parameters == after.active_parameters  # no prediction uses the LoRA
    assert before.trainable_parameters == after.trainable_parameters == 2 * 2 * (5 * 64 + 1) + 32
    assert after.stored_parameters - before.stored_parameters == 32 + 2 * 32
    assert after.growth_per_task.startswith("32 prompt values and 32 per new class; 1,284 LoRA values")
    assert after.extra_per_image == "task prompts: 1 more tokens per image"


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable": ["text"]},
        {"lora": {"tower": "both"}},
        {"contrast": "sigmoid"},
        {"replay": {"kind": "all"}},
        {"merge": {"kind": "wise-ft"}},
        {"penalties": {"lwf": {}}},
        {"label_smoothing": 0.1},
    ],
)
def test_slots_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CoLeClipSettings(**settings)


def test_a_setting_of_the_lora_leaves_the_others_as_published() -> None:
    lora = CoLeClipSettings(lora={"rank": 2}).lora  # type: ignore[arg-type]
    assert (lora.rank, lora.tower, lora.targets, lora.learned_scale) == (2, "text", ("k", "v"), True)


def test_other_towers_and_captions_are_refused(micro_config: Callable[..., Any], micro_folder: Path) -> None:
    from everclip.run import execute

    with pytest.raises(ConfigError, match=r"coleclip cannot learn from captions .*; it needs class names"):
        execute(micro_config("time", "method=coleclip"))
    backbone = load_backbone(str(micro_folder / "model"))
    backbone.clip = models.build("resnet")
    config = micro_config("classes", "method=coleclip").method
    with pytest.raises(ConfigError, match="ResNet"):
        build_method(config, backbone)


def test_a_whole_step_back_brings_prompt_and_vocabulary_back(walk: Walk) -> None:
    walk.learn("a", "b")
    walk.learn("b", "c", steps=8, until=0)
    method = walk.method
    before = method.weights()
    assert set(before) == {"vocabulary.rows", method.trainable[0]}
    with torch.no_grad():
        method.get_parameter(method.trainable[0]).add_(1.0)
    method.vocabulary.update(torch.flip(method.vocabulary.rows[method.vocabulary.place], (0,)), 0.5)
    now = method.weights()
    assert all(not torch.equal(now[name], tensor) for name, tensor in before.items())
    method.blend(before, now, 0.5)
    assert torch.allclose(method.vocabulary.rows.norm(dim=1), torch.ones(3))
    for share, end in ((1.0, now), (0.0, before)):
        method.blend(before, now, share)
        assert all(torch.equal(method.weights()[name], tensor) for name, tensor in end.items())


@pytest.mark.parametrize("action", ["stop", "step-back"])
def test_the_guard_takes_the_vocabulary_back(micro_folder: Path, action: Any) -> None:
    training = {"steps": 4, "batch_size": 8, "lr": 0.05, "warmup": 0, "device": "cpu", "threads": 1}
    learner = Learner.create(str(micro_folder / "model"), "coleclip", training)
    task = of_classes(Table(pq.read_table(micro_folder / "data.parquet")), 0, 0, 1)
    watched = EvalSet("watched", "classification", task.train, None, "retention", task.classes)
    # Whatever is seen is too little: it acts at every look, and keeps nothing.
    learner.watch([watched], GuardConfig.model_construct(max_drop=-101.0, every=100, action=action))
    method = learner.method
    assert isinstance(method, CoLeClip)
    start = method.class_bank(LabelSpace(task.classes or ()))["zero_shot"]
    learner.learn(task)
    assert all(act["share"] == 0 for act in learner.method.notes["guard"]["acted"])
    assert torch.equal(method.vocabulary.rows, start)
