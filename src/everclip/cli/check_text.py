"""The text of a check, for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from everclip.data.lettering import plain
from everclip.data.reading.quarantine import REASONS
from everclip.data.wording import counted, share
from everclip.prepare.check.document import Check, Copies, Leaking, Leaks, Row, Spread
from everclip.report.formats import size

_WIDTH, _LABEL = 100, 12
_SHOWN = 5
_PERIODS = 36


def text_of(check: Check) -> str:
    """Return the whole check; the most important part comes last, at the end of the terminal."""
    lines = [f"{plain(check.source, 90)}: {counted(check.rows, 'row')}, {counted(check.pictures, 'image')}"]
    for part in (
        _columns,
        _splits,
        _classes,
        _captions,
        _languages,
        _time,
        _pictures,
        _duplicates,
        _leaks,
        _quarantine,
    ):
        label, *rest = [*part(check)] or [""]
        if not rest:
            continue
        for number, line in enumerate(rest):
            lines += _line(label if number == 0 else "", line)
    return "\n".join([*lines, "", *_findings(check)])


def _line(label: str, text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    body = textwrap.wrap(
        text.strip(), _WIDTH - _LABEL - 2 - len(indent), break_long_words=False, break_on_hyphens=False
    )
    head = [f"  {label:<{_LABEL}}{indent}{body[0]}"] if body else []
    return head + [f"  {'':<{_LABEL}}{indent}  {more}" for more in body[1:]]


def _columns(check: Check) -> Iterator[str]:
    yield "columns"
    if check.guesses:
        yield from (plain(guess, 200) for guess in check.guesses)
    renamed = {ours: theirs for ours, theirs in check.columns.items() if ours != theirs}
    if renamed and not check.guesses:
        yield ", ".join(f"{plain(ours)} = column {plain(theirs)!r}" for ours, theirs in renamed.items())


def _splits(check: Check) -> Iterator[str]:
    yield "split"
    if check.splits:
        yield ", ".join(f"{name} {count:,}" for name, count in check.splits.items())


def _classes(check: Check) -> Iterator[str]:
    yield "classes"
    classes = check.classes
    if classes is None:
        return
    large, small = classes.counts[0], classes.counts[-1]
    yield (
        f"{len(classes.counts):,}; largest {plain(large.name, 30)!r} {large.count:,}, smallest "
        f"{plain(small.name, 30)!r} {small.count:,} ({classes.imbalance:.1f} to 1); as varied as "
        f"{classes.effective:.1f} classes of equal size"
    )


def _captions(check: Check) -> Iterator[str]:
    texts = check.captions
    if texts is None:
        return
    yield texts.source if texts.source == "captions" else "class names"
    if texts.source == "captions":
        per = texts.per_picture
        each = f"{per.low:g}" if per.low == per.high else f"{per.low:g} to {per.high:g}"
        yield f"{texts.count:,}, {texts.distinct:,} different; {each} per image"
    yield (
        f"{texts.tokens.low:g} to {texts.tokens.high:g} tokens, half have {texts.tokens.median:g} or fewer; "
        f"{texts.tokenizer} reads {texts.context}: {_none_or(texts.cut, texts.count)} cut"
    )
    if texts.cut:
        yield f"  longest ({texts.longest[0].count} tokens): {plain(texts.longest[0].name, 120)!r}"
    if texts.ambiguous:
        shown = ", ".join(f"{plain(n.name, 40)!r} {n.count:,}" for n in texts.most_shared)
        yield f"{counted(texts.ambiguous, 'text stands', 'texts stand')} for several images: {shown}"


def _languages(check: Check) -> Iterator[str]:
    yield "languages"
    if check.languages:
        yield ", ".join(f"{plain(name, 20)} {count:,}" for name, count in list(check.languages.items())[:12])


def _time(check: Check) -> Iterator[str]:
    yield "time"
    time = check.time
    if time is None:
        return
    shown = ", ".join(
        f"{plain(label, 20)} {count:,}" for label, count in list(time.counts.items())[:_PERIODS]
    )
    more = f" and {len(time.counts) - _PERIODS} more" if len(time.counts) > _PERIODS else ""
    by = "by value" if time.period == "value" else f"by {time.period}"
    yield f"{plain(time.first, 20)} to {plain(time.last, 20)}, {by}: {shown}{more}"


def _pictures(check: Check) -> Iterator[str]:
    yield "images"
    sizes = check.sizes
    if sizes is None:
        return
    yield (
        f"{_spread_text(sizes.width)} px wide, {_spread_text(sizes.height)} px high; {size(sizes.bytes.median)} each, "
        f"{size(sizes.total)} in all"
    )
    kinds = ", ".join(f"{name} {count:,}" for name, count in sizes.formats.items())
    modes = ", ".join(f"{name} {count:,}" for name, count in sizes.modes.items())
    yield f"{kinds}; {modes}" + (f"; {sizes.animated:,} animated" if sizes.animated else "")
    yield f"{_none_or(sizes.small, check.pictures)} smaller than the {sizes.side} px of {sizes.model}"


def _none_or(part: int, whole: int) -> str:
    return share(part, whole) if part else "none"


def _spread_text(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.low:g}"
    return f"{spread.low:g} to {spread.high:g} (median {spread.median:g})"


def _duplicates(check: Check) -> Iterator[str]:
    yield "duplicates"
    found = check.duplicates
    kinds = {"bytes": "the same file", "pixels": "the same pixels in another file", "near": "nearly the same"}
    parts = [
        f"{counted(found.surplus[kind], 'image')} too many in {counted(found.group_counts[kind], 'group')}: {words}"
        for kind, words in kinds.items()
        if found.surplus.get(kind)
    ]
    if not parts and not found.repeated and check.rows:
        yield "none"
    yield from parts
    if found.repeated:
        yield f"{counted(found.repeated, 'row repeats', 'rows repeat')} an earlier one"
    yield from (f"  {_group(group, ' = ')}" for group in found.groups[:_SHOWN])
    if len(parts) and sum(found.group_counts.values()) > _SHOWN:
        yield f"  and {sum(found.group_counts.values()) - _SHOWN:,} more groups"
    yield from (f"  conflict: {_group(group, ' but ')}" for group in found.conflicts[:_SHOWN])
    yield from (f"  likely label error: {_group(pair, ' but ')}" for pair in found.mislabelled[:_SHOWN])


def _group(group: Copies, joiner: str) -> str:
    more = f" and {len(group.rows) - 2} more" if len(group.rows) > 2 else ""
    return _joined(group.rows[0], group.rows[1], joiner) + more


def _leaks(check: Check) -> Iterator[str]:
    yield "LEAKS" if any(leaks.counts for leaks in check.leaks) else "look alike"
    for leaks in check.leaks:
        yield from _leaks_of(leaks)


def _leaks_of(leaks: Leaks) -> Iterator[str]:
    total = sum(leaks.counts.values())
    if total:
        kinds = ", ".join(f"{count:,} {_SAME[kind]}" for kind, count in leaks.counts.items())
        yield f"{share(total, leaks.held_out)} {leaks.side} images are also trained on: {kinds}"
    if leaks.alike:
        yield f"{share(leaks.alike, leaks.held_out)} {leaks.side} images look like an image with another text"
    sure = [e for e in leaks.examples if e.kind != "near" or e.same_text] or list(leaks.examples)
    for example in sure[:_SHOWN]:
        yield "  " + _leaking(example)


_SAME = {"bytes": "same file", "pixels": "same pixels", "near": "nearly the same"}


def _leaking(example: Leaking) -> str:
    kind = "" if example.kind == "bytes" else f" ({_SAME[example.kind]})"
    return _joined(example.held_out, example.other, f" = {example.other.split}: ") + kind


def _joined(one: Row, other: Row, joiner: str) -> str:
    if one.text == other.text:  # show it once
        return f"{_name(one)}{joiner}{_name(other)} {plain(one.text, 30)!r}"
    return f"{_name(one)} {plain(one.text, 24)!r}{joiner}{_name(other)} {plain(other.text, 24)!r}"


def _name(row: Row) -> str:
    origin = row.origin or row.id
    return plain(origin if len(origin) <= 32 else "…" + origin[-31:], 40)


def _quarantine(check: Check) -> Iterator[str]:
    yield "set aside"
    quarantine = check.quarantine
    if not quarantine.count:
        yield f"none of {quarantine.total:,} rows"
        return
    yield f"{share(quarantine.count, quarantine.total)} rows (limit {100 * quarantine.limit:g} %)"
    for reason, count in quarantine.reasons.items():
        yield f"  {count:,} {reason}: {REASONS.get(reason, '')}"
        for example in quarantine.examples.get(reason, ())[:2]:
            yield f"    {plain(example, 400)}"


def _findings(check: Check) -> Iterator[str]:
    urgent = [f for f in check.findings if f.level != "note"]
    notes = [f for f in check.findings if f.level == "note"]
    if urgent:
        yield "Fix first:"
    else:
        yield "Nothing to fix before training."
    for number, finding in enumerate(urgent, start=1):
        mark = "STOP: " if finding.level == "stop" else ""
        yield from _paragraph(f"{number:>3}. ", mark + finding.message + ". " + finding.remedy)
    if notes:
        yield "Notes:"
    for finding in notes:
        yield from _paragraph("  -  ", finding.message + ". " + finding.remedy)


def _paragraph(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        plain(text, 600),
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
    )
