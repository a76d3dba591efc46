"""Read results, draw tables and figures, write self-contained pages. Re-exports are lazy, so importing is cheap."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everclip.report.compare_html import write_comparison
    from everclip.report.comparing import compare
    from everclip.report.comparison import Comparison
    from everclip.report.html import write_report
    from everclip.report.tables import comparison_table, comparison_text, difference_table

__all__ = [
    "Comparison",
    "compare",
    "comparison_table",
    "comparison_text",
    "difference_table",
    "write_comparison",
    "write_report",
]

_MODULES = {
    "Comparison": "comparison",
    "compare": "comparing",
    "comparison_table": "tables",
    "comparison_text": "tables",
    "difference_table": "tables",
    "write_comparison": "compare_html",
    "write_report": "html",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
