"""All checks, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everclip.prepare.doctor.endtoend import check_end_to_end
from everclip.prepare.doctor.finding import Finding
from everclip.prepare.doctor.folders import check_folders
from everclip.prepare.doctor.machine import check_machine
from everclip.prepare.doctor.packages import check_packages
from everclip.prepare.doctor.variables import check_variables

CHECKS: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
    ("packages", check_packages),
    ("machine", check_machine),
    ("folders", check_folders),
    ("variables", check_variables),
    ("end to end", check_end_to_end),
)

SLOW = ("end to end",)


def examine(quick: bool = False) -> Iterator[tuple[str, list[Finding]]]:
    """Yield the findings of each check.

    Args:
        quick: skip the trial run of half a minute.
    """
    for name, check in CHECKS:
        if not (quick and name in SLOW):
            yield name, check()
