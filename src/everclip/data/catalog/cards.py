"""The card of a public data set: its facts, without its images. One YAML file per data set."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field, field_validator

from everclip.errors import ConfigError, did_you_mean
from everclip.registry import read_yaml
from everclip.schema import Frozen, validated

PREFIX = "catalog:"
"""Begins a `data.source` that names a card: `catalog:dtd`, `catalog:dtd/zhou`."""

RANDOM = "random-80-20@42"


class Zhou(Frozen):
    """The split file that CoOp (Zhou et al., arXiv 2109.01134) published for a data set.

    Attributes:
        file: its name.
        images: folder in the data set that its paths start from.
    """

    file: str
    images: str


class Counts(Frozen):
    """Number of images per side of the complete data set; `None` if it is not known."""

    train: int | None = None
    val: int | None = None
    test: int | None = None

    @property
    def given(self) -> dict[str, int]:
        """The known sides."""
        return {side: count for side, count in self.model_dump().items() if count is not None}


class Card(Frozen):
    """The facts of a data set.

    Attributes:
        name, title: for `catalog:` and for people.
        layout: the reader of its files (`everclip.data.reading.formats.layouts`).
        folders: its usual folders below the root.
        files: its usual files, for people.
        get: where to get it.
        counts: images per side.
        split: `official`: that of its own files; or torch's permutation of the sorted files with a seed.
        split_note: how the split differs from the published one.
        tested: the side that is measured.
        zhou: the split file of CoOp, if there is one.
        order: labels in the published class order.
        first: only the classes of the first so many labels.
        present: number of classes that it holds, if not all.
        classes: names in label order; `imagenet` for the 1,000 of `imagenet-classes.txt`, which OpenAI published with
            CLIP; `own` if they are in its files.
        labels: names of the classes in its own folders or files, if they differ.
        templates: texts around the names; the first is the one for training. `imagenet` stands for the 80 of
            `imagenet-templates.txt`.
    """

    name: str
    title: str
    layout: str
    folders: tuple[str, ...]
    files: str
    get: str
    counts: Counts = Counts()
    split: Literal["official", "random-80-20@42"] = "official"
    split_note: str = ""
    tested: Literal["test", "val"] = "test"
    zhou: Zhou | None = None
    order: tuple[int, ...] = ()
    first: int | None = Field(None, ge=1)
    present: int | None = Field(None, ge=1)
    classes: tuple[str, ...] | Literal["imagenet", "own"]
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] | Literal["imagenet"]

    @field_validator("classes", "labels", "templates", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def names(self) -> tuple[str, ...]:
        """The class names in label order."""
        if isinstance(self.classes, tuple):
            return self.classes
        if self.classes == "own":
            return ()
        return _lines("imagenet-classes.txt")[: self.first]

    @property
    def keys(self) -> tuple[str, ...]:
        """A key per label: its name, with the label if several classes have the name (`missile (657)`)."""
        return keys_of(self.names)

    @property
    def texts(self) -> tuple[str, ...]:
        """The templates."""
        if isinstance(self.templates, tuple):
            return self.templates
        return _lines("imagenet-templates.txt")

    @property
    def size(self) -> str:
        """The number of classes and images, for people."""
        classes = len(self.classes) if isinstance(self.classes, tuple) else self.present or self.first or 1000
        sides = ", ".join(f"{count:,} {side}" for side, count in self.counts.given.items())
        return f"{classes:,} classes" + (f"; {sides}" if sides else "")

    def published_order(self) -> tuple[str, ...]:
        """Return the class keys in the published order.

        Raises:
            ConfigError: if there is none.
        """
        if not self.order:
            having = ", ".join(card.name for card in cards().values() if card.order)
            raise ConfigError(f"order: {self.name} has no published class order; {having} have one.")
        keys = self.keys
        return tuple(keys[label] for label in self.order)


def keys_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return a key per name; repeated names get numbers."""
    held = Counter(names)
    return tuple(name if held[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))


@cache
def _lines(name: str) -> tuple[str, ...]:
    """Return the lines of a file of the catalog."""
    text = (resources.files("everclip.data.catalog") / name).read_text(encoding="utf-8")
    return tuple(text.splitlines())


@cache
def cards() -> dict[str, Card]:
    """Return all cards by name."""
    folder = resources.files("everclip.data.catalog")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    found = [validated(Card, read_yaml(file), file.name) for file in files]
    return {card.name: card for card in found}


def card_of(source: str) -> tuple[Card, str | None]:
    """Return the card of `catalog:NAME` or `catalog:NAME/zhou`, and the requested split.

    Raises:
        ConfigError: for a name or a split that does not exist.
    """
    name, _, rule = source.removeprefix(PREFIX).partition("/")
    if name not in cards():
        raise ConfigError(f"data.source: {source!r}: no such data set.{did_you_mean(name, cards())}")
    card = cards()[name]
    if rule not in ("", "zhou") or (rule and card.zhou is None):
        having = ", ".join(c.name for c in cards().values() if c.zhou)
        raise ConfigError(
            f"data.source: {source!r}: expected {PREFIX}{name}, or /zhou behind one of {having} (CoOp's split file)."
        )
    return card, rule or None
