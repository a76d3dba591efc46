"""Each process computes its rows against the columns of all: together, loss and gradient are those of one process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from everclip.contracts import Progress
from everclip.methods import losses
from everclip.methods.penalties import answers, mod_x
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.mod_x import ModX, ModXSettings

ROWS, WIDTH = 3, 5
SCALE = torch.tensor(10.0)
Loss = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def contrastive(given: dict[str, torch.Tensor]) -> torch.Tensor:
    return losses.contrastive(
        given["image"], given["text"], SCALE, image_key=given["image_key"], text_key=given["text_key"]
    )


def _answers(given: dict[str, torch.Tensor]) -> answers.Answers:
    return answers.Answers(
        given["image"], given["old_image"], given["text"], given["old_text"], SCALE, 2.0, "kl", shared=False
    )


OLD_BANK, BANK = F.normalize(torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1)), dim=2)
"""Embeddings of four class texts, the last of which has no picture."""


def _mod_x(given: dict[str, torch.Tensor], labelled: bool = False, **settings: Any) -> torch.Tensor:
    teachers: Any = SimpleNamespace(
        image=lambda *_: given["old_image"], text=lambda *_: given["old_text"], bank=lambda *_, **__: OLD_BANK
    )
    columns = ("image", "label") if labelled else ("image", "text", "image_key", "text_key")
    main = {name: given[name] for name in columns}
    main["class_tokens" if labelled else "tokens"] = BANK  # only asked whether it is there
    text = BANK if labelled else given["text"]
    model: Any = None
    view = StepView(
        {"main": main}, Progress(0, "train", 0, 0, 1, 0), model, given["image"], text, {}, {}, teachers
    )
    return ModX("mod-x", ModXSettings(temperature=0.5, **settings)).loss(view)


LOSSES: dict[str, Loss] = {
    "contrastive": contrastive,
    "over texts": lambda given: _answers(given).over_texts(),
    "over images": lambda given: _answers(given).over_images(),
    "among images": lambda given: _answers(given).among_images(),
    "mod-x": _mod_x,
    "mod-x, mean": lambda given: _mod_x(given, reduce="mean"),
    "mod-x, classes": lambda given: _mod_x(given, labelled=True),
    "mod-x, classes, mean": lambda given: _mod_x(given, labelled=True, reduce="mean"),
}


def embeddings(seed: int) -> dict[str, torch.Tensor]:
    """Unit embeddings of both processes, `(2 N, D)`; one picture and one caption stand on both of them."""
    draw = torch.Generator().manual_seed(seed)
    names = ("image", "text", "old_image", "old_text")
    whole = {n: F.normalize(torch.randn(2 * ROWS, WIDTH, generator=draw), dim=1) for n in names}
    whole["image_key"] = torch.tensor([1, 2, 3, 4, 1, 5])
    whole["text_key"] = torch.tensor([1, 2, 3, 3, 4, 5])
    whole["label"] = torch.tensor([0, 1, 2, 2, 0, 1])
    return whole


def leaves(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.clone().requires_grad_(name in ("image", "text")) for name, values in given.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_give_the_loss_and_the_gradient_of_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = leaves(embeddings(0))
    expected = LOSSES[name](whole)
    expected.backward()  # type: ignore[no-untyped-call]

    parts = [leaves({n: v[i * ROWS : (i + 1) * ROWS] for n, v in embeddings(0).items()}) for i in range(2)]
    at = 0

    def concatenate(values: torch.Tensor, gradient: bool = False) -> torch.Tensor:
        (column,) = (n for n, own in parts[at].items() if own is values)
        both = torch.cat([part[column] for part in parts])
        return both if gradient else both.detach()

    monkeypatch.setattr(mod_x, "world", lambda: 2)
    for module in (losses, answers, mod_x):
        monkeypatch.setattr(module, "concatenate", concatenate)
    for module in (losses, answers):
        monkeypatch.setattr(module, "rank", lambda: at)
    first = LOSSES[name](parts[0])
    at = 1
    mean = (first + LOSSES[name](parts[1])) / 2
    mean.backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(mean, expected, atol=1e-6)
    for column in ("image", "text"):
        gradients = [part[column].grad for part in parts]
        wanted = whole[column].grad
        if wanted is None:
            assert gradients == [None, None]
            continue
        assert wanted.abs().max() > 0
        assert torch.allclose(torch.cat([g for g in gradients if g is not None]), wanted, atol=1e-5)
