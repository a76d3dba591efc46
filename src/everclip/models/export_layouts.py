"""The layouts of exports by name."""

from __future__ import annotations

from everclip.errors import ConfigError, did_you_mean
from everclip.models.export import OPEN_CLIP
from everclip.models.export_onnx import ONNX
from everclip.models.export_parity import ExportLayout
from everclip.models.export_transformers import TRANSFORMERS

LAYOUTS = {layout.name: layout for layout in (OPEN_CLIP, TRANSFORMERS, ONNX)}


def layout_of(name: str) -> ExportLayout:
    """Return a layout.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"--format: {name!r} is not known.{did_you_mean(name, LAYOUTS)}")
    return LAYOUTS[name]
