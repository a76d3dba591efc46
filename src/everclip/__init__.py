"""everclip keeps a CLIP model up to date.

The public names are re-exported lazily, so that `import everclip` and `everclip ls` stay instant: torch is
imported only when a name that needs it is touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Learner": "everclip.learner",
    "execute": "everclip.run",
    "make_task": "everclip.learner.tasks",
    "Method": "everclip.methods.base",
    "SlotMethod": "everclip.methods.slots",
    "growing_folder": "everclip.learner.growing_folder",
    "load_backbone": "everclip.models.backbone",
    "load_scenario": "everclip.scenarios.load",
    "resolve_config": "everclip.config",
    "Results": "everclip.evaluation.results",
    "write_feature_table": "everclip.data.feature_table",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'everclip' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
