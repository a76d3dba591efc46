"""Refuse, before the first step, training that cannot learn because there is only one answer.

The softmax over one class, one caption or one pair is 1 for all weights, so the loss is constant.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from everclip.contracts import Past, Task
from everclip.data.sampling.same_texts import BLOCK, Tokenise, token_keys
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.methods.base import Method

_REMEDIES = (
    "Put more classes into a task (scenario.per_task, scenario.groups, kind: single), keep samples of earlier tasks "
    "(method=replay), or take a method that learns without comparing (method=rail)"
)
_CUT = (
    "Their names differ only after the last token that the model reads, or by characters that it does not know: a "
    "shorter template (scenario.class_templates) or other names may help. "
)


@dataclass(frozen=True)
class LearnableCheck:
    """The result of the check before the first step.

    Attributes:
        notes: notes for the user.
        idle: names of tasks that have nothing to compare with yet; later tasks use their samples.
    """

    notes: tuple[str, ...] = ()
    idle: frozenset[str] = frozenset()


@dataclass
class _Compared:
    """The texts and images that a loss compares, and the number of answers of training rows (two are enough)."""

    texts: set[bytes] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    answers: int = 0

    def merged(self, other: _Compared) -> _Compared:
        answers = max(self.answers, other.answers)
        return _Compared(self.texts | other.texts, self.images | other.images, answers)

    @property
    def is_enough(self) -> bool:
        """Whether anything else that is compared leaves `differ` true."""
        return len(self.texts) > 1 and len(self.images) > 1

    @property
    def differ(self) -> bool:
        # A loss can teach one image its name among several, but not two names.
        return len(self.texts) > 1 and (len(self.images) > 1 or self.answers < 2)


def require_learnable(
    method: Method,
    tasks: Sequence[Task],
    batch_size: int,
    before: Sequence[Task] = (),
    base: Table | None = None,
    more: bool = False,
) -> LearnableCheck:
    """Check that every task has something to compare.

    Args:
        method: the method; one that does not compare texts can learn any task.
        tasks: the tasks in the order of learning.
        batch_size: samples per step.
        before: the tasks that were learned already.
        base: the backbone's own training data, if known.
        more: whether further tasks may follow.

    Returns:
        Notes, and the tasks that only later tasks use.

    Raises:
        DataError: if a task has only one text or one image, and nothing else to compare it with.
        ConfigError: if batches are one pair, or nothing trains.
    """
    if not method.contrasts:
        return LearnableCheck()
    if method.trains_nothing():
        raise ConfigError(
            "method.trainable: [] trains nothing; name what trains (image, text, lora...), or take method=zero-shot, "
            "which trains nothing by design."
        )
    tokenise = method.backbone.tokenise
    notes: list[str] = []
    idle: list[str] = []
    known = _Compared()
    unread = list(before) if method.sees_past else []
    others = base is not None and method.sees_base
    for number, task in enumerate(tasks):
        compared = _compared(task, method.uses_labels(task), tokenise)
        # Earlier tasks are read only if they matter, so that a task does not cost more with every task before it.
        while unread and not compared.is_enough:
            earlier = unread.pop()
            known = known.merged(_compared(earlier, method.uses_labels(earlier), tokenise))
        offered = compared.merged(known) if method.sees_past else compared
        if not offered.differ and not others:
            if not method.sees_past or known.texts or not (more or number + 1 < len(tasks)):
                raise DataError(_refusal(task, method.uses_labels(task), compared))
            idle.append(task.name)
            notes.append(
                f"task {task.name!r} has one {_what(compared)} and no earlier task to compare it with: its steps "
                "change nothing; its samples are kept for later tasks"
            )
        known = offered if method.sees_past else known
        notes += _notes(task, method, batch_size, bool(before) or number > 0)
        _require_pairs(task, method, batch_size)
    return LearnableCheck(tuple(notes), frozenset(idle))


def require_differences(tasks: Sequence[Task], tokenise: Tokenise) -> None:
    """Refuse tasks with only one text or one image, for any method. Tasks with classes are judged by these.

    Raises:
        DataError: if there is such a task.
    """
    for task in tasks:
        compared = _compared(task, task.classes is not None, tokenise)
        if not compared.differ:
            raise DataError(_refusal(task, task.classes is not None, compared))


def may_idle(method: Method, task: Task, batch_size: int, past: Past, announced: bool) -> bool:
    """Refuse a task that has nothing to compare; return whether only later tasks use it.

    Args:
        method: the method.
        task: the next task.
        batch_size: samples per step.
        past: the tasks so far and the base; they count if the method looks back on them.
        announced: whether the notes were printed before; if not, they are logged.
    """
    found = require_learnable(method, [task], batch_size, past.tasks, past.base, more=True)
    for note in () if announced else found.notes:
        logging.getLogger("everclip").warning(note)
    return bool(found.idle)


def _require_pairs(task: Task, method: Method, batch_size: int) -> None:
    if batch_size == 1 and method.compares_captions(task):
        raise ConfigError(
            f"training.batch_size: 1 compares each caption of task {task.name!r} with itself alone, so the loss is 0 "
            "at every step and nothing is learned; take 2 or more (a contrastive loss wants many)."
        )


def _what(compared: _Compared) -> str:
    return "text" if len(compared.texts) < 2 else "image"


def _refusal(task: Task, labels: bool, compared: _Compared) -> str:
    rows = f"{len(task.train):,} training rows"
    nothing = (
        "so there is nothing to tell apart: the loss stays the same at every step and nothing is learned"
    )
    if len(compared.texts) > 1:
        return (
            f"task {task.name!r}: its {rows} show the same image, {nothing}. Give images that differ "
            "(everclip check shows copies)."
        )
    if labels:
        names = ", ".join(repr(entry.name) for entry in (task.classes or ())[:4])
        count = len(task.classes or ())
        one = f"has one class ({names})" if count == 1 else f"has {count} classes of one text ({names})"
        hint = _hint({entry.name.strip().lower() for entry in task.classes or ()}, count)
        return f"task {task.name!r} {one}, {nothing}. {hint}{_REMEDIES}."
    text = next(_texts(task.train), "")
    return (
        f"task {task.name!r}: its {rows} have one text ({text[:60]!r}; texts with equal tokens are one text), "
        f"{nothing}. Give captions that differ, or more than one class."
    )


def _hint(names: set[str], count: int) -> str:
    """Suggest a remedy for several classes that are one text; `names` are in lower case, without outer blanks."""
    if count == 1:
        return ""
    return _CUT if len(names) > 1 else "Give them names that differ in more than case and blanks. "


def _compared(task: Task, labels: bool, tokenise: Tokenise) -> _Compared:
    if labels:
        texts = set(token_keys(tokenise, [e.prompts()[0] for e in task.classes or ()]))
        answers = len(set(task.train.column("class_key"))) if task.train.has("class_key") else 0
    else:
        texts = _two_texts(task.train, tokenise)
        answers = len(texts)
    return _Compared(texts, _two_images(task.train), answers)


def _texts(table: Table) -> Iterator[str]:
    names = table.column("class_name") if table.has("class_name") else [None] * len(table)
    captions = table.column("caption") if table.has("caption") else [None] * len(table)
    return (str(c or n) for c, n in zip(captions, names, strict=True) if c or n)


def _two_texts(table: Table, tokenise: Tokenise) -> set[bytes]:
    """Return the token keys of two different texts, or of the only one."""
    distinct = list(dict.fromkeys(_texts(table)))
    found: set[bytes] = set()
    for start in range(0, len(distinct), BLOCK):
        found |= set(token_keys(tokenise, distinct[start : start + BLOCK]))
        if len(found) > 1:
            break
    return found


def _two_images(table: Table) -> set[str]:
    """Return the contents of two different images (or concepts, if the data name them), or of the only one."""
    concepts = table.column("concept") if table.has("concept") else [None] * len(table)
    found: set[str] = set()
    for position, concept in enumerate(concepts):
        found.add(table.content(position) if concept is None else f"concept {concept}")
        if len(found) > 1:
            break
    return found


def _notes(task: Task, method: Method, batch_size: int, later: bool) -> Iterator[str]:
    share = method.replayed_share if method.sees_past and later else 0.0
    own = batch_size * (1 - share)
    rows = len(task.train)
    if own > rows:
        yield (
            f"task {task.name!r}: a batch takes {own:g} of its {rows:,} training rows, so it contains each row "
            f"{own / rows:.1f} times; training.batch_size={max(2, int(rows / (1 - share)))} contains each once"
        )
    if method.uses_labels(task) and len(task.classes or ()) > 1:
        for side, table in (("training", task.train), ("validation", task.val)):
            held = set(table.column("class_key")) if table is not None and len(table) else set()
            if len(held) == 1:
                learned = (
                    "it learns to answer that" if side == "training" else "what is chosen on them favours it"
                )
                yield f"task {task.name!r}: all of its {side} rows are of one class ({held.pop()!r}); {learned}"
