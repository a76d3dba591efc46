"""Compare the text of a generative model with the right answer, by the published rules of MIRB or by mended ones.

Published is `evals/eval.py` of MIRB's code: text is cut at the first newline, and only without one at the first full
stop. What is wrong with it, and mended here:

* "yes" is looked for, "no" is not: a model that never says yes has all no-questions right, and "eyes" is a yes. Mended:
  the first of the words yes and no counts; neither is undecided, which is wrong.
* The cut at the first full stop ends titles with one ("A vs. B") and decimals. Mended: only lines are cut.
* A number in words counts only alone ("three", but not "There are three."). Mended: it counts among other words.
* Letters and titles must be the whole text: "(A)", "Answer: A" and a title in quotes are wrong. Mended: they are read.
* A city counts wherever it is part of the text, also in a list of all cities. Mended: as whole words, alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from everclip.data.reading.formats.mirb_tasks import Rule

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ORDINALS = [
    "zeroth",
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
]
NUMBERS = {word: str(n) for n, word in enumerate(WORDS)} | {
    word: str(n) for n, word in enumerate(ORDINALS) if n
}
"""Number words, as published."""

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Reading:
    """What was read in a text: `None` if nothing could be decided, which is wrong."""

    read: str | None
    correct: bool


def published(rule: Rule, text: str, gold: str) -> Reading:
    """Compare a text by MIRB's published rule.

    For options the published code takes the most probable first token of models that give one; this is what it does
    with the text of the others.
    """
    text, gold = _published_cut(text), gold.lower()
    if rule in ("yes-no", "place") and gold in ("yes", "no"):
        read = "yes" if "yes" in text.lower() else "no"
        return Reading(read, read == gold)
    if rule == "yes-no":  # neither yes nor no is right
        return Reading(text, False)
    if rule == "place":
        return Reading(text, gold in text.lower())
    if rule == "number":
        found = re.search(r"\d+", text)
        text = found.group() if found else NUMBERS.get(text.lower(), "")
    return Reading(text, text.lower() == gold)


def _published_cut(text: str) -> str:
    text = text.strip().strip("\n")
    at = text.find("\n")
    if at <= 0:
        at = text.find(".")
    return text[:at] if at > 0 else text


def mended(
    rule: Rule, text: str, gold: str, options: Sequence[str] = (), places: Sequence[str] = ()
) -> Reading:
    """Compare a text by the mended rules.

    Args:
        rule: of the task.
        text: what the model wrote.
        gold: the right answer.
        options: the texts of the options A, B, ..., where the question has some.
        places: all cities that a text may name.
    """
    line, gold = _first_line(text), gold.strip()
    if gold.lower().rstrip(".") in ("yes", "no"):
        return _compared(yes_or_no(line), gold.lower().rstrip("."))
    if rule == "letter" or (options and gold in LETTERS):
        return _compared(chosen_letter(line, options), gold.strip("(). ").upper())
    if rule == "number":
        return _compared(number_in(line), number_in(gold))
    if rule == "place":
        return _compared(only_named(line, [gold, *places]), _plain(gold))
    if rule == "word" and options:
        letter = chosen_letter(line, options)
        read = None if letter is None else options[LETTERS.index(letter)]
        return _compared(
            _plain(read) if read is not None else only_named(line, [gold, *options]), _plain(gold)
        )
    if rule == "word":
        return Reading(line or None, bool(_plain(gold)) and _plain(line) == _plain(gold))
    return Reading(line or None, _names(line, gold))


def _compared(read: str | None, gold: str | None) -> Reading:
    return Reading(read, read is not None and read == gold)


def _first_line(text: str) -> str:
    """Return the first line that is not blank, without marks of emphasis and quotation around it."""
    lines = [line.strip(" \t\r*_`\"'“”") for line in text.splitlines()]
    return next((line for line in lines if line), "")


def yes_or_no(line: str) -> str | None:
    """Return the first of the words yes and no."""
    found = re.search(r"\b(yes|no)\b", line.lower())
    return None if found is None else found[1]


def number_in(line: str) -> str | None:
    """Return the first number, in digits or as a word, in its shortest form.

    A comma separates thousands ("1,024") or numbers ("3,4"). A part of "twenty-one" is no number.
    """
    words = "|".join(NUMBERS)
    digits = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
    found = re.search(rf"(?<![\w.])-?{digits}|(?<![\w-])(?:{words})(?![\w-])", line.lower())
    if found is None:
        return None
    number = Decimal(NUMBERS.get(found.group(), found.group().replace(",", "")))
    shown = f"{number:f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


_LETTER_FORMS = (
    r"^[(\[]?([A-Ha-h])[)\].:]*$",  # alone
    r"^[(\[]?([A-Ha-h])[)\].:]+\s",  # before the text of the option
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?)\s*:?\s*[(\[]?(?:([A-H])(?![\w'])|([a-h])[)\].:]*$)",
    r"\(([A-Ha-h])\)",
)


def chosen_letter(line: str, options: Sequence[str] = ()) -> str | None:
    """Return the letter of the option that a text chooses: by its letter, else by the text of one option alone."""
    for form in _LETTER_FORMS:
        found = {next(filter(None, match.groups())).upper() for match in re.finditer(form, line)}
        if found:  # "(A) or (B)" chooses none
            found |= {letter.upper() for letter in re.findall(_LETTER_FORMS[-1], line)}
        if len(found) == 1:
            letter = found.pop()
            return letter if not options or LETTERS.index(letter) < len(options) else None
        if found:
            return None  # several letters
    named = [letter for letter, option in zip(LETTERS, options, strict=False) if _names(line, option)]
    if len(named) > 1:  # "Food 1" in "Food 10", or one option inside another: the whole text decides
        named = [n for n, option in zip(LETTERS, options, strict=False) if _plain(option) == _plain(line)]
    return named[0] if len(named) == 1 else None


def only_named(line: str, names: Sequence[str]) -> str | None:
    """Return the only one of some names that a text has as whole words; `None` for none or several.

    A name inside a longer one does not count: "New York" does not name York.
    """
    rest, found = f" {_plain(line)} ", []
    for name in sorted(set(map(_plain, names)) - {""}, key=len, reverse=True):
        if f" {name} " in rest:
            found.append(name)
            rest = rest.replace(f" {name} ", " | ")
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    """Return the words of a text in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _names(line: str, name: str) -> bool:
    """Whether a text has the words of a name next to each other."""
    words = _plain(name)
    return bool(words) and f" {words} " in f" {_plain(line)} "
