"""Turn the counts of a check into findings: what stops training, what to mend, what to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everclip.data.reading.quarantine import DAMAGED
from everclip.data.wording import counted, share
from everclip.prepare.check.advice_classes import balance
from everclip.prepare.check.document import Check, Finding, Leaks, Row
from everclip.prepare.check.periods import misordered

_KINDS = {"bytes": "the same file", "pixels": "the same pixels", "near": "nearly the same with the same text"}


def advise(check: Check) -> tuple[Finding, ...]:
    """Return the findings, the most urgent first."""
    order = {"stop": 0, "mend": 1, "note": 2}
    found = [finding for rule in _RULES for finding in rule(check)]
    return tuple(sorted(found, key=lambda finding: order[finding.level]))


def _nothing(check: Check) -> Iterator[Finding]:
    if not check.rows:
        yield Finding(
            level="stop",
            code="empty",
            message="no row can be used",
            remedy="Mend the causes under `set aside`.",
        )
    elif check.captions is None:
        yield Finding(
            level="stop",
            code="no-text",
            message="there is neither a caption nor a class name",
            remedy="Name the column that holds one: columns.caption=NAME or columns.class_name=NAME.",
        )
    elif check.captions.distinct == 1:
        yield Finding(
            level="stop",
            code="one-text",
            message=f"every image has the same text ({check.captions.longest[0].name[:60]!r})",
            remedy="A CLIP learns from differences: give captions, or more than one class (texts with equal tokens are "
            "one text to it).",
        )
    elif check.captions.learned == 1:
        yield Finding(
            level="stop",
            code="one-text-learned",
            message=f"all {check.splits['train']:,} training rows have the same text",
            remedy="Only rows marked as test or validation have others, so training has nothing to distinguish: "
            "mark rows of more classes or captions for training (columns.split= to ignore the marks).",
        )
    elif check.captions.learned == 0:
        yield Finding(
            level="mend",
            code="nothing-learned",
            message="no row is marked for training",
            remedy="Such data can be measured but not learned: mark rows as train, or set columns.split= to ignore the "
            "marks.",
        )


def _test_leaks(check: Check) -> Iterator[Finding]:
    for leaks in check.leaks:
        if leaks.side == "test" and leaks.counts:
            yield Finding(
                level="stop" if leaks.share > leaks.limit else "mend",
                code="leak-test",
                message=f"{share(sum(leaks.counts.values()), leaks.held_out)} test images are also used "
                f"for training: {_kinds(leaks)}; scores on them are too high",
                remedy="Remove them from the training side (or from both), or let everclip hold out by content.",
            )


def _validation_leaks(check: Check) -> Iterator[Finding]:
    for leaks in check.leaks:
        if leaks.side == "val" and leaks.counts:
            yield Finding(
                level="mend",
                code="leak-val",
                message=f"{share(sum(leaks.counts.values()), leaks.held_out)} validation images are also used "
                f"for training: {_kinds(leaks)}; what is chosen by them is chosen too late",
                remedy="Remove them from one side.",
            )


def _alike(check: Check) -> Iterator[Finding]:
    for leaks in check.leaks:
        if leaks.alike:
            yield Finding(
                level="mend",
                code=f"alike-{leaks.side}",
                message=f"{share(leaks.alike, leaks.held_out)} {leaks.side} images look nearly like one on the other "
                "side that has another text",
                remedy="Look at them in the sample sheet: if they are the same image, one text is wrong and the "
                "image leaks.",
            )


def _kinds(leaks: Leaks) -> str:
    return ", ".join(f"{count:,} {_KINDS[kind]}" for kind, count in leaks.counts.items())


def _set_aside(check: Check) -> Iterator[Finding]:
    aside = check.quarantine
    damaged = aside.reasons.get(DAMAGED, 0)
    if damaged:
        yield Finding(
            level="stop" if aside.archives_stop else "mend",
            code="archives",
            message=f"archives are damaged or cut short ({counted(damaged, 'place')}); how much is lost is not known",
            remedy="Download or write them again; see `set aside`. To continue with the intact part: "
            "data.damaged_archives=noted, or limited (to the share quarantine_limit of all files).",
        )
    if aside.share > aside.limit:
        yield Finding(
            level="stop",
            code="quarantine",
            message=f"{share(aside.count, aside.total)} rows cannot be used, more than the limit of "
            f"{100 * aside.limit:g} %",
            remedy="Mend the most frequent reason first; if the rest may be left out, set quarantine_limit higher.",
        )
    elif aside.count:
        yield Finding(
            level="note",
            code="quarantine",
            message=f"{share(aside.count, aside.total)} rows cannot be used and are left out",
            remedy="See `set aside`.",
        )


def _conflicts(check: Check) -> Iterator[Finding]:
    if check.duplicates.conflict_count:
        yield Finding(
            level="mend",
            code="conflict",
            message=f"{counted(check.duplicates.conflict_count, 'image stands', 'images stand')} under more "
            "than one class",
            remedy="Keep one class each; a model cannot learn both, and one of them counts as wrong in the test.",
        )


def _mislabelled(check: Check) -> Iterator[Finding]:
    found = check.duplicates
    if found.mislabelled_count:
        pairs = "; ".join(" and ".join(_labelled(row) for row in pair.rows) for pair in found.mislabelled[:3])
        yield Finding(
            level="mend",
            code="mislabelled",
            message=f"{counted(found.mislabelled_count, 'pair')} of nearly equal images with different classes, "
            f"likely label errors: {pairs}",
            remedy="Look at both images of a pair: correct the class that is wrong, or leave them where they differ "
            "in a detail; check.json lists all pairs.",
        )


def _labelled(row: Row) -> str:
    return f"{row.origin or row.id} ({row.label!r})"


def _blank(check: Check) -> Iterator[Finding]:
    sizes = check.sizes
    if sizes and sizes.blank:
        shown = ", ".join(row.origin or row.id for row in sizes.blanks[:3])
        yield Finding(
            level="mend",
            code="blank",
            message=f"{counted(sizes.blank, 'image is', 'images are')} blank after conversion to RGB with 8 bits: "
            f"{shown}",
            remedy="Choose another background (data.background=black) or range (data.bits=12), or leave them out; they "
            "are not copies of each other.",
        )


def _long_texts(check: Check) -> Iterator[Finding]:
    texts = check.captions
    if texts and texts.cut:
        yield Finding(
            level="mend" if texts.cut > 0.01 * texts.count else "note",
            code="long-text",
            message=f"{share(texts.cut, texts.count)} texts are longer than the {texts.context} tokens that "
            f"{texts.tokenizer} reads; their ends are cut off",
            remedy="Put what matters first, shorten them, or take a model with a longer context.",
        )


def _copies(check: Check) -> Iterator[Finding]:
    surplus = check.duplicates.surplus
    exact = surplus.get("bytes", 0) + surplus.get("pixels", 0)
    if exact:
        yield Finding(
            level="mend" if exact > 0.01 * check.pictures else "note",
            code="copies",
            message=f"{counted(exact, 'image is a copy', 'images are copies')} of another",
            remedy="Copies count double in training; keep one each.",
        )
    repeated = check.duplicates.repeated
    if repeated:
        yield Finding(
            level="mend" if repeated > 0.01 * check.rows else "note",
            code="repeated",
            message=f"{counted(repeated, 'row repeats', 'rows repeat')} an earlier one: the same image with the same "
            "caption",
            remedy="They count double in training; leave them out.",
        )
    near = surplus.get("near", 0)
    if near:
        yield Finding(
            level="mend" if near > 0.05 * check.pictures else "note",
            code="near",
            message=f"{counted(near, 'image is', 'images are')} nearly the same as another (saved again, resized)",
            remedy="Look at them in the sample sheet; if they are the same image, keep one each.",
        )
    if check.duplicates.loosely_checked:
        yield Finding(
            level="note",
            code="loosely-checked",
            message=f"{counted(check.duplicates.loosely_checked, 'image looks', 'images look')} alike to so many "
            "others that each was only compared with the nearest",
            remedy="Near duplicates among them may be missed; equal files are all found.",
        )


def _texts(check: Check) -> Iterator[Finding]:
    texts = check.captions
    if texts is None:
        return
    if texts.missing:
        yield Finding(
            level="mend",
            code="missing-text",
            message=f"{share(texts.missing, check.rows)} rows have neither caption nor class name",
            remedy="Give them one, or leave them out.",
        )
    if texts.wordless:
        yield Finding(
            level="mend",
            code="wordless",
            message=f"{share(texts.wordless, texts.count)} texts hold no token that {texts.tokenizer} knows",
            remedy="They all mean the empty text to it: write words, or leave them out.",
        )
    if texts.same_text and texts.source == "captions":
        yield Finding(
            level="note",
            code="same-text",
            message=f"{texts.written:,} texts are written differently and {texts.distinct:,} are read differently: "
            + "; ".join(" = ".join(repr(t[:40]) for t in group[:3]) for group in texts.same_text[:3]),
            remedy="The model does not see case, blanks, Unicode form and text beyond its context: such texts are one "
            "text, in training and in recall.",
        )
    if texts.ambiguous_share > 0.05:
        yield Finding(
            level="mend",
            code="ambiguous",
            message=f"{100 * texts.ambiguous_share:.1f} % of the captions stand for more than one image "
            f"({texts.most_shared[0].name[:60]!r} for {texts.most_shared[0].count:,})",
            remedy="Retrieval cannot tell such images apart, so recall has a ceiling; make captions specific, or "
            "name the column `concept` if they mean the same thing.",
        )


def _pictures(check: Check) -> Iterator[Finding]:
    sizes = check.sizes
    if sizes and sizes.small > 0.1 * check.pictures:
        yield Finding(
            level="mend" if sizes.width.median < sizes.side / 2 else "note",
            code="small",
            message=f"{share(sizes.small, check.pictures)} images are smaller than the {sizes.side} px that "
            f"{sizes.model} sees",
            remedy="They are enlarged, which adds nothing: take the originals, or a model for smaller images.",
        )
    if sizes and sizes.animated:
        yield Finding(
            level="note",
            code="animated",
            message=f"{counted(sizes.animated, 'image is', 'images are')} animated",
            remedy="Only the first frame is used.",
        )


def _extent(check: Check) -> Iterator[Finding]:
    if check.rows and "test" not in check.splits:
        yield Finding(
            level="note",
            code="no-test",
            message="no row is marked as test",
            remedy="everclip holds out a share by content; or name a column `split`, or give --test DATA.",
        )
    if check.time and check.time.missing:
        yield Finding(
            level="mend",
            code="no-time",
            message=f"{share(check.time.missing, check.rows)} rows have no time",
            remedy="A stream by time leaves them out: give them one.",
        )
    date = misordered(check.time.counts) if check.time else None
    if date is not None:
        yield Finding(
            level="mend",
            code="date-order",
            message=f"times such as {date!r} sort by their first number, not by date",
            remedy="Write them as 2025-01-31; a stream by time would learn them in the wrong order.",
        )
    if 0 < check.pictures < 200:
        yield Finding(
            level="note",
            code="few",
            message=f"{counted(check.pictures, 'image')} is little",
            remedy="Train few parts with a small learning rate, and expect wide intervals.",
        )


_RULES: tuple[Callable[[Check], Iterator[Finding]], ...] = (
    _nothing,
    _test_leaks,
    _set_aside,
    _validation_leaks,
    _alike,
    _conflicts,
    _mislabelled,
    _blank,
    _texts,
    _long_texts,
    balance,
    _copies,
    _pictures,
    _extent,
)
