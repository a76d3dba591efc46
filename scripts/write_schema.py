"""Write docs/results.schema.json anew from the types of the result: `python scripts/write_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path

from everclip.evaluation.results import json_schema

FILE = Path(__file__).resolve().parent.parent / "docs" / "results.schema.json"


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
