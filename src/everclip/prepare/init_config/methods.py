"""Which method a proposed file uses, and which others it names. `docs/which-method.md` has all of them."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.scenarios.base import ListScenario


@dataclass(frozen=True)
class Method:
    """A method that a proposed file names.

    Attributes:
        name: of the preset.
        why: for whom, in a few words.
    """

    name: str
    why: str


RAIL = Method("rail", "closed form, without training; keeps every answer about what was known")
TEXT_RIDGE = Method(
    "text-ridge", "closed form, without training; moves texts, never the embedding of an image"
)
SIT = Method("sit", "for streams seen once: small adapters, each step among the classes of its batch")
SAFE = Method(
    "safe", "trains gently; the guard needs a `retention` set, and `base` is replayed, so name them above"
)
REPLAY = Method("replay", "trains everything, and repeats samples of earlier tasks")
FINETUNE = Method("finetune", "trains everything and keeps nothing: what the others are compared with")


def methods_for(scenario: ListScenario) -> tuple[Method, ...]:
    """Return the methods to name for a stream; the first one is proposed.

    Classes are learned by `rail`, captions and mixtures by `text-ridge` (benchmarks/CLOSED_FORMS.md). `safe` is never
    proposed: without a retention set or base data it has nothing to watch or to replay, and a proposal has neither.
    """
    if scenario.spec.kind == "online":
        return SIT, REPLAY, FINETUNE
    if all(task.classes is not None for task in scenario.tasks):
        return RAIL, TEXT_RIDGE, SAFE, FINETUNE
    return TEXT_RIDGE, SAFE, REPLAY, FINETUNE
