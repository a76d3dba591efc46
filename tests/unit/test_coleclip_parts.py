"""The parts of CoLeCLIP against golden numbers and twins: prompts that nothing reads, LoRA, vocabulary, both stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import module_models as models
import numpy as np
import pytest
import torch
from coleclip_fixtures import entries
from open_clip.transformer import QuickGELU, VisionTransformer
from torch.nn import functional

from everclip.methods.coleclip import losses
from everclip.methods.coleclip.method import merged
from everclip.methods.coleclip.vocabulary import Vocabulary
from everclip.models.modules import lora, task_prompts
from everclip.models.modules.grow import insert
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


def test_the_cost_is_said_once_a_task_has_prompts() -> None:
    clip = models.build("vit")
    task_prompts.insert(tower_of(clip, "image"), 3)
    assert task_prompts.cost(clip) == ""
    for _ in range(2):
        task_prompts.task_prompts_of(clip).add(0, clip.visual.proj)
    assert task_prompts.cost(clip) == "task prompts: 6 more tokens per image"


def with_prompts(clip: Any, tasks: int, count: int = 1) -> Tower:
    tower = tower_of(clip, "image")
    task_prompts.insert(tower, count)
    names = tuple(
        f"visual.task_prompts.{task_prompts.task_prompts_of(clip).add(0, clip.logit_scale)}"
        for _ in range(tasks)
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
        task_prompts.task_prompts_of(clip).tokens = task_prompts.task_prompts_of(clip).tokens[:2]
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
    token = task_prompts.task_prompts_of(clip).tokens[2].requires_grad_(True)
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
    with lora.disabled(clip):
        assert models.same(models.embeddings(clip), before)
    assert not torch.equal(models.embeddings(clip)[1], before[1])
    lora.remove(clip)
    assert models.same(models.embeddings(clip), before)


# -- vocabulary and losses ------------------------------------------------------------------------------------


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


def test_a_threshold_is_never_below_zero() -> None:
    # Every sample is nearer to the earlier task: each lead is negative, and so would be its quantile.
    visual = torch.tensor([[1.0, 5.0], [1.0, 3.0], [1.0, 2.0], [1.0, 1.5]])
    kept, limits = losses.admitted(visual, 1, torch.ones(1, 1, dtype=torch.bool), torch.tensor(1.0), 0.7)
    assert limits.tolist() == [0.0]
    assert kept[:, 1].tolist() == [False] * 4
    ahead, limits = losses.admitted(-visual, 1, torch.ones(1, 1, dtype=torch.bool), torch.tensor(1.0), 0.7)
    assert limits.tolist() == pytest.approx([2.2])  # leads 4, 2, 1, 0.5: 0.7 of the way is 2 + 0.1 * 2
    assert ahead[:, 1].tolist() == [True, False, False, False]


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


def one_task(current: int = 4, batch: int = 9) -> dict[str, torch.Tensor]:
    """Tokens of one task and the class token, and labels of which some are wrong."""
    draw = torch.Generator().manual_seed(4)
    tokens = functional.normalize(torch.randn(batch, 2, 16, generator=draw), dim=2)
    bank = functional.normalize(torch.randn(current, 16, generator=draw), dim=1).requires_grad_(True)
    return {"tokens": tokens, "bank": bank, "labels": torch.randint(current, (batch,), generator=draw)}


def test_stage_two_with_no_earlier_class_is_the_average_of_stage_one() -> None:
    g, scale = one_task(), SCALE / 30  # confusable, so that no term is lost in rounding
    tokens, bank, labels = g["tokens"], g["bank"], g["labels"]
    visual = scale * losses.token_scores(tokens, bank, torch.ones(4, 1, dtype=torch.bool))
    whole = scale * tokens[:, -1] @ bank.T
    kept, _ = losses.admitted(visual, 4, torch.zeros(1, 0, dtype=torch.bool), scale, 0.7)
    two = losses.with_negatives(visual[:, :4], whole[:, :4], 4, labels, kept)
    one = losses.local(tokens[:, 0], tokens[:, 1], bank, labels, scale)
    both = [functional.cross_entropy(logits, labels) for logits in (visual, whole)]
    assert float((both[0] - both[1]).detach().abs()) > 0.01  # or it would not matter which is averaged
    assert torch.allclose(two, (both[0] + both[1]) / 2, atol=1e-6)
    assert torch.allclose(two, one, atol=1e-6)
    gradients = [torch.autograd.grad(found, bank, retain_graph=True)[0] for found in (one, two)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_earlier_classes_that_are_not_admitted_leave_the_average_of_stage_one() -> None:
    g, scale = one_task(), SCALE / 30
    tokens, bank, labels = g["tokens"], g["bank"], g["labels"]
    earlier = functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(5)), dim=1)
    every = torch.cat([bank, earlier])
    logits = [scale * token @ every.T for token in tokens.unbind(dim=1)]
    wrong = logits[0].gather(1, labels[:, None])[:, 0] < logits[0].max(dim=1).values
    assert bool(wrong.any())
    refused = (torch.arange(7) < 4).expand(len(labels), -1)
    one = losses.local(tokens[:, 0], tokens[:, 1], bank, labels, scale)
    assert torch.allclose(losses.with_negatives(*logits, 4, labels, refused), one, atol=1e-6)
    admitted = losses.with_negatives(*logits, 4, labels, torch.ones_like(refused))
    assert float((admitted - one).detach()) > 0.01


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


def test_prompts_start_from_the_seed_and_their_task() -> None:
    starts = []
    for seed in (0, 0, 1):
        clip = models.build("vit")
        task_prompts.insert(tower_of(clip, "image"), 3)
        held = task_prompts.task_prompts_of(clip)
        assert [held.add(seed, clip.visual.proj) for _ in range(2)] == ["tokens.0", "tokens.1"]
        starts.append([tuple(value.flatten()[:3].tolist()) for value in held.tokens])
        assert all(value.shape == (3, 32) for value in held.tokens)
    assert starts[0] == starts[1]
    assert len({*starts[0], *starts[2]}) == 4
