"""Run every benchmark and write benchmarks/RESULTS.md, with the machine in every table.

Run: python benchmarks/run_all.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run each in a process of its own, so that none inherits another's memory or threads."""
    parts = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Ratios are measured in one process, alternating.",
        "",
    ]
    for name in (
        "step.py",
        "frozen.py",
        "adapters.py",
        "row.py",
        "checkpoints.py",
        "decode.py",
        "rail.py",
        "matrix.py",
        "moe.py",
        "selecting.py",
        "zscl.py",
    ):
        done = subprocess.run([sys.executable, str(HERE / name)], capture_output=True, text=True, check=True)
        print(done.stdout)
        parts.append(done.stdout)
    (HERE / "RESULTS.md").write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
