"""Zero-shot CLIP as a continual learner (Continual-CLIP, Thengane et al. 2022, arXiv 2210.03114): nothing trains."""

from __future__ import annotations

from everclip.contracts import Past, Phase, Task
from everclip.methods.base import Method


class ZeroShot(Method):
    """The frozen backbone, without any state."""

    in_chunks = True

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare nothing to train."""
        return []
