"""LwF-VR: random sentences of the right form, a teacher's answers over them, and tokenizers that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from everclip.errors import ConfigError
from everclip.learner.fit import learner_for
from everclip.methods.penalties.lwf_vr import LwfVr, LwfVrSettings
from everclip.models.backbone import load_backbone
from everclip.scenarios.load import load_scenario


class Holder:
    """What a penalty looks at of a backbone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.name = tokenizer, "a model"


def penalty(tokenizer: Any = None, **settings: Any) -> LwfVr:
    found = LwfVr("lwf-vr", LwfVrSettings(**settings))
    holder: Any = Holder(tokenizer or SimpleTokenizer())
    found.prepare(holder, ())
    return found


# -- sentences ------------------------------------------------------------------------------------------------


def test_a_sentence_is_a_start_ten_words_and_an_end() -> None:
    found = penalty().sentences(0, 0)
    assert found.shape == (1000, 77)
    assert found.dtype == torch.int64
    assert (found[:, 0] == 49406).all()
    assert (found[:, 11] == 49407).all()
    assert ((found == 49407).sum(dim=1) == 1).all()
    assert (found.argmax(dim=1) == 11).all(), "pooling takes the largest id"
    assert (found[:, 12:] == 0).all()
    words = found[:, 1:11]
    assert int(words.min()) >= 0
    assert int(words.max()) < 49406
    # Uniform: 10,000 draws in ten equal parts; chi-square with 9 degrees of freedom, 99.9 % point.
    counts = torch.histc(words.float(), bins=10, min=0, max=49406)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 27.9


class Small:
    """A tokenizer of twenty ids, of which 18 starts and 19 ends a text."""

    sot_token_id, eot_token_id, vocab_size, context_length = 18, 19, 20, 12


def test_published_sentences_may_hold_a_start_or_an_end() -> None:
    ours, theirs = (penalty(Small(), published=p).sentences(0, 0)[:, 1:11] for p in (False, True))
    assert set(ours.flatten().tolist()) == set(range(18))
    assert set(theirs.flatten().tolist()) == set(range(20))


def test_sentences_depend_on_seed_and_task_alone() -> None:
    one, two = penalty(), penalty()
    assert torch.equal(one.sentences(3, 1), two.sentences(3, 1))
    assert not torch.equal(one.sentences(3, 1), one.sentences(3, 2))
    assert not torch.equal(one.sentences(3, 1), one.sentences(4, 1))


def test_a_tokenizer_that_does_not_say_its_ids_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not name its start, end and word ids; use the penalty lwf"):
        penalty(object())


def test_sentences_longer_than_the_text_tower_reads_are_refused() -> None:
    penalty(Small(), length=10)
    with pytest.raises(ConfigError, match=r"length: 11 tokens with start and end exceed the 12"):
        penalty(Small(), length=11)


# -- the loss -------------------------------------------------------------------------------------------------


