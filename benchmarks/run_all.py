"""Run the benchmarks of speed and memory; put their tables into benchmarks/RESULTS.md, the machine in every one.

Notes below a table stay. What is measured on a stream (mini_mtil.py, modx.py, safe.py) takes hours and has a page of
its own; check.py reads up to 100,000 pictures and is run by name.

Run: python benchmarks/run_all.py            all of these
     python benchmarks/run_all.py moe zscl   these
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
SCRIPTS = (
    "step",
    "attention",
    "frozen",
    "adapters",
    "row",
    "recall",
    "cll_step",
    "chunks",
    "memory",
    "processes",
    "start",
    "checkpoints",
    "decode",
    "rail",
    "matrix",
    "moe",
    "coleclip",
    "selecting",
    "zscl",
)


def main() -> None:
    """Run each in a process of its own, so that none inherits another's memory or threads."""
    for name in sys.argv[1:] or SCRIPTS:
        script = HERE / f"{name}.py"
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
        print(done.stdout, flush=True)
        RESULTS.write_text(replaced(RESULTS.read_text(encoding="utf-8"), name, done.stdout), encoding="utf-8")


def replaced(page: str, name: str, printed: str) -> str:
    """Return the page with what a script printed in place of its section, up to the last row of its table."""
    sections = re.split(r"(?m)^(?=## )", page)
    for i, section in enumerate(sections):
        if f"(benchmarks/{name}.py)" in section.partition("\n")[0]:
            rows = [match.end() for match in re.finditer(r"(?m)^\|.*$", section)]
            sections[i] = printed.strip() + section[rows[-1] :]
            return "".join(sections)
    return f"{page.rstrip()}\n\n{printed.strip()}\n"


if __name__ == "__main__":
    main()
