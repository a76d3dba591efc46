"""How many bytes a process sends to the others in one step of training."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.contracts import Phase


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in one step; it receives as many.

    Attributes:
        gradients: the all-reduce of gradients, as a ring does it; of a sharded model, their reduce-scatter.
        embeddings: of the loss: embeddings, their gradients, and keys of equal images and captions.
        weights: of a sharded model, which every pass gathers.
    """

    gradients: float
    embeddings: float
    weights: float = 0.0

    @property
    def total(self) -> float:
        """All bytes."""
        return self.gradients + self.embeddings + self.weights


def traffic(
    phase: Phase, trained: int, width: int, sigmoid: bool, processes: int, gathered: float | None = None
) -> Traffic:
    """Return what the main loss of a phase moves; penalties that compare over processes may move more.

    With P processes, a batch of B pairs and embeddings of D floats:

    * gradients: `2 (P-1)/P * 4 * trained`; half of it where the model is sharded,
    * weights, where it is: `(P-1)/P * 4 * gathered`,
    * softmax over captions: both sides are gathered, and so are the gradients of both: `4 (P-1)/P * 4 B D`,
    * sigmoid: one side and its gradient pass around the ring: `(2 P - 1)/P * 4 B D`,
    * labels: nothing, since every process encodes the class texts itself.

    Args:
        phase: a phase with a main stream.
        trained: the number of values that train.
        width: D.
        sigmoid: whether pairs are compared by the sigmoid loss.
        processes: P.
        gathered: of a sharded model, the values that all passes of a step gather; `None`: it is not sharded.
    """
    if processes == 1:
        return Traffic(0.0, 0.0)
    others = (processes - 1) / processes
    main = phase.streams.get("main")
    embeddings = 0.0
    if main is not None and main.classes is None:
        rounds = (2 * processes - 1) / processes if sigmoid else 4 * others
        keys = 2 * others * 8 * main.batch_size
        embeddings = rounds * 4.0 * main.batch_size * width + keys
    if gathered is not None:
        return Traffic(others * 4.0 * trained, embeddings, others * 4.0 * gathered)
    return Traffic(2 * others * 4.0 * trained, embeddings)
