"""What a close reading of the methods found: guarded rows, features that move, room, and settings without effect."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coleclip_fixtures as noise
import module_models as models
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from rail_fixtures import head_of, unit

from everclip import memory
from everclip.config import GuardConfig, MethodConfig, TrainingConfig
from everclip.contracts import EvalSet
from everclip.data.reading.formats.layouts import arrays
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.coleclip.method import CoLeClip
from everclip.methods.penalties.lwf_vr import LwfVr
from everclip.methods.rail import room
from everclip.methods.rail.expand import Expansion
from everclip.methods.rail.primal import Sums
from everclip.methods.rail.settings import RailSettings
from everclip.methods.selectors.gaussian import Density
from everclip.methods.settings import MergeSettings
from everclip.models.backbone import load_backbone
from everclip.models.modules import insert
from everclip.models.modules.base import first_projection
from everclip.models.modules.short_texts import needed_tokens
from micro import of_classes

EXPERTS = {"count": 4, "active": 2, "width": 4, "dropout": 0.0}
Make = Callable[..., Learner]


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


@pytest.fixture
def make(micro_folder: Path) -> Make:
    """Return a function (name, training settings, **method settings) -> learner on the two-layer CLIP."""

    def build(name: str, training: dict[str, Any] | None = None, **settings: Any) -> Learner:
        given = {"steps": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, "device": "cpu", "threads": 1}
        method = build_method(
            MethodConfig(name=name, settings=settings), load_backbone(str(micro_folder / "model"))
        )
        return Learner(method, TrainingConfig(**{**given, **(training or {})}))

    return build


# -- CoLeCLIP under the guard ---------------------------------------------------------------------------------


def test_a_whole_step_back_brings_prompt_and_vocabulary_back(micro_folder: Path) -> None:
    walk = noise.Walk(load_backbone(str(micro_folder / "model")))
    walk.learn("a", "b")
    walk.learn("b", "c", steps=8, until=0)
    method = walk.method
    before = method.weights()
    assert set(before) == {"vocabulary.rows", method._trainable[0]}
    with torch.no_grad():
        method.get_parameter(method._trainable[0]).add_(1.0)
    method.vocabulary.update(torch.flip(method.vocabulary.rows[method.vocabulary.place], (0,)), 0.5)
    now = method.weights()
    assert all(not torch.equal(now[name], tensor) for name, tensor in before.items())
    method.blend(before, now, 0.5)
    assert torch.allclose(method.vocabulary.rows.norm(dim=1), torch.ones(3))
    for share, end in ((1.0, now), (0.0, before)):
        method.blend(before, now, share)
        assert all(torch.equal(method.weights()[name], tensor) for name, tensor in end.items())


@pytest.mark.parametrize("action", ["stop", "step-back"])
def test_the_guard_takes_the_vocabulary_back(make: Make, data: Table, action: Any) -> None:
    learner = make("coleclip", {"steps": 4})
    task = of_classes(data, 0, 0, 1)
    watched = EvalSet("watched", "classification", task.train, None, "retention", task.classes)
    guard = learner.watch([watched], GuardConfig(max_drop=1.0, every=100, action=action))
    guard._limit = -101.0  # whatever is seen is too little: it acts at every look, and keeps nothing
    method = learner.method
    assert isinstance(method, CoLeClip)
    start = method._zero_shot(task.classes or (), "all")
    learner.learn(task)
    assert all(act["share"] == 0 for act in learner.method.notes["guard"]["acted"])
    assert torch.equal(method.vocabulary.rows, start)


# -- selectors of MoE-Adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "selector"),
    [
        ([{"prompt": {"tower": "image", "count": 4}}], {"kind": "gaussian"}),
        ([{"prompt": {"tower": "both", "count": 4}}], {"kind": "gaussian", "pool": "tokens"}),
        (["image"], {"kind": "autoencoder"}),
        (["text", "image-embeddings"], {"kind": "gaussian"}),
        (["image-layernorm"], {"kind": "gaussian"}),
        (["image-bias"], {"kind": "gaussian"}),
        (["image-projection"], {"kind": "gaussian", "features": "embedding"}),
        ([{"lora": {"tower": "image"}}], {"kind": "energy"}),
    ],
)
def test_nothing_trains_that_moves_what_the_selector_looks_at(
    make: Make, trainable: Any, selector: Any
) -> None:
    with pytest.raises(ConfigError, match=r"trainable: .* features .*method\.selector"):
        make("moe-adapters", experts=EXPERTS, trainable=trainable, selector=selector)
    make("moe-adapters", experts=EXPERTS, trainable=trainable, selector="none")


@pytest.mark.parametrize("part", ["image-blocks:0", {"lora": {"tower": "image", "blocks": "first1"}}])
def test_blocks_below_the_first_adapted_one_do_not_train_under_early_features(make: Make, part: Any) -> None:
    selector = {"kind": "gaussian"}
    with pytest.raises(ConfigError, match=r"`image-blocks:0` moves the `early` features"):
        make("moe-adapters", experts={**EXPERTS, "blocks": "1"}, trainable=[part], selector=selector)
    make("moe-adapters", experts=EXPERTS, trainable=[part], selector=selector)
    make("moe-adapters", experts={**EXPERTS, "blocks": "1"}, trainable=["image-blocks:1"], selector=selector)


@pytest.mark.parametrize("trainable", [["text", "image-projection"], [{"lora": {"tower": "image"}}]])
def test_what_trains_behind_the_features_leaves_them_bit_for_bit(
    make: Make, data: Table, trainable: Any
) -> None:
    learner = make("moe-adapters", experts=EXPERTS, trainable=trainable, selector={"kind": "gaussian"})
    method = learner.method
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    selector: Any = method.selector
    before = selector.features(method.backbone, pixels)
    learner.learn(of_classes(data, 0, 0, 1))
    assert torch.equal(selector.features(method.backbone, pixels), before)


# -- rail -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"passes": 2},
        {"passes": 2, "form": "dual"},
    ],
)
def test_rail_refuses_what_would_do_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="passes: "):
        RailSettings(**settings)
    RailSettings(passes=2, augmented=True)


def test_a_second_pass_over_the_same_features_is_not_taken(make: Make, data: Table) -> None:
    task, found = of_classes(data, 0, 0, 1), []
    for passes in (1, 2):
        learner = make("rail", {"augment": "none"}, dimension=20, augmented=True, passes=passes)
        learner.learn(task)
        found.append(head_of(learner).weights)
    assert torch.equal(*found)


SOLVE = """
import sys, torch
from everclip.methods.rail.dual import Dual
torch.set_num_threads(1)

