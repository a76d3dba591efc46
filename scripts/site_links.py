"""Where the files of the repository stand on the site, and links from one to another.

Pages keep the links that work on a code host (`../benchmarks/SAFE.md`); the site rewrites them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FENCE = re.compile(r"(?ms)^(?P<fence>[ ]*(?:```+|~~~+)).*?^(?P=fence)[ ]*$")
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
TABLE_CODE = re.compile(r"(?<!`)`(?P<text>[^`\n]*\\\|[^`\n]*)`(?!`)")


class BrokenLink(Exception):
    """A link to what the site does not hold."""


def outside() -> dict[str, str]:
    """Return the files outside docs/ that the site holds: path in the repository -> path on the site."""
    found = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    for path in sorted((ROOT / "benchmarks").iterdir()):
        if path.suffix in (".md", ".png"):
            found[f"benchmarks/{path.name}"] = f"measured/{path.name}"
    for path in sorted((ROOT / "src/everclip").glob("*/builtin/*/CARD.md")):
        found[path.relative_to(ROOT).as_posix()] = f"builtin/{path.parent.name}.md"
    return found


def place(repository: str) -> str:
    """Return the path on the site of a path in the repository.

    Raises:
        BrokenLink: if the site does not hold it.
    """
    folder, _, name = repository.partition("/")
    if folder == "docs" and name:
        return name
    if folder == "examples" and (ROOT / repository).is_file():
        return f"reference/examples.md#{name.replace('.', '').lower()}"
    known = outside()
    if repository not in known:
        raise BrokenLink(f"{repository} is not part of the site (scripts/site_links.py)")
    return known[repository]


def relinked(text: str, origin: str, target: str) -> str:
    """Return a page with its links as the site needs them.

    Args:
        text: Markdown.
        origin: the path of the page in the repository.
        target: its path on the site.

    Raises:
        BrokenLink: for a link to what the site does not hold.
    """

    def link(match: re.Match[str]) -> str:
        goal, mark, part = match["target"].partition("#")
        if not goal or re.match(r"[a-z]+:", goal):
            return match[0]
        try:
            found = place(posixpath.normpath(posixpath.join(posixpath.dirname(origin), goal)))
        except BrokenLink as error:
            raise BrokenLink(f"{origin}: link to {goal}: {error}") from error
        here = posixpath.relpath(found, posixpath.dirname(target) or ".")
        return f"]({here}{mark}{part})"

    return outside_code(text, lambda prose: LINK.sub(link, prose))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return a page whose text outside code blocks and code spans was changed."""

    def each(part: str, pattern: re.Pattern[str], inner: Callable[[str], str]) -> str:
        done: list[str] = []
        last = 0
        for match in pattern.finditer(part):
            done += [inner(part[last : match.start()]), match[0]]
            last = match.end()
        return "".join([*done, inner(part[last:])])

    return each(text, FENCE, lambda prose: each(prose, CODE, change))


def table_code(text: str) -> str:
    """Return a page whose code in tables shows `|` for `\\|`, as a code host does; Python-Markdown would show both."""

    def line(row: str) -> str:
        return (
            TABLE_CODE.sub(lambda m: f"<code>{_escaped(m['text'])}</code>", row)
            if row.startswith("|")
            else row
        )

    return "".join(map(line, text.splitlines(keepends=True)))


def _escaped(code: str) -> str:
    plain = code.replace("\\|", "|")
    for sign, name in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "&#124;"),
        ("*", "&#42;"),
        ("_", "&#95;"),
    ):
        plain = plain.replace(sign, name)
    return plain
