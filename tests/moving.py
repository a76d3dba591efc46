"""A version of a store for tests: one tower of the version that serves, with moved weights."""

from __future__ import annotations

import torch

from everclip.store.records import Version
from everclip.store.versions import Store


def moved(store: Store, part: str = "visual") -> str:
    """Add a version whose weights of a tower (`visual` or `text`) have moved; return its id. It does not serve yet."""
    learner = store.load()
    with torch.no_grad():
        for name, values in learner.method.backbone.clip.named_parameters():
            if name.startswith("visual.") == (part == "visual") and values.ndim > 1:
                values.mul_(1 + 0.3 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    version = Version(
        id=store.next_id(),
        parent=store.current.version,
        created="",
        state="accepted",
        method=store.settings.method,
        tensors={},
        learner="",
        files={},
        towers=learner.method.backbone.fingerprints(),
    )
    return store.add(learner, version, None).id