def peak():
    return next(int(x.split()[1]) << 10 for x in open("/proc/self/status") if x.startswith("VmHWM"))

def extra(n):
    head = Dual(8, n, 0.1, 0.1, n)
    head.samples = torch.nn.functional.normalize(torch.randn(n, 8), dim=1)
    head.widen(2)
    before = peak()
    head.solve()
    return (peak() - before) / n**2

extra(100)
print(extra(1600))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from Linux")
def test_solving_the_dual_takes_the_bytes_that_its_refusal_says() -> None:
    done = subprocess.run([sys.executable, "-c", SOLVE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 11  # 8 n^2, and what does not grow with the square


def test_solving_leaves_the_sums_as_they_are() -> None:
    head = Sums(Expansion("none", 6, 6, 0.1, 0), 6, 0.1)
    head.widen(3)
    x = unit(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
    head.add(x, torch.arange(20) % 3)
    sums = head.gram.clone()
    head.solve()
    first = head.weights.clone()
    head.solve()
    assert torch.equal(head.gram, sums)
    assert torch.equal(head.weights, first)
    left = (sums + 0.1 * torch.eye(6, dtype=torch.float64)) @ first
    assert torch.allclose(left, head.targets, rtol=0, atol=1e-12)


def test_sums_beyond_what_is_free_are_refused_before_they_are_made(
    make: Make, data: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 900 kB\nMemAvailable: 300 kB\n")
    monkeypatch.setattr(memory, "MEMORY", told)
    monkeypatch.setattr(memory, "SHARE", tmp_path / "none")
    assert memory.available_memory() == 300 * 1024
    task = of_classes(data, 0, 0, 1)
    with pytest.raises(ConfigError, match=r"method\.dimension: 200 needs .* which memory does not have"):
        make("rail", dimension=200).learn(task)
    make("rail", dimension=190).learn(task)
    monkeypatch.setattr(memory, "SHARE", told.with_name("share"))
    memory.SHARE.write_text("200000\n")
    assert memory.available_memory() == 200_000
    memory.SHARE.write_text("max\n")
    assert memory.available_memory() == 300 * 1024
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"method\.dimension: 10,000,000"):
        room.require_room(10_000_000)


def test_an_expansion_follows_the_matrix_that_is_loaded_into_it() -> None:
    one, two = (Expansion("relu", 4, 8, 0.1, seed) for seed in (0, 1))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(one(x), two(x))
    assert one.state_dict().keys() == {"matrix"}
    one.load_state_dict(two.state_dict())
    assert torch.equal(one(x), two(x))
    assert torch.equal(one.to(torch.float64)(x), two(x))


# -- what was silent or raw -----------------------------------------------------------------------------------


def test_a_covariance_that_no_shrinkage_mends_is_told_in_words() -> None:
    density = Density(1, 32, full=True)
    density.add(
        torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(4, dtype=torch.int64)
    )
    with pytest.raises(
        ConfigError, match=r"method\.selector\.shrinkage: 1e-18 .* 32 features from 4 pictures"
    ):
        density.solve(1e-18)


@pytest.mark.parametrize("every", [1.9, 2.5, 10.01])
def test_a_fraction_of_steps_above_one_is_refused(every: float) -> None:
    with pytest.raises(ValidationError, match="neither a whole number of steps nor a share"):
        MergeSettings(every=every)
    for fine in (0.5, 1, 1.0, 3.0, 10):
        assert MergeSettings(every=fine).every == fine


def test_a_file_of_pictures_beyond_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.bin"
    with open(path, "wb") as file:
        file.truncate(arrays.MOST_BYTES + 1)  # sparse: it takes no room on the disk
    monkeypatch.setattr(arrays.np, "fromfile", lambda *given: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"train\.bin: 268,435,457 bytes"):
        arrays._bytes_of(path)


def test_random_sentences_are_drawn_once_per_task(
    make: Make, data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make("lwf-vr", penalties={"lwf-vr": {"text": "student", "sentences": 5, "length": 3}})
    (penalty,) = learner.method._penalties
    assert isinstance(penalty, LwfVr)
    draw, drawn = penalty.sentences, []
    monkeypatch.setattr(penalty, "sentences", lambda seed, task: drawn.append(task) or draw(seed, task))
    for index in range(2):
        learner.learn(of_classes(data, index, 2 * index, 2 * index + 1))
    assert drawn == [0, 1]


# -- one rule, one place --------------------------------------------------------------------------------------


def test_a_tower_that_names_no_end_token_takes_no_prompts() -> None:
    clip = models.build("custom text, eos", True)
    del clip.text.eos_id
    assert needed_tokens(clip, torch.tensor([[1, 5, 513, 0]])) is None
    with pytest.raises(
        ConfigError, match=r"method\.trainable\.prompt: TextTransformer pools the end of a text"
    ):
        insert(clip, "prompt", {"tower": "text", "count": 2})
    other = models.build("custom text", True)
    del other.text.eos_id  # the end is where the highest id is
    insert(other, "prompt", {"tower": "text", "count": 2})


def test_first_projections_are_drawn_as_they_always_were() -> None:
    for rows, columns in ((3, 7), (5, 32)):
        drawn = [torch.Generator().manual_seed(4) for _ in range(2)]
        values = (2 * torch.rand(rows, columns, generator=drawn[0]) - 1) * (1 / math.sqrt(columns))
        assert torch.equal(first_projection(rows, columns, drawn[1]), values)


def test_bytes_of_moe_adapters_are_those_of_its_tensors(make: Make, data: Table) -> None:
    for selector in ({"kind": "gaussian"}, {"kind": "autoencoder", "steps": 5}):
        learner = make("moe-adapters", experts=EXPERTS, freeze=2, selector=selector)
        learner.learn(of_classes(data, 0, 0, 1))
        method = learner.method
        counted = {
            name: tensor
            for name, tensor in method.state_dict().items()
            if name.startswith("selector.") or ".kept_" in name or name in dict(method.named_parameters())
        }
        assert any(tensor.dtype == torch.float64 for tensor in counted.values())
        extra = method.extra_tensors().values()
        wanted = sum(t.numel() * t.element_size() for t in [*counted.values(), *extra])
        assert method.describe().bytes == wanted
