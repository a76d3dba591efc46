"""A diagnosis as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from everclip.diagnosis.records import Diagnosis, PartChange, SetDiagnosis
from everclip.report import formats
from everclip.report.fitting import Grid, fitting
from everclip.report.over_time_text import cells_of, hides

ROLES = {"kept": "known", "new": "new"}
"""What readers see for a role."""

SHOWN_PARTS = 5


def diagnosis_text(found: Diagnosis, width: int) -> str:
    """Return the verdict, a table of the sets, and what changed most, in at most `width` characters per line."""
    from rich.console import Console

    rows = [set_cells(s) for s in found.sets]
    grid = Grid(
        f"{found.new} against {found.old}, percent",
        tuple(f"{s.name} ({ROLES[s.role]})" for s in found.sets),
        ("items", "old", "new", "difference, points", "", "lost", "gained"),
        tuple(rows),
        corner="test",
    )
    out = StringIO()
    console = Console(file=out, width=width)
    for table in fitting(grid, console):
        console.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    said = [found.verdict.sentence, "", *lines, *_details(found), *(f"note: {note}" for note in found.notes)]
    return "\n".join(said)


def set_cells(s: SetDiagnosis) -> tuple[str, ...]:
    """Return items, both scores, their difference with its verdict, and the shares of lost and gained items."""
    first, second, change, verdict = cells_of(s.score, signed=False)
    flips = s.flips[0] if s.flips else None
    return (
        f"{s.score.items:,}",
        *("\n".join(part for part in cell if part) for cell in (first, second, change)),
        verdict,
        "" if flips is None else formats.plain_percent(flips.negative.value),
        "" if flips is None else formats.plain_percent(flips.positive.value),
    )


def _details(found: Diagnosis) -> list[str]:
    lines = [] if found.over_time is None else [f"static and dated tests: {hides(found.over_time)}"]
    for s in found.sets:
        if s.role == "new" and not s.groups:
            lines += [f"{s.name}: {line}"] if (line := classes_line(s)) else []
            continue
        lines += [
            f"{s.name}: {line}"
            for line in (classes_line(s), *groups_lines(s), queries_line(s), *space_lines(s))
            if line
        ]
    return lines


def classes_line(s: SetDiagnosis) -> str:
    """Name the classes that lost and gained most."""
    if not tells_classes(s):
        return ""
    worst = [part for part in s.classes if part.new < part.old][:SHOWN_PARTS]
    best = [part for part in reversed(s.classes) if part.new > part.old][:SHOWN_PARTS]
    parts = [
        f"{word} most: {', '.join(map(_part, some))}"
        for word, some in (("lost", worst), ("gained", best))
        if some
    ]
    return f"{'; '.join(parts)} ({resolved_counts(s)})" if parts else "no class changed"


def resolved_counts(s: SetDiagnosis) -> str:
    """Say how many classes are resolved as worse and as better."""
    worse, better = (sum(p.resolved and (p.new < p.old) == fell for p in s.classes) for fell in (True, False))
    return f"of {len(s.classes):,} classes, {worse} resolved as worse, {better} as better"


def tells_classes(s: SetDiagnosis) -> bool:
    """Whether classes have enough images, 3 on average, for one of them to say something."""
    return bool(s.classes) and s.score.items >= 3 * len(s.classes)


def _part(part: PartChange) -> str:
    return f"{part.name} {formats.plain_percent(part.old, 0)} to {formats.plain_percent(part.new, 0)} %"


def groups_lines(s: SetDiagnosis) -> list[str]:
    """Name the groups of each column with their scores, the largest loss first."""
    return [
        f"by {column}: {', '.join(map(_part, parts[:SHOWN_PARTS]))}"
        + (f" and {len(parts) - SHOWN_PARTS} more" if len(parts) > SHOWN_PARTS else "")
        for column, parts in s.groups.items()
    ]


def queries_line(s: SetDiagnosis) -> str:
    """Say how the results of text queries changed."""
    if s.queries is None:
        return ""
    of = s.queries
    first = f"{formats.percent(of.first_changed)} of {of.count:,} text queries have another first image"
    return f"{first}; of the first {of.k}, {formats.percent(of.kept)} are the same"


def space_lines(s: SetDiagnosis) -> Sequence[str]:
    """Say how calibration and the embedding space changed."""
    lines = []
    if s.calibration is not None:
        old, new = s.calibration.old, s.calibration.new
        lines.append(
            f"calibration error {formats.plain_percent(old.error)} to {formats.percent(new.error)} "
            f"(logit scale {old.logit_scale:.1f} to {new.logit_scale:.1f})"
        )
    values = {value.name: value for value in s.space}
    compared = [
        values[n] for n in ("modality_gap", "image_effective_rank", "text_effective_rank") if n in values
    ]
    moved = [
        values[n] for n in ("image_rotation_deg", "text_rotation_deg", "pair_angle_change_deg") if n in values
    ]
    parts = [
        *(
            f"{v.label} {v.old:.3g} to {v.new:.3g}"
            for v in compared
            if v.old is not None and v.new is not None
        ),
        *(f"{v.label} {v.new:.1f} degrees" for v in moved if v.new is not None),
    ]
    lines += ["; ".join(parts)] if parts else []
    lines += [
        f"hubness, {hubs.direction}: skewness {hubs.old.skewness:.2f} to {hubs.new.skewness:.2f}, never found "
        f"{formats.plain_percent(hubs.old.never)} to {formats.percent(hubs.new.never)}"
        for hubs in s.hubs
    ]
    return lines
