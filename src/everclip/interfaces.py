"""The protocols of methods and scenarios that other layers use. No torch at run time.

`everclip.methods.base.Method` and `everclip.scenarios.base.ListScenario` implement all of them. Each layer names the
smallest protocol that it needs, so that a reader sees what it may call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from everclip.contracts import (
    Batch,
    EvalProtocol,
    EvalSet,
    Features,
    LabelSpace,
    Past,
    Phase,
    Progress,
    Task,
    Validate,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from everclip.data.table import Table
    from everclip.models.backbone import Backbone

Preprocess = Callable[[Any], "Tensor"]
"""A backbone's evaluation transform: a PIL image to pixels `(3, S, S)`. `Any`, because torchvision has no types."""


class HasParameters(Protocol):
    """A torch module with parameters."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters."""


class Encodes(HasParameters, Protocol):
    """A module that encodes images and texts."""

    backbone: Backbone

    def eval(self) -> object:
        """Put the module into evaluation mode."""

    def encode_images(self, pixels: Tensor, known_task: int | None = None) -> Features:
        """Encode images `(N, 3, H, W)`; the result of an image must not depend on the rest of the batch.

        Args:
            pixels: the images.
            known_task: their task, if the protocol gives it and the method uses it.
        """

    def encode_texts(self, tokens: Tensor) -> Features:
        """Encode token ids `(N, L)`."""


class Predictor(Encodes, Protocol):
    """A method for evaluation: encodings, class banks and scores."""

    notes: dict[str, Any]

    @property
    def uses_known_task(self) -> bool:
        """Whether `encode_images` uses the known task of a protocol."""

    @property
    def wide(self) -> frozenset[str]:
        """The features whose size grows with the learned tasks; evaluation scores them batch by batch."""

    @property
    def batch_dependent(self) -> str | None:
        """Why predictions depend on the batch (under an option for a published method); `None`: they do not."""

    @property
    def prediction_batch(self) -> int | None:
        """The number of images that are predicted together if `batch_dependent`; `None`: `evaluation.batch_size`."""

    def encoder_keys(self) -> dict[str, str]:
        """Return, for caches, one key per tower that covers everything that its encodings depend on."""

    def class_bank(self, space: LabelSpace) -> Features:
        """Return one text embedding per class entry."""

    def bank_from(self, space: LabelSpace, prompts: Features) -> Features:
        """Return what `class_bank` returns, from the features of `space.prompts()`."""

    @property
    def own_bank(self) -> bool:
        """Whether `class_bank` encodes in a way of its own: features of prompts then do not replace it."""

    def similarity(self, images: Features, texts: Features) -> Tensor:
        """Return cosines `(N, M)`."""

    def class_scores(self, images: Features, space: LabelSpace, bank: Features) -> Tensor:
        """Return scores `(N, C)`, one column per class entry."""

    def routes(self) -> tuple[str, ...]:
        """Return the names of the routes that an image can take (feature `route`)."""

    def expert_places(self) -> tuple[str, ...]:
        """Return the names of the blocks that choose experts (feature `experts`), in order."""


class Guarded(Predictor, Protocol):
    """A method for the retention guard: its weights, and a way back to earlier ones."""

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of everything that learning changes."""

    def blend(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> None:
        """Set the weights to `(1 - share) * before + share * after`, both from `weights`."""


class Teaches(HasParameters, Protocol):
    """A method whose towers or frozen teachers encode a phase's data once."""

    backbone: Backbone

    def eval(self) -> object:
        """Put the module into evaluation mode."""

    def teacher_of(self, kind: str) -> Backbone:
        """Return a frozen teacher by its name, on the method's device."""


class Learnable(Guarded, Teaches, Protocol):
    """A method for the engine: phases, the training step, and the hooks around it."""

    preset: str

    @property
    def gathers(self) -> bool:
        """Whether `forward` gathers the samples of all processes in phases without an optimiser."""

    def begin_task(self, task: Task, past: Past) -> None:
        """Prepare for a task: grow modules, freeze, copy a teacher."""

    def plan(self, task: Task, past: Past) -> list[Phase]:
        """Return the phases of a task; the engine owns every loop, stream and position."""

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the named losses of a training step; their sum is minimised."""

    def after_step(self, progress: Progress) -> None:
        """Update running means and similar state after each optimiser step."""

    def take_gradients(self, progress: Progress) -> None:
        """Read the gradients of a batch in a phase that only measures them."""

    def end_phase(self, task: Task, phase: Phase) -> None:
        """End a phase: solve, switch, or discard."""

    def end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """End a task: merge, select, fill the buffer."""


class MeasuredScenario(Protocol):
    """A scenario for evaluation: its sets, and what a method may know when each is scored."""

    @property
    def eval_sets(self) -> Sequence[EvalSet]:
        """The evaluation sets, one per column of the score matrix."""

    @property
    def protocols(self) -> Sequence[EvalProtocol]:
        """The protocols by which each set is scored."""

    @property
    def shown_protocol(self) -> str:
        """The protocol whose details are shown: the headline's."""

    def label_space(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> LabelSpace | None:
        """Return what a method may know when `eval_set` is scored after the tasks `learned`; `None` = no cell."""

    def pool(
        self, eval_set: EvalSet, learned: Collection[int], protocol: EvalProtocol
    ) -> Sequence[EvalSet] | None:
        """Return the retrieval sets whose samples are candidates; `None` = no such cell."""


class WatchedScenario(Protocol):
    """A scenario for the retention guard: validation data of abilities that must not be lost."""

    @property
    def eval_sets(self) -> Sequence[EvalSet]:
        """The evaluation sets, one per column of the score matrix."""

    @property
    def base_val(self) -> Table | None:
        """The validation part of the backbone's own training data."""

    @property
    def retention_val(self) -> Sequence[EvalSet]:
        """The validation twins of the retention suite."""