@pytest.fixture
def begin(micro_config: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function (kind, *overrides) -> (learner, tasks)."""

    def make(kind: str, *overrides: str) -> Any:
        config = micro_config(kind, "method=lwf-vr", "method.penalties.lwf-vr.sentences=6", *overrides)
        scenario = load_scenario(config.scenario)
        return learner_for(config, scenario), list(scenario.tasks)

    return make


def losses(learner: Any, task: Any, move: float = 0.05) -> dict[str, torch.Tensor]:
    """Begin a task, move the weights, and return the losses of a step."""
    from everclip.contracts import Progress

    method = learner.method
    method.begin_task(task, learner.past())
    (phase,) = learner.plan(task)
    batch = {name: learner.engine.maker.batch(s, name, 0) for name, s in phase.streams.items()}
    learner.batch = batch
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(move * torch.randn(parameter.shape, generator=draw))
    return method.train()(batch, Progress(task.index, "train", 0, 0, 10, 5))


@pytest.mark.parametrize("kind", ["time", "classes"])
@pytest.mark.parametrize("images", ["batch", "own"])
def test_the_loss_is_the_divergence_of_answers_about_random_sentences(
    begin: Callable[..., Any], kind: str, images: str
) -> None:
    learner, tasks = begin(kind, f"method.penalties.lwf-vr.images={images}")
    start = load_backbone(learner.method.backbone.name)
    found = losses(learner, tasks[0])["lwf-vr"]
    pixels = learner.batch["main" if images == "batch" else "lwf-vr"]["image"]
    tokens = learner.method.penalties[0].sentences(5, 0)
    assert tokens.shape[0] == 6
    with torch.no_grad():
        text = start.encode_text(tokens)
        scale = start.logit_scale.item()
        teacher, student = (scale * m.encode_image(pixels) @ text.T for m in (start, learner.method.backbone))
    expected = 0.0
    for wanted, other in ((teacher, student), (teacher.T, student.T)):
        total = 0.0
        for t, s in zip(wanted.double().tolist(), other.double().tolist(), strict=True):
            p, q = ([math.exp(v / 2) / sum(math.exp(w / 2) for w in row) for v in row] for row in (t, s))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected += 4 * total / len(wanted)
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_nothing_pulls_where_student_and_teacher_agree(begin: Callable[..., Any]) -> None:
    learner, tasks = begin("classes")
    loss = losses(learner, tasks[0], move=0.0)["lwf-vr"]
    loss.backward()
    assert abs(loss.item()) < 1e-7
    assert max(p.grad.abs().max().item() for p in learner.method.parameters() if p.grad is not None) < 1e-5


def test_sentences_are_encoded_once_per_task(
    begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, tasks = begin("classes")
    shapes: list[int] = []
    inner = learner.method.teachers.text

    def counted(kind: str, tokens: torch.Tensor, student: Any) -> torch.Tensor:
        shapes.append(len(tokens))
        return inner(kind, tokens, student)

    monkeypatch.setattr(learner.method.teachers, "text", counted)
    for task in tasks[:2]:
        learner.learn(task)
    assert shapes == [6, 6]


def test_published_settings_are_a_preset(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "method=lwf-vr-mtil")
    given = config.method.settings["penalties"]["lwf-vr"]
    assert (given["published"], given["images"], given["form"]) == (True, "own", "cross-entropy")
    learner, _ = learner_for(config, load_scenario(config.scenario)), None
    assert learner.method.penalties[0].settings.sentences == 1000
    assert learner.method.penalties[0].teacher == "task-start"


@pytest.mark.parametrize("images", ["batch", "own"])
@pytest.mark.parametrize("name", ["lwf", "lwf-vr"])
def test_the_student_encodes_no_text_that_the_teacher_answers_for(
    name: str, images: str, begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {}
    for text in ("teacher", "student"):
        chosen = f"method.penalties={{{name}: {{images: {images}, text: {text}}}}}"
        learner, tasks = begin("time", "method=finetune", chosen)
        student, asked = learner.method.backbone, []
        inner = student.encode_text

        def encode(tokens: torch.Tensor, inner: Any = inner, asked: Any = asked) -> torch.Tensor:
            asked.append(len(tokens))
            found: torch.Tensor = inner(tokens)
            return found

        monkeypatch.setattr(student, "encode_text", encode)
        losses(learner, tasks[0])
        counts[text] = len(asked)
    # The captions of a batch are encoded for the loss anyway.
    once_more = name == "lwf-vr" or images == "own"
    assert counts["student"] - counts["teacher"] == once_more


def test_random_sentences_are_drawn_once_per_task(
    begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, tasks = begin("classes", "method.penalties.lwf-vr={text: student, sentences: 5, length: 3}")
    (penalty,) = learner.method.penalties
    assert isinstance(penalty, LwfVr)
    draw, drawn = penalty.sentences, []
    monkeypatch.setattr(penalty, "sentences", lambda seed, task: drawn.append(task) or draw(seed, task))
    for task in tasks[:2]:
        learner.learn(task)
    assert drawn == [0, 1]
